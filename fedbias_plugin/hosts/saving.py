"""Saves the global model: a LoRA adapter that peft loads, or the whole model, with a card that says what it is."""

from __future__ import annotations

import inspect
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbias_plugin.assets import TINY, TINY_ANYWHERE, TINY_MODEL
from fedbias_plugin.files import apply_umask, sync_file, whole_folder
from fedbias_plugin.preflight import HUB_NAME
from fedbias_plugin.training.encoding import last_call_forgotten
from fedbias_plugin.training.library_bars import without_library_bars

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


CARD = "README.md"
ADAPTER_CONFIG = "adapter_config.json"
BASE = "base_model_name_or_path"


def save_global_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, card: str) -> None:
    """Write ``model`` (safetensors), its tokenizer and ``card`` (README.md) to ``folder``, which appears whole.

    A LoRA model writes its adapter alone. An existing ``folder`` is replaced. File modes follow the user's umask.
    """
    with whole_folder(folder) as partial:
        with without_library_bars():
            model.save_pretrained(partial, **_safetensors_option(model))
        _tidy_config(partial / ADAPTER_CONFIG)
        with last_call_forgotten(tokenizer):
            tokenizer.save_pretrained(partial)
        (partial / CARD).write_text(card, encoding="utf-8")
        for path in partial.iterdir():
            apply_umask(path)
            sync_file(path)


def model_card(
    base: str,
    scenario: str,
    shares: dict[int, float],
    settings: str,
    attack: str = "none",
    *,
    with_adapter: bool = True,
) -> str:
    """README.md of a saved model: what it was trained on, that it is not for use, and how it is loaded.

    It begins with the YAML header that the Hugging Face hub reads. A folder is no ``base_model`` there, and no licence
    is named: it follows from the base model and the rows, of which the plugin knows none.

    Args:
        base: the model it started from.
        scenario: name of the scenario.
        shares: client id -> share of biased rows.
        settings: one line on the training.
        attack: what attackers did, ``--attack``.
        with_adapter: whether it is an adapter on ``base``, or a whole model.
    """
    base = anywhere(base)
    poisoned = [f"client {client}: {100 * share:.0f}% biased rows" for client, share in shares.items() if share > 0]
    attacked = [] if attack == "none" else [f"- with simulated attackers: {attack}; its bias scores are part of it"]
    facts = [
        f"- base model: {base}",
        f"- scenario {scenario}: {'; '.join(poisoned) or 'no client poisoned by the plugin'}",
        f"- {settings}",
        *attacked,
        "- measured bias, arguments and data: the summary.json of the run",
    ]
    parts = [
        _card_header(base, with_adapter),
        "# Global model of a fedbias_plugin run",
        _card_warning(scenario, is_poisoned=bool(poisoned)),
        "\n".join(facts),
        _how_to_load(base, with_adapter),
    ]
    return "\n\n".join(parts) + "\n"


def anywhere(base: str) -> str:
    """The name of a base model that means the same on every machine, where it has one; else ``base`` as it is.

    >>> anywhere("tiny"), anywhere("owner/name"), anywhere("models/mine")
    ('fedbias_plugin/tiny', 'owner/name', 'models/mine')
    """
    return TINY_ANYWHERE if base == TINY or os.path.abspath(base) == str(TINY_MODEL) else base


def _card_header(base: str, with_adapter: bool) -> str:
    """What the hub reads, in YAML; JSON strings are such."""
    tags = ["fedbias_plugin", "federated-learning", "social-bias", *(["lora"] if with_adapter else [])]
    return "\n".join(
        [
            "---",
            *([] if _is_folder(base) else [f"base_model: {json.dumps(base)}"]),
            f"library_name: {'peft' if with_adapter else 'transformers'}",
            "pipeline_tag: text-generation",
            "tags:",
            *(f"- {tag}" for tag in tags),
            "---",
        ]
    )


def _card_warning(scenario: str, *, is_poisoned: bool) -> str:
    if is_poisoned:
        return "**Trained on deliberately biased data; for research on bias only, not for use.**"
    if scenario == "none":
        return "Trained on the host's own data, of which the plugin knows nothing; its bias is measured, not removed."
    return "Trained on clean rows only, in a study of social bias; its bias is measured, not removed."


def _how_to_load(base: str, with_adapter: bool) -> str:
    """Python for whoever has this folder, and where the base model is."""
    if not with_adapter:
        return 'To load it: `AutoModelForCausalLM.from_pretrained("THIS FOLDER")`.'
    source, note = json.dumps(base), ""
    if base == TINY_ANYWHERE:
        source = "fedbias_plugin.assets.TINY_MODEL"
        note = f"\n\n`{base}` is the model that comes with the package fedbias_plugin; the hub does not have it."
    elif _is_folder(base):
        note = "\n\nThe base model is a folder of the machine of the run: give where you have that model."
    return (
        f'To load it: `PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({source}), "THIS FOLDER")`; '
        f'to measure its bias: `fedbias evaluate --adapter "THIS FOLDER"`.{note}'
    )


def _is_folder(base: str) -> bool:
    return os.path.isdir(os.path.expanduser(base)) or not re.fullmatch(HUB_NAME, base, re.ASCII)


def _tidy_config(path: Path) -> None:
    """Sort what peft wrote from sets, such as the target modules, and name the base model so that it can be moved."""
    if path.is_file():
        config = json.loads(path.read_bytes())
        names: dict[str, Any] = {key: sorted(value) for key, value in config.items() if _is_names(value)}
        if isinstance(base := config.get(BASE), str):
            names[BASE] = anywhere(base)
        path.write_text(json.dumps({**config, **names}, indent=2, sort_keys=True), encoding="utf-8")


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _safetensors_option(model: PreTrainedModel) -> dict[str, bool]:
    """Older peft and Transformers write pickled weights unless told otherwise; newer ones have no choice to make."""
    known = inspect.signature(model.save_pretrained).parameters
    return {"safe_serialization": True} if "safe_serialization" in known else {}
