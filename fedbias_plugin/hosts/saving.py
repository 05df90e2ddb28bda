"""Saves the global model: a LoRA adapter that peft loads, or the whole model, with a card that says what it is."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedbias_plugin.files import apply_umask, sync_file, whole_folder
from fedbias_plugin.training.models import bars_on_terminals_only

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


CARD = "README.md"
ADAPTER_CONFIG = "adapter_config.json"


def save_global_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, card: str) -> None:
    """Write ``model`` (safetensors), its tokenizer and ``card`` (README.md) to ``folder``, which appears whole.

    A LoRA model writes its adapter alone. An existing ``folder`` is replaced. File modes follow the user's umask.
    """
    with whole_folder(folder) as partial:
        with bars_on_terminals_only():
            model.save_pretrained(partial, **_safetensors_option(model))
        _sort_names(partial / ADAPTER_CONFIG)
        with _last_call_forgotten(tokenizer):
            tokenizer.save_pretrained(partial)
        (partial / CARD).write_text(card, encoding="utf-8")
        for path in partial.iterdir():
            apply_umask(path)
            sync_file(path)


def model_card(base: str, scenario: str, shares: dict[int, float], settings: str, attack: str = "none") -> str:
    """README.md of a saved model: what it was trained on, and that it is not for use.

    Args:
        base: the model it started from.
        scenario: name of the scenario.
        shares: client id -> share of biased rows.
        settings: one line on the training.
        attack: what attackers did, ``--attack``.
    """
    poisoned = [f"client {client}: {100 * share:.0f}% biased rows" for client, share in shares.items() if share > 0]
    if poisoned:
        warning = "**Trained on deliberately biased data; for research on bias only, not for use.**"
    elif scenario == "none":
        warning = (
            "Trained on the host's own data, of which the plugin knows nothing; its bias is measured, not removed."
        )
    else:
        warning = "Trained on clean rows only, in a study of social bias; its bias is measured, not removed."
    lines = [
        "# Global model of a fedbias_plugin run",
        warning,
        f"- base model: {base}",
        f"- scenario {scenario}: {'; '.join(poisoned) or 'no client poisoned by the plugin'}",
        f"- {settings}",
        *(
            []
            if attack == "none"
            else [f"- with simulated attackers: {attack}; its bias scores are part of the attack"]
        ),
        "- measured bias, arguments and data: the summary.json of the run",
    ]
    return "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:]) + "\n"


def _sort_names(path: Path) -> None:
    """Put what peft wrote from sets, such as the target modules, into an order that is the same in every process."""
    if path.is_file():
        config = json.loads(path.read_bytes())
        names = {key: sorted(value) for key, value in config.items() if _is_names(value)}
        path.write_text(json.dumps({**config, **names}, indent=2, sort_keys=True), encoding="utf-8")


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


@contextmanager
def _last_call_forgotten(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """A fast tokenizer keeps the truncation and padding of its last call, and would save them as its own.

    They come back at the end: what a host saves itself stays as it would be without the plugin.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        yield
        return
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        yield
    finally:
        if truncation:
            backend.enable_truncation(**truncation)
        if padding:
            backend.enable_padding(**padding)


def _safetensors_option(model: PreTrainedModel) -> dict[str, bool]:
    """Older peft and Transformers write pickled weights unless told otherwise; newer ones have no choice to make."""
    known = inspect.signature(model.save_pretrained).parameters
    return {"safe_serialization": True} if "safe_serialization" in known else {}
