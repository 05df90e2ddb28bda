"""Keeps logins out of what is printed, recorded and sent to trackers.

A login is what an argument or an environment variable with a telling name holds (``hf_token``, ``WANDB_API_KEY``), what
looks like a token of the Hugging Face hub, and what stands before the ``@`` of an address.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "(not recorded)"
SHORTEST_SECRET = 16
"""Characters from which on the value of an environment variable is looked for in texts; short ones are everywhere."""

_TELLING_NAME = re.compile(r"(^|_)(token|key|apikey|secret|password|passwd|credentials?)$", re.IGNORECASE)
_MARKER_OF_A_TOKENIZER = re.compile(r"^(bos|eos|pad|unk|sep|cls|mask|image|response|instruction)_token$", re.IGNORECASE)
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_LOGIN_IN_ADDRESS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@]+@", re.IGNORECASE)


def redacted(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with every login replaced by ``(not recorded)``, in mappings and lists within it too.

    Only texts are replaced, so that ``use_auth_token=True`` and ``bias_batch_tokens=4096`` stay.

    >>> redacted({"hf_token": "hf_abc", "use_auth_token": True, "pad_token": "</s>", "seed": 1})
    {'hf_token': '(not recorded)', 'use_auth_token': True, 'pad_token': '</s>', 'seed': 1}
    """
    return {name: _redacted_value(str(name), value) for name, value in config.items()}


def redacted_text(text: str) -> str:
    """``text`` without logins: those in the environment, tokens of the hub, logins in addresses.

    >>> redacted_text("https://me:pass@example.org/x cannot be reached")
    'https://example.org/x cannot be reached'
    """
    for name, value in os.environ.items():
        if len(value) >= SHORTEST_SECRET and is_telling_name(name):
            text = text.replace(value, HIDDEN)
    return _LOGIN_IN_ADDRESS.sub(r"\1", _HUB_TOKEN.sub(HIDDEN, text))


def is_telling_name(name: str) -> bool:
    """Whether an argument or a variable of this name holds a login.

    >>> [is_telling_name(name) for name in ("WANDB_API_KEY", "hub_token", "eos_token", "max_tokens", "keyboard")]
    [True, True, False, False, False]
    """
    return bool(_TELLING_NAME.search(name)) and not _MARKER_OF_A_TOKENIZER.match(name)


def _redacted_value(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return HIDDEN if value and is_telling_name(name) else redacted_text(value)
    if isinstance(value, Mapping):
        return redacted(value)
    if isinstance(value, (list, tuple)):
        return [_redacted_value(name, part) for part in value]
    return value
