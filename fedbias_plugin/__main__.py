"""``python -m fedbias_plugin`` is ``fedbias``."""

import sys

from fedbias_plugin.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
