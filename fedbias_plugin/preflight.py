"""What can be found wrong before a model loads, on every host: numbers, the model's files, quantisation, data, rows.

Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedbias_plugin.assets import TINY, TINY_ANYWHERE, TINY_MODEL
from fedbias_plugin.data.hub import cached_data_set, cached_snapshot, hub_cache, why_no_hub
from fedbias_plugin.errors import UserError, first_line, printable, quoted
from fedbias_plugin.known_flags import all_options
from fedbias_plugin.options import check_range
from fedbias_plugin.versions import installed_version

LARGEST_SEED = 2**32 - 1
"""NumPy's generator, which Transformers seeds, takes no larger one."""
NUMBERS = ("batch_size", "gradient_accumulation_steps", "seq_length", "peft_lora_r", "peft_lora_alpha", "seed")
"""What OpenFedLLM asks of a number too; it takes steps of -1 and any learning rate."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth")
CLASSIFIERS = ("ForSequenceClassification", "TextCnn")
"""How names of models end that tell labels; the last one is ours."""
HUB_NAME = r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?"


def check_training_numbers(args: Any, *, local_epochs: int | None = None) -> None:
    """Refuse numbers that no client can be trained with; one that ``args`` lacks, as a fork's may, is left alone.

    ``local_epochs`` replaces the steps.

    Raises:
        UserError: one is out of range; the flag, the bound and the value are named.
    """
    known = all_options()
    for name in NUMBERS:
        known[name].check(name, getattr(args, name, None))
    steps, rate = (getattr(args, name, None) for name in ("max_steps", "learning_rate"))
    if steps is not None and steps < 1 and local_epochs is None:
        raise UserError(
            f"--max_steps must be at least 1, got {steps}; to train over all rows of a client give --local_epochs N."
        )
    if rate is not None:
        check_range("learning_rate", rate, 0)


def check_quantisation(load_in_8bit: bool, load_in_4bit: bool, use_peft: bool = True) -> None:
    """Refuse flags of quantisation that contradict each other; ``use_peft`` is True where nothing is trained.

    Raises:
        UserError: both are given, or the whole quantised model is to be trained.
    """
    if load_in_8bit and load_in_4bit:
        raise UserError("--load_in_8bit and --load_in_4bit exclude each other; give one of them.")
    if (load_in_8bit or load_in_4bit) and not use_peft:
        raise UserError("A quantised model cannot be trained whole; add --use_peft, or drop --load_in_8bit/4bit.")


def check_bitsandbytes(load_in_8bit: bool, load_in_4bit: bool, *, runs_on_cpu: bool = True) -> None:
    """Refuse a quantised model where this machine cannot have one; without a quantised model it imports nothing.

    ``runs_on_cpu``: whether the host would put the model on the CPU where there is no GPU; bitsandbytes can since 0.46.
    OpenFedLLM asks for the first GPU by its number.

    Raises:
        UserError: bitsandbytes is not installed, broken or too old for this Transformers, or there is no device for it.
    """
    if not load_in_8bit and not load_in_4bit:
        return
    flag = "--load_in_8bit" if load_in_8bit else "--load_in_4bit"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{flag} needs bitsandbytes, which is not installed: pip install bitsandbytes.")
    import torch

    has_gpu = torch.cuda.is_available()
    if not has_gpu and not runs_on_cpu:
        raise UserError(f"{flag} needs a GPU here, and torch finds none; drop {flag}.")
    try:
        import bitsandbytes
        from transformers.utils import is_bitsandbytes_available
    except Exception as error:  # its compiled parts raise errors of every kind
        raise UserError(f"{flag}: bitsandbytes cannot be imported: {first_line(error)}") from error
    found = f"bitsandbytes {installed_version('bitsandbytes')}"
    if not has_gpu and "cpu" not in getattr(bitsandbytes, "supported_torch_devices", ()):
        raise UserError(
            f"{flag}: torch finds no GPU, and {found} quantises nothing on a CPU: pip install -U bitsandbytes, or drop "
            f"{flag}."
        )
    if not is_bitsandbytes_available():
        raise UserError(f"{flag}: {found} is too old for this Transformers: pip install -U bitsandbytes.")


def model_path(name_or_path: str) -> str:
    """``name_or_path`` as Transformers takes it: a folder (of ``tiny`` the bundled one), or a hub name; not checked."""
    if name_or_path in (TINY, TINY_ANYWHERE):
        return str(TINY_MODEL)
    path = os.path.expanduser(name_or_path)
    return path if name_or_path and os.path.exists(path) else name_or_path


def check_model(
    name_or_path: str, *, pickled_weights: bool = False, asks_hub: bool = True, weights: bool = True
) -> str:
    """:func:`model_path`, of a complete folder or of a name that the hub or its cache has; no weight is read.

    Args:
        name_or_path: folder, hub name or ``tiny``.
        pickled_weights: whether the host loads ``*.bin`` files too.
        weights: False where those of a folder are not needed.
        asks_hub: False to leave open whether there is a model of a hub name.

    Raises:
        UserError: a folder is not there or lacks config, weights (or one of their files) or tokenizer, a file of
            weights is cut off, or the hub does not give the name or cannot be reached and its cache lacks the model.
    """
    path = model_path(name_or_path)
    flag = f"--model_name_or_path {path if os.path.exists(path) else quoted(name_or_path)}"
    if os.path.isdir(path):
        fault = _fault_of_folder(Path(path), pickled_weights, weights)
        if fault:
            raise UserError(f"{flag} {fault}")
    elif name_or_path in (TINY, TINY_ANYWHERE):
        raise UserError(f"The bundled model is missing from this installation ({path}); reinstall fedbias_plugin.")
    elif os.path.isfile(path):
        raise UserError(f"{flag} is a file; give the folder it is in.")
    elif not re.fullmatch(HUB_NAME, name_or_path, re.ASCII):
        raise UserError(f"{flag}: there is no such folder.")
    elif asks_hub:
        cached = cached_snapshot(name_or_path, "models")
        if cached is None or _fault_of_folder(cached, pickled_weights, weights) is not None:
            _ask_hub(name_or_path, flag)
    return path


def _fault_of_folder(path: Path, pickled_weights: bool, weights: bool = True) -> str | None:
    """What a folder of a model lacks, to be read after its name; None when it is complete."""
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            return "holds an adapter, not a model; give the base model it was trained on."
        return "holds no config.json; give the folder of a model saved by save_pretrained."
    has_pickled = any(file for pattern in PICKLED_WEIGHTS for file in path.glob(pattern))
    if weights and not any(path.glob("*.safetensors")) and not (has_pickled and pickled_weights):
        if has_pickled:
            return (
                "holds pickled weights only, which are not loaded because loading them can run code; convert them "
                "with save_pretrained(folder, safe_serialization=True)."
            )
        return "holds no weights; a *.safetensors file belongs there."
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        return "holds no tokenizer; save it there with tokenizer.save_pretrained (tokenizer.json)."
    return next(_faults_of_weights(path), None) if weights else None


def check_is_no_classifier(path: str, *, only_ours: bool = False) -> None:
    """Refuse a model that tells labels where texts are to be scored or written; its config.json alone is read.

    Args:
        path: folder, or hub name of which the cache may have the config.
        only_ours: whether a sequence classifier of Transformers will do, and only a ``textcnn`` not.

    Raises:
        UserError: it is one.
    """
    folder = Path(path) if os.path.isdir(path) else cached_snapshot(path, "models")
    try:
        config = json.loads((folder / "config.json").read_bytes()) if folder else {}
        classes = [str(name) for name in config.get("architectures") or ()]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return  # whoever loads it says what is wrong
    if any(name.endswith(CLASSIFIERS[-1] if only_ours else CLASSIFIERS) for name in classes):
        raise UserError(
            f"--model_name_or_path {path} is a classifier ({printable(classes[0])}), which tells labels and scores no "
            "texts: give a causal LM, such as the one that it was made of. How often the classifier is right stands in "
            "the folder of its run (fedbias report RUN)."
        )


def _faults_of_weights(path: Path) -> Iterator[str]:
    """Files of safetensors weights that are missing or cut off; only their headers are read."""
    from safetensors import safe_open

    index = path / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if not (path / names[0]).is_file():
        if not index.is_file():
            return
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            yield f"holds a damaged {index.name}; copy it again."
            return
    for name in names:
        if not (path / name).is_file():
            yield f"lacks {name}, one of the {len(names)} files of weights that {index.name} lists; copy it there."
            continue
        try:
            with safe_open(str(path / name), framework="numpy"):
                pass
        except Exception as error:  # of a Rust library
            yield f"holds a damaged or unfinished {name} ({first_line(error)}); copy it again."


def _ask_hub(name: str, flag: str) -> None:
    """Refuse a name that the hub does not give, without the minutes that its library tries again and again.

    Raises:
        UserError: saying why, and what to do instead.
    """
    reason = why_no_hub()
    if reason is None:
        from huggingface_hub import hf_hub_download

        try:
            hf_hub_download(name, "config.json")
            return
        except Exception as error:  # unknown, not for this login, no such file, a proxy in between, ...
            reason = f"the Hugging Face hub did not give it: {first_line(error)}"
    else:
        reason = f"{reason}, and the cache {hub_cache()} does not hold all of it."
    raise UserError(
        f"{flag} is no folder here; {reason} Fetch it where there is a network (hf download {name} --local-dir FOLDER) "
        f"and give the folder, or use the bundled model: --model_name_or_path {TINY}."
    )


def check_adapter(folder: str) -> None:
    """Refuse a folder without a LoRA adapter or soft prompt of a causal LM, or with one that has peft import anything.

    Raises:
        UserError: naming the file.
    """
    path = Path(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not os.path.isfile(path / name):
            raise UserError(f"--adapter {folder} holds no {name}; give the folder of a LoRA adapter saved by peft.")
    path = path / "adapter_config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {first_line(error)}.") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind not in ("LORA", "PROMPT_TUNING"):
        raise UserError(
            f"{path} is of an adapter of the type {quoted(kind)}; give a LoRA adapter or a soft prompt saved by peft."
        )
    if config.get("task_type") == "SEQ_CLS":
        raise UserError(f"{path} is of a classifier (--task classify), which has no likelihoods of sentences to score.")
    if config.get("megatron_config"):
        raise UserError(f"{path} has a megatron_config, with which peft imports code; save the adapter without it.")


def check_host_data(dataset_name: str, local_data_dir: str | None = None) -> None:
    """Refuse a data set of OpenFedLLM that is neither on this machine nor to be had; what the hub has is not asked.

    The host puts ``local_data_dir`` before the name, without a slash of its own.

    Raises:
        UserError: there is no such file or folder, or the hub cannot be reached and no cache holds the data set.
    """
    path = (local_data_dir or "") + dataset_name
    if os.path.exists(path):
        return
    if local_data_dir or not re.fullmatch(HUB_NAME, path, re.ASCII):
        slash = (
            local_data_dir and not local_data_dir.endswith("/") and os.path.exists(f"{local_data_dir}/{dataset_name}")
        )
        hint = f" End --local_data_dir with a slash: {local_data_dir}/" if slash else ""
        raise UserError(f"--dataset_name {quoted(dataset_name)}: there is no {path}.{hint}")
    reason = None if cached_data_set(dataset_name) else why_no_hub()
    if reason:
        raise UserError(
            f"--dataset_name {quoted(dataset_name)} is not on this machine, and {reason}. Fetch it where there is a "
            f"network (hf download {dataset_name} --repo-type dataset --local-dir FOLDER/{dataset_name}) and give "
            "--local_data_dir FOLDER/, or train on the plugin's rows: --scenario 3C."
        )


def check_responses_fit(client: int, *, rows: int, trainable: bool, first: str, seq_length: int) -> None:
    """Refuse a client none of whose ``rows`` (the name of the ``first`` is given) keeps a token of its response.

    Raises:
        UserError: it would train on nothing.
    """
    if not trainable:
        raise UserError(
            f"Client {client} has no token to train on: --seq_length {seq_length} cuts the response off in all {rows} "
            f"rows (such as {first}). Raise --seq_length."
        )
