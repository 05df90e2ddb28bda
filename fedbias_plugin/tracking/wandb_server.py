"""Whether Weights & Biases can be used from here: found out without prompting or hanging."""

from __future__ import annotations

import configparser
import contextlib
import importlib
import netrc
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

DEFAULT_URL = "https://api.wandb.ai"
NEWER_HOSTS = ("forge.coreweave.com", "api.forge.coreweave.com")
"""Of the public server, for which W&B takes the login of its older name too."""


def import_wandb() -> ModuleType:
    """The ``wandb`` package.

    Raises:
        ImportError: the package is missing or does not import; the message says which in a few words. A folder named
            ``wandb``, which W&B itself makes, imports as an empty package: that counts as missing.
    """
    # Reports of W&B's own errors to its makers: without a network their retries fill the console.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        module = importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        raise ImportError(f"the package {error.name} is not installed") from None
    except Exception as error:  # old versions meet new dependencies with AttributeError, TypeError, ...
        raise ImportError(f"the package wandb does not import, {type(error).__name__}: {error}") from None
    if not hasattr(module, "init"):
        raise ImportError("the package wandb is not installed")
    return module


def server_url(wandb: ModuleType | None = None) -> str:
    """Address of the W&B server: ``WANDB_BASE_URL``, else W&B's settings files, else the public server.

    Args:
        wandb: the imported package, whose versions differ in the address of the public server.
    """
    configured = os.environ.get("WANDB_BASE_URL") or next(_settings("base_url"), None)
    if configured is None and wandb is not None:
        with contextlib.suppress(Exception):  # a default is at hand, whatever a version does here
            configured = str(wandb.Settings().base_url)
    return (configured or DEFAULT_URL).rstrip("/")


def login_source(url: str) -> str | None:
    """Where W&B will find its login for ``url`` (never the login itself), or None when there is none.

    Looked at, in this order: ``WANDB_API_KEY``, ``WANDB_IDENTITY_TOKEN_FILE``, the netrc file, W&B's settings files.
    """
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if os.environ.get(variable):
            return variable
    unix, windows = Path("~/.netrc").expanduser(), Path("~/_netrc").expanduser()
    path = windows if windows.exists() and not unix.exists() else unix
    if os.environ.get("NETRC"):
        path = Path(os.environ["NETRC"]).expanduser()
    host = urlsplit(url).netloc
    hosts = [host, urlsplit(DEFAULT_URL).netloc] if host in NEWER_HOSTS else [host]
    with contextlib.suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError):
        entries = netrc.netrc(str(path))
        if any(entries.authenticators(name) for name in hosts):
            return path.name
    return "W&B settings" if next(_settings("api_key"), None) else None


def unreachable_reason(url: str, timeout: float = 5.0) -> str | None:
    """Why ``url`` cannot be reached, or None when something answers there, with whatever status.

    Args:
        url: http or https address.
        timeout: seconds, for name resolution, connection and answer together.
    """
    found: list[str | None] = []
    # Name resolution obeys no timeout, so it happens in a thread that may be left behind.
    thread = threading.Thread(target=lambda: found.append(_try_url(url, timeout)), daemon=True)
    thread.start()
    thread.join(timeout)
    return found[0] if found else f"no answer within {timeout:g} s"


def _try_url(url: str, timeout: float) -> str | None:
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=timeout).close()
    except urllib.error.HTTPError:
        return None
    except urllib.error.URLError as error:
        # W&B brings its own certificates: what this interpreter does not trust, W&B may.
        return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _settings(key: str) -> Iterator[str]:
    """Values of ``key`` in W&B's settings files, the workspace's before the user's."""
    user = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    for path in (Path(os.environ.get("WANDB_DIR") or ".") / "wandb" / "settings", user / "settings"):
        parser = configparser.ConfigParser(interpolation=None)
        with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
            parser.read(path, encoding="utf-8")
            if parser.get("default", key, fallback=None):
                yield parser.get("default", key)
