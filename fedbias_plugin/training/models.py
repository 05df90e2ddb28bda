"""Loads a causal language model or a classifier, its tokenizer or a saved adapter; checks rows against the model."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fedbias_plugin.assets import TINY
from fedbias_plugin.errors import UserError, first_line, quoted
from fedbias_plugin.options import check_choice
from fedbias_plugin.preflight import check_adapter, check_bitsandbytes, check_is_no_classifier, check_quantisation
from fedbias_plugin.scoring.soft_prompts import soft_prompt, virtual_tokens
from fedbias_plugin.tasks.base import ModelKind
from fedbias_plugin.training.heads import new_heads, seeded, set_pad_token, without_load_report
from fedbias_plugin.training.random_states import preserved_random_states

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES: dict[str, Any] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": "auto"}


def load_model(
    path: str,
    *,
    dtype: str = "float32",
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
    kind: ModelKind | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """Load from a folder or the hub; weights from safetensors only.

    ``kind`` is what a task asks for, a causal LM without it. Weights that are not in the checkpoint, those of a new
    head, are drawn from ``seed``.

    Quantised to int8, or to nf4 with double quantisation, it computes in bfloat16 whatever ``dtype`` says, as in
    OpenFedLLM. Without ``device`` it goes to the first GPU if there is one, else the CPU.

    Raises:
        UserError: the files are unreadable or incomplete, the hub refuses them, the model is a classifier and no causal
            LM, or cannot be quantised here.
    """
    check_choice("dtype", dtype, DTYPES)
    check_quantisation(load_in_8bit, load_in_4bit)
    check_bitsandbytes(load_in_8bit, load_in_4bit)
    target = torch.device(device) if device is not None else best_device()
    kind = kind or ModelKind()
    if kind.random_weights:
        return _drawn(path, kind, seed, None if dtype == "auto" else DTYPES[dtype], trust_remote_code).to(target)
    check_is_no_classifier(path, only_ours=not kind.is_causal_lm)
    load_config(path, trust_remote_code)
    options: dict[str, Any] = {"dtype": DTYPES[dtype], **kind.settings}
    is_quantised = load_in_8bit or load_in_4bit
    if is_quantised:
        from transformers import BitsAndBytesConfig

        # It says in every forward pass that inputs are cast to float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        nf4 = {
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": torch.bfloat16,
        }
        config = BitsAndBytesConfig(load_in_8bit=True) if load_in_8bit else BitsAndBytesConfig(load_in_4bit=True, **nf4)
        options |= {"dtype": torch.bfloat16, "quantization_config": config, "device_map": {"": target}}
    options |= {"trust_remote_code": trust_remote_code, "use_safetensors": True, "output_loading_info": True}
    if not kind.is_causal_lm:
        options["ignore_mismatched_sizes"] = True  # of a head for other labels, which is replaced
    with seeded(seed), without_load_report(not kind.is_causal_lm):
        model, loading = _from_hub_or_folder(kind.auto_class, path, **options)
    heads = tuple(f"{name}." for name in new_heads(model))
    lost = [*loading["missing_keys"], *(key for key, *_ in loading.get("mismatched_keys", ()))]
    missing = sorted(key for key in lost if not key.startswith(heads))
    if missing:
        raise UserError(
            f"--model_name_or_path {path}: {len(missing)} weights that its config.json asks for are missing, such as "
            f"{missing[0]}; they would be random. Give a complete checkpoint of a causal LM."
        )
    if not kind.is_causal_lm:
        set_pad_token(model.config)
    if is_quantised:
        from peft import prepare_model_for_kbit_training

        # Checkpointing is switched on and off around each client's training instead.
        with without_peft_notices():
            return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return model.to(target)


def _drawn(path: str, kind: ModelKind, seed: int, dtype: Any, trust_remote_code: bool) -> PreTrainedModel:
    """The model with weights drawn from ``seed``, in evaluation mode."""
    import transformers

    with seeded(seed):
        if kind.make is not None:
            model = kind.make(kind.settings)
        else:
            config = load_config(path, trust_remote_code, **kind.settings)
            options = {"dtype": dtype} if dtype else {}
            auto = getattr(transformers, kind.auto_class)
            model = auto.from_config(config, trust_remote_code=trust_remote_code, **options)
    if not kind.is_causal_lm:
        set_pad_token(model.config)
    return model.eval()


def model_outline(path: str, *, trust_remote_code: bool = False, kind: ModelKind | None = None) -> PreTrainedModel:
    """The model without its weights (all on the device ``meta``), to see what fits it before they are loaded.

    Raises:
        UserError: its config cannot be loaded, or no causal LM is made of it.
    """
    import transformers

    kind = kind or ModelKind()
    if kind.make is None:
        check_is_no_classifier(path, only_ours=not kind.is_causal_lm)
    config = None if kind.make else load_config(path, trust_remote_code, **kind.settings)
    try:
        with preserved_random_states(), torch.device("meta"):
            if kind.make is not None:
                return kind.make(kind.settings)
            return getattr(transformers, kind.auto_class).from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # of a config that its model has no use for
        what = "causal LM" if kind.is_causal_lm else "sequence classifier"
        raise UserError(
            f"--model_name_or_path {path}: no {what} can be made of its config.json: {first_line(error)}"
        ) from error


def load_config(path: str, trust_remote_code: bool, **settings: Any) -> Any:
    """The model's config; one whose attention is a kernel of the hub is refused: a package of code, whoever owns it.

    Raises:
        UserError: it is, or the config cannot be loaded.
    """
    # Without a word on remote code, Transformers asks the user.
    config = _from_hub_or_folder("AutoConfig", path, trust_remote_code=trust_remote_code, **settings)
    wanted = getattr(config, "_attn_implementation", None)
    if "/" in str(wanted) and not trust_remote_code:
        raise UserError(
            f"--model_name_or_path {path}: its config.json asks for attention code of the hub, {quoted(wanted)}. Take "
            "attn_implementation out of it, or give --trust_remote_code to run that code."
        )
    return config


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name, padding on the right, with EOS as padding token if it has none.

    Raises:
        UserError: it cannot be loaded, or has neither a padding nor an EOS token.
    """
    tokenizer = _from_hub_or_folder("AutoTokenizer", path, padding_side="right", trust_remote_code=trust_remote_code)
    tokenizer.truncation_side = "right"  # a row that is too long loses its end, never its prompt
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(
                f"The tokenizer of {path} has neither pad_token nor eos_token; set eos_token in its config."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_adapter(model: PreTrainedModel, folder: str) -> PeftModel:
    """``model`` with the adapter of ``folder`` (``OUTPUT/adapter`` of a run), from safetensors only.

    Raises:
        UserError: the folder holds no LoRA adapter or soft prompt, one that would run code, or one that does not fit.
    """
    from peft import PeftModel

    check_adapter(folder)
    try:
        with without_peft_notices():
            adapted = PeftModel.from_pretrained(model, folder)
    except Exception as error:  # whatever peft, safetensors and json make of damaged files
        reason = " ".join(str(error).split())[:300]  # torch's first line only announces the others
        raise UserError(f"--adapter {folder} does not fit --model_name_or_path: {reason}") from error
    prompt, width = soft_prompt(adapted), adapted.get_input_embeddings().embedding_dim
    if prompt is not None and prompt.shape[1] != width:
        raise UserError(
            f"--adapter {folder} does not fit --model_name_or_path: its prompt is of embeddings of {prompt.shape[1]} "
            f"numbers, the model's have {width}."
        )
    return adapted


def check_fits_model(rows: Sequence[Sequence[int]], model: PreTrainedModel) -> None:
    """Refuse rows that the model has no positions (behind a soft prompt) or no embeddings for.

    Raises:
        UserError: naming the length or the token id, and the model's limit.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if isinstance(positions, int):
        positions -= virtual_tokens(model)
    length, token = max(map(len, rows)), max(map(max, rows))
    if isinstance(positions, int) and length > positions:
        raise UserError(
            f"A training row has {length} tokens, but the model has {positions} positions (max_position_embeddings); "
            f"give --seq_length {positions} or less."
        )
    embeddings = model.get_input_embeddings().num_embeddings
    if token >= embeddings:
        raise UserError(
            f"A training row has token {token}, but the model has {embeddings} embeddings; is this its own tokenizer?"
        )


def best_device() -> torch.device:
    """The first GPU if there is one, else the CPU; of the processes of a launcher, each has its own GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank = os.environ.get("LOCAL_RANK", "0")  # -1 from old launchers that started only one
    return torch.device("cuda", int(rank) % torch.cuda.device_count() if rank.isdigit() else 0)


def _from_hub_or_folder(auto_class: str, path: str, **options: Any) -> Any:
    """``from_pretrained`` whose failure says what to do.

    Raises:
        UserError: the files are unreadable, or the hub cannot be reached, does not know the name or refuses.
    """
    import transformers

    try:
        with without_library_bars():
            return getattr(transformers, auto_class).from_pretrained(path, **options)
    except Exception as error:  # tokenizers raises no other kind; of damaged files come TypeError, AttributeError, ...
        reason = first_line(error)
        if Path(path).is_dir():
            raise UserError(f"--model_name_or_path {path} cannot be loaded by {auto_class}: {reason}") from error
        raise UserError(
            f"--model_name_or_path {path!r} is no folder here, and the Hugging Face hub did not give it: {reason} "
            f"Fetch it where there is a network (hf download {path} --local-dir FOLDER) and give the folder, or use "
            f"the bundled model: --model_name_or_path {TINY}."
        ) from error


@contextmanager
def without_peft_notices() -> Iterator[None]:
    """Without what peft says of GPT-2's weights, of a name that was renamed, and of an outline's lack of weights."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* to a meta parameter .*", category=UserWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


@contextmanager
def without_library_bars() -> Iterator[None]:
    """Transformers draws bars of its own while it loads and saves, also into log files; not here.

    Downloads keep theirs on a terminal: they can take long.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    shows_downloads = sys.stderr.isatty() and not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if shows_downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        logging.enable_progress_bar()
