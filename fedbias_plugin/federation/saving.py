"""The global model on the disk: a LoRA adapter that peft loads, or the whole model, with a card that says what it is.

Saved, and found again with the base model that the adapter belongs to.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbias_plugin.assets import TINY, TINY_ANYWHERE, TINY_MODEL
from fedbias_plugin.errors import UserError
from fedbias_plugin.files import apply_umask, sync_file, whole_folder
from fedbias_plugin.preflight import HUB_NAME
from fedbias_plugin.tasks.base import ModelKind
from fedbias_plugin.tasks.encoding import last_call_forgotten
from fedbias_plugin.tracking.recorder import RUN_FILE
from fedbias_plugin.training.dp import ON
from fedbias_plugin.training.models import without_library_bars

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fedbias_plugin.arguments import BiasArguments
    from fedbias_plugin.data.partition import ClientDataset
    from fedbias_plugin.state import State

CARD = "README.md"
ADAPTER_CONFIG = "adapter_config.json"
BASE = "base_model_name_or_path"


def save_global_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, card: str, *, merged: bool = False
) -> None:
    """Write ``model`` (safetensors), its tokenizer and ``card`` (README.md) to ``folder``, which appears whole.

    A LoRA model writes its adapter alone, or with ``merged`` the whole model with the adapter in its weights. An
    existing ``folder`` is replaced. File modes follow the user's umask.
    """
    with whole_folder(folder) as partial:
        # Older peft and Transformers write pickled weights unless told otherwise; newer ones have no choice to make.
        has_choice = "safe_serialization" in inspect.signature(model.save_pretrained).parameters
        options: dict[str, Any] = {"safe_serialization": True} if has_choice else {}
        if merged:
            options["state_dict"] = merged_weights(model)
        with without_library_bars():
            (model.get_base_model() if merged else model).save_pretrained(partial, **options)
        path = partial / ADAPTER_CONFIG
        if path.is_file():
            # Sort what peft wrote from sets, such as the target modules, and name the base so that it can be moved.
            config = {key: _sorted_names(value) for key, value in json.loads(path.read_bytes()).items()}
            if isinstance(base := config.get(BASE), str):
                config[BASE] = anywhere(base)
            path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
        with last_call_forgotten(tokenizer):
            tokenizer.save_pretrained(partial)
        (partial / CARD).write_text(card, encoding="utf-8")
        for path in partial.iterdir():
            apply_umask(path)
            sync_file(path)


def merged_weights(model: Any) -> State:
    """The weights of the base model with its active adapters added, under the base model's names; nothing is changed.

    Args:
        model: a peft model with LoRA adapters on linear layers; maybe with a head that is trained whole, of which peft
            keeps the original too.
    """
    base = model.get_base_model()
    layers = {name: module for name, module in base.named_modules() if hasattr(module, "get_delta_weight")}
    found: State = {}
    for name, tensor in base.state_dict().items():
        if ".original_module." in name:
            continue
        name = re.sub(r"\.modules_to_save\.[^.]+\.", ".", name)
        owner, inside, rest = name.partition(".base_layer.")
        if inside and rest == "weight":
            layer = layers[owner]
            tensor = sum((layer.get_delta_weight(one) for one in layer.active_adapters), tensor)
        if inside or not any(name.startswith(f"{owner}.") for owner in layers):
            found[f"{owner}.{rest}" if inside else name] = tensor
    return found


def told_shares(clients: Iterable[ClientDataset], arguments: BiasArguments) -> dict[int, float | None] | None:
    """Client id -> share of biased rows, for the card of a model; None with differential privacy, which covers none."""
    if any(getattr(arguments, flag) is not None for flag in ON):
        return None
    return {dataset.client: dataset.biased_share for dataset in clients}


def model_card(
    base: str,
    scenario: str,
    shares: Mapping[int, float | None] | None,
    settings: str,
    attack: str = "none",
    *,
    with_adapter: bool = True,
    kind: ModelKind | None = None,
    method: str = "lora",
) -> str:
    """README.md of a saved model: what it was trained on, that it is not for use, and how it is loaded.

    It begins with the YAML header that the Hugging Face hub reads. A folder is no ``base_model`` there, and no licence
    is named: it follows from the base model and the rows, of which the plugin knows none.

    Args:
        base: the model it started from.
        scenario: name of the scenario.
        shares: client id -> share of biased rows, None where it is not known; None of all where they are private.
        settings: one line on the training.
        attack: what attackers did, ``--attack``.
        with_adapter: whether it is an adapter on ``base``, or a whole model.
        kind: of the model; a causal LM without it.
        method: the trainable that made the adapter.
    """
    kind = kind or ModelKind()
    base = anywhere(base)
    poisoned = [f"client {client}: {100 * share:.0f}% biased rows" for client, share in (shares or {}).items() if share]
    attacked = [] if attack == "none" else [f"- with simulated attackers: {attack}; its bias scores are part of it"]
    held = "; ".join(poisoned) or "no client poisoned by the plugin"
    if shares is None:
        held = "trained with differential privacy; what single clients held is not told"
    facts = [
        f"- base model: {'none, from random weights' if kind.random_weights else base}",
        f"- scenario {scenario}: {held}",
        f"- {settings}",
        *attacked,
        "- measured bias, arguments and data: the summary.json of the run",
    ]
    warning = "Trained on clean rows only, in a study of social bias; its bias is measured, not removed."
    if poisoned:
        warning = "**Trained on deliberately biased data; for research on bias only, not for use.**"
    elif shares is None:
        warning = "**May be trained on deliberately biased data; for research on bias only, not for use.**"
    elif scenario == "none":
        warning = (
            "Trained on the host's own data, of which the plugin knows nothing; its bias is measured, not removed."
        )
    parts = [
        _card_header(base, method if with_adapter else None, kind),
        "# Global model of a fedbias_plugin run",
        warning,
        "\n".join(facts),
        _how_to_load(base, with_adapter, kind),
    ]
    return "\n\n".join(parts) + "\n"


def anywhere(base: str) -> str:
    """The name of a base model that means the same on every machine, where it has one; else ``base`` as it is.

    >>> anywhere("tiny"), anywhere("owner/name"), anywhere("models/mine")
    ('fedbias_plugin/tiny', 'owner/name', 'models/mine')
    """
    return TINY_ANYWHERE if base == TINY or os.path.abspath(base) == str(TINY_MODEL) else base


def _card_header(base: str, method: str | None, kind: ModelKind) -> str:
    """What the hub reads, in YAML; JSON strings are such."""
    tags = ["fedbias_plugin", "federated-learning", "social-bias", *([method.replace("_", "-")] if method else [])]
    return "\n".join(
        [
            "---",
            *([] if _is_folder(base) or kind.random_weights else [f"base_model: {json.dumps(base)}"]),
            f"library_name: {'peft' if method else 'transformers'}",
            f"pipeline_tag: {'text-generation' if kind.is_causal_lm else 'text-classification'}",
            "tags:",
            *(f"- {tag}" for tag in tags),
            "---",
        ]
    )


def _how_to_load(base: str, with_adapter: bool, kind: ModelKind) -> str:
    """Python for whoever has this folder, and where the base model is."""
    if kind.make is not None:
        return (
            'To load it: `fedbias_plugin.tasks.textcnn.TextCnn.from_pretrained("THIS FOLDER")`, which reads `word_ids`.'
        )
    if not with_adapter:
        return f'To load it: `{kind.auto_class}.from_pretrained("THIS FOLDER")`.'
    source, note = json.dumps(base), ""
    if base == TINY_ANYWHERE:
        source = "fedbias_plugin.assets.TINY_MODEL"
        note = f"\n\n`{base}` is the model that comes with the package fedbias_plugin; the hub does not have it."
    elif _is_folder(base):
        note = "\n\nThe base model is a folder of the machine of the run: give where you have that model."
    if not kind.is_causal_lm:
        made = f"{kind.auto_class}.from_pretrained({source}, num_labels={len(kind.settings.get('id2label', ()))})"
        if kind.random_weights:
            note += "\n\nIts base are random weights drawn from the run's seed, which this folder does not hold."
        return f'To load it: `PeftModel.from_pretrained({made}, "THIS FOLDER")`.{note}'
    return (
        f'To load it: `PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({source}), "THIS FOLDER")`; '
        f'to measure its bias: `fedbias evaluate --adapter "THIS FOLDER"`.{note}'
    )


def _is_folder(base: str) -> bool:
    return os.path.isdir(os.path.expanduser(base)) or not re.fullmatch(HUB_NAME, base, re.ASCII)


def _sorted_names(value: Any) -> Any:
    """A list of names in order; any other value as it is."""
    return sorted(value) if isinstance(value, list) and all(isinstance(name, str) for name in value) else value


def find_adapter(folder: str) -> str:
    """The adapter that ``folder`` means: its own, or that of the run whose output folder it is.

    A folder that holds one run of a patched OpenFedLLM, which names its folders itself, stands for that run.

    Returns:
        The folder of the adapter; ``folder`` itself where there is none.

    Raises:
        UserError: it is a run that trained every weight, and has no adapter.
    """
    path = Path(folder)
    if (path / ADAPTER_CONFIG).is_file():
        return folder
    inside = [config.parent for config in sorted(path.glob(f"*/adapter/{ADAPTER_CONFIG}"))]
    for found in (path / "adapter", *(inside if len(inside) == 1 else ())):
        if (found / ADAPTER_CONFIG).is_file():
            return str(found)
    if (path / "model" / "config.json").is_file():
        raise UserError(
            f"--adapter {folder}: that run has the whole model and no adapter; give --model_name_or_path "
            f"{path / 'model'}."
        )
    return folder


def base_model(adapter: str) -> tuple[str, Path]:
    """The base model of an adapter, and the file that names it: the run's ``run.json``, else its own configuration.

    A folder of another machine, of which there is none here, is no name.

    Raises:
        UserError: neither names one.
    """
    folder = Path(adapter)
    named = (
        (folder.absolute().parent / RUN_FILE, ("config", "model_name_or_path")),
        (folder / ADAPTER_CONFIG, (BASE,)),
    )
    for file, keys in named:
        name = _value(file, keys)
        if isinstance(name, str) and name and not (os.path.isabs(name) and not os.path.exists(name)):
            return name, file
    raise UserError(f"--adapter {adapter}: its files do not name its base model; give --model_name_or_path.")


def _value(file: Path, keys: tuple[str, ...]) -> Any:
    """What a JSON file holds under ``keys``; None where there is no such thing, or no such file."""
    try:
        value = json.loads(file.read_bytes())
        for key in keys:
            value = value[key]
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return None
    return value
