"""What the scripts patched by version 0.x import first; it says how to bring them up to date."""

from fedbias_plugin.errors import UserError
from fedbias_plugin.logs import print_error

print_error(
    UserError("this checkout was patched by an earlier version of the plugin; bring it up to date: fedbias patch .")
)
raise SystemExit(2)
