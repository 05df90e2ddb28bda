"""Between the host's data sets and the plugin's rows."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fedbias_plugin.data.rows import Row
from fedbias_plugin.errors import UserError, did_you_mean
from fedbias_plugin.tasks.encoding import Feature, common_prefix, encode_text
from fedbias_plugin.tasks.templates import CHAT, TEMPLATES

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Formatting = Callable[[dict[str, list[str]]], list[str]]
"""The host's ``formatting_prompts_func``: columns of rows -> whole training texts."""


def instruction_dataset(rows: Sequence[Row]) -> Dataset:
    """The columns OpenFedLLM trains on with SFT."""
    from datasets import Dataset

    texts = {"instruction": [row.instruction for row in rows], "response": [row.response for row in rows]}
    return Dataset.from_dict(texts)


def preference_dataset(rows: Sequence[Row], template: str, formatted: bool) -> Dataset:
    """The columns OpenFedLLM trains on with DPO.

    Args:
        rows: preference rows.
        template: name of the host's conversation template.
        formatted: the texts came from the host, in its template already. Otherwise they are put into it as the host
            does with UltraFeedback: the prompt as a user's turn, a blank before each response.
    """
    from datasets import Dataset

    blank = "" if formatted else " "
    columns = {
        "prompt": [row.instruction if formatted else conversation_prompt(row.instruction, template) for row in rows],
        "chosen": [f"{blank}{row.response}" for row in rows],
        "rejected": [f"{blank}{row.rejected}" for row in rows],
    }
    return Dataset.from_dict(columns)


def conversation_prompt(instruction: str, template: str) -> str:
    """``instruction`` as the one turn of a user, up to where the assistant answers.

    The host's own conversation templates (FastChat's) are used, which differ from its SFT templates; a host without
    them gets the SFT template of that name.

    Raises:
        UserError: nobody knows ``template``.
    """
    conversation = find_conversation(template)
    if conversation is None:
        if template in TEMPLATES:
            return TEMPLATES[template].prompt(instruction).rstrip(" ")
        raise UserError(f"--template {template!r} is unknown; choose one of {', '.join(TEMPLATES)}.")
    conversation.append_message(conversation.roles[0], instruction)
    conversation.append_message(conversation.roles[1], None)
    return str(conversation.get_prompt())


def find_conversation(template: str) -> Any | None:
    """A new conversation in the host's own template of that name, or UserError; None where the host has none at all."""
    try:
        conversations = importlib.import_module("utils.conversation")
        return conversations.get_conv_template(template)
    except ImportError:
        return None
    except KeyError:
        hint = did_you_mean(template, getattr(conversations, "conv_templates", {}))
        raise UserError(
            f"--template {template!r} is no conversation template of this host (utils/conversation.py); "
            f"OpenFedLLM's own DPO script gives vicuna_v1.1.{hint}{_only_built_in(template)}"
        ) from None


def _only_built_in(template: str) -> str:
    """Where the tokenizer's own template is to be had, if that is what is asked for."""
    return " The tokenizer's own chat template is for fedbias run alone." if template == CHAT else ""


def host_template(script_args: Any) -> Callable[[str], tuple[Formatting, str]] | None:
    """EOS text -> the host's formatting function for ``--template``, and the text before a response.

    Returns:
        None where the host has no such function, or its template takes other columns.

    Raises:
        UserError: the host does not know ``--template``.
    """
    template = script_args.template
    try:
        make = inspect.unwrap(importlib.import_module("utils").get_formatting_prompts_func)
        more = {"script_args": script_args} if "script_args" in inspect.signature(make).parameters else {}
        make(template, "", **more)[0]({"instruction": [""], "response": [""]})
    except KeyError:
        known = getattr(sys.modules[make.__module__], "TEMPLATE_DICT", {})
        raise UserError(
            f"--template {template!r} is unknown to this host; choose one of {', '.join(map(str, known))}."
            f"{did_you_mean(template, known)}{_only_built_in(template)}"
        ) from None
    except Exception:  # whatever another host makes of these arguments
        return None
    return lambda eos: make(template, eos, **more)


def encode_dataset(
    dataset: Dataset, formatting: Formatting, marker: str, tokenizer: PreTrainedTokenizerBase, seq_length: int
) -> list[Feature]:
    """Every row of ``dataset`` as token ids and labels, the response found by its text.

    Args:
        dataset: rows with the columns that ``formatting`` reads, ``response`` among them.
        formatting: the host's, so that a fork's templates work too.
        marker: the host's response template; what follows it is trained. Where the text does not hold it (as with some
            of FedLLM-Bench's templates), the response begins where texts with different responses part.
        tokenizer: the host's.
        seq_length: rows are cut to so many tokens.
    """
    columns = dataset[:]
    texts = formatting(columns)
    blanks = formatting({**columns, "response": ["\0"] * len(texts)})  # which no response begins with
    features = []
    for text, blank in zip(texts, blanks, strict=True):
        prompt = text[: common_prefix(text, blank)]
        found = prompt.rfind(marker)
        start = found + len(marker) if found >= 0 else len(prompt)
        features.append(encode_text(text, start, tokenizer, seq_length))
    return features


@contextmanager
def strided_shards() -> Iterator[None]:
    """``Dataset.shard(n, i)`` takes every n-th row again, as it did in the versions OpenFedLLM was written for."""
    from datasets import Dataset

    original = Dataset.shard

    def shard(self: Dataset, num_shards: int, index: int, contiguous: bool = False, **kwargs: Any) -> Dataset:
        return original(self, num_shards, index, contiguous=contiguous, **kwargs)

    Dataset.shard = shard
    try:
        yield
    finally:
        Dataset.shard = original
