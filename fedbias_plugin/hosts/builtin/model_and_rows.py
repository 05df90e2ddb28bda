"""The clients' rows as tokens, and the model, whose weights come last: what is wrong without them is said before."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedbias_plugin.hosts.builtin.arguments import HostArguments
from fedbias_plugin.poisoning.loaders import ClientDataset
from fedbias_plugin.preflight import check_responses_fit, model_path
from fedbias_plugin.training.encoding import Feature, encode_rows
from fedbias_plugin.training.models import add_lora, check_fits_model, load_model, load_tokenizer, model_outline
from fedbias_plugin.training.templates import TEMPLATES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def load_checked(
    host: HostArguments, datasets: Sequence[ClientDataset]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[int, list[Feature]]]:
    """The model (with the LoRA adapter that is asked for), its tokenizer, and client id -> rows to train on.

    Raises:
        UserError: a client has no token to train on, its rows or the adapter do not fit the model (found before the
            weights are read), or the model cannot be loaded.
    """
    path, trusted = model_path(host.model_name_or_path), host.trust_remote_code
    tokenizer = load_tokenizer(path, trust_remote_code=trusted)
    features = {dataset.client: _encode_client(dataset, tokenizer, host) for dataset in datasets}
    outline = model_outline(path, trust_remote_code=trusted)
    check_fits_model([feature["input_ids"] for rows in features.values() for feature in rows], outline)
    _with_adapter(outline, host)  # refuses names of modules that the model does not have
    model = load_model(
        path,
        dtype=host.dtype,
        load_in_8bit=host.load_in_8bit,
        load_in_4bit=host.load_in_4bit,
        trust_remote_code=trusted,
    )
    return _with_adapter(model, host), tokenizer, features


def _encode_client(dataset: ClientDataset, tokenizer: PreTrainedTokenizerBase, host: HostArguments) -> list[Feature]:
    """The client's rows; refuses a client that would train on nothing."""
    encoded = encode_rows(dataset.rows, tokenizer, TEMPLATES[host.template], host.seq_length)
    rows, cut = len(encoded.features), encoded.truncated
    first = dataset.rows[0].id
    check_responses_fit(dataset.client, rows=rows, trainable=len(cut) < rows, first=first, seq_length=host.seq_length)
    if cut:
        logger.warning(
            "client %d: --seq_length %d cuts the response off entirely in %d of %d rows, such as %s",
            *(dataset.client, host.seq_length, len(cut), rows, cut[0]),
        )
    return encoded.features


def _with_adapter(model: PreTrainedModel, host: HostArguments) -> PreTrainedModel:
    """``model`` with the LoRA adapter that is asked for; as it is without ``--use_peft``."""
    if not host.use_peft:
        return model
    return add_lora(
        model,
        r=host.peft_lora_r,
        alpha=host.peft_lora_alpha,
        dropout=host.peft_lora_dropout,
        target_modules=host.target_modules,
        seed=host.seed,
    )
