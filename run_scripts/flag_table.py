"""Writes the tables of docs/flags.md anew, from the flags themselves: ``python run_scripts/flag_table.py``."""

from __future__ import annotations

from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from fedbias_plugin.hosts.builtin.arguments import ModelArguments
from fedbias_plugin.options import options, shown_help
from fedbias_plugin.registry import CHOSEN_BY, load, names
from fedbias_plugin.training.dp import PrivacyFlags, Private

PAGE = Path(__file__).parents[1] / "docs/flags.md"
GROUPS = {
    "Rule": (
        "rule",
        "bama_alpha exact_lora",
        "How much each client counts. BAMA's equations: [metrics.md](metrics.md#client-bias-score-and-bama); "
        "robust rules: [attacks.md](attacks.md#robust-rules); fairness: [fairness.md](fairness.md).",
    ),
    "Privacy": (
        "",
        " ".join([*options(Private), "dp_update_norm"]),
        "Differential privacy of the clients' rows (with the extra `privacy`) or of whole clients: "
        "[privacy.md](privacy.md).",
    ),
    "Attacks and refused updates": (
        "attack stage",
        "attackers on_bad_update",
        "What an attacker sends, and what the server refuses: [attacks.md](attacks.md).",
    ),
    "Data": ("split transform", "data_dir", "Who holds which rows: [data.md](data.md)."),
    "Model": ("", " ".join(options(ModelArguments)), "The model that all clients start from."),
    "Training": (
        "task trainable term algorithm",
        "use_peft num_rounds num_clients sample_clients local_epochs max_steps batch_size gradient_accumulation_steps "
        "learning_rate seq_length bf16 gradient_checkpointing",
        "What the clients and the server do in a round.",
    ),
    "Metrics": (
        "metric",
        "bias_eval_every bias_batch_tokens scoring_dtype",
        "What is measured, and on which items: [metrics.md](metrics.md).",
    ),
    "Tracking": ("tracker", "wandb_project wandb_mode", "Where the numbers go: [wandb.md](wandb.md)."),
    "Run": ("", "", "Seeds, folders and checkpoints: [reliability.md](reliability.md)."),
}
"""Heading -> kinds of extensions whose flags stand there, other flags, a sentence. The last heading takes the rest."""
ALONE = {
    "flower": ("Only with `fedbias flower run`", "How long the server waits for its nodes: [flower.md](flower.md)."),
    "openfedllm": ("Only in a patched OpenFedLLM", "Its own scripts take them: [openfedllm.md](openfedllm.md)."),
}
"""Host -> heading and sentence, for the flags that no other host has."""
REFUSED_THERE = {"task", "trainable", *options(Private)} - {*options(PrivacyFlags)}
"""Flags that a patched OpenFedLLM knows, to refuse them with a sentence; it takes privacy with --dp_unit client."""


def row(spec: Field[Any], there: frozenset[str]) -> str:
    """A row of a table: name, default, whether a patched OpenFedLLM takes it, meaning."""
    default = "" if spec.default is None else f"`{spec.default}`"
    mark = "yes" if spec.name in there else ""
    return f"| `--{spec.name}` | {default} | {mark} | {shown_help(spec)} |"


def tables() -> str:
    """Everything below the introduction: a heading, a sentence and a table for each group."""
    patched = fields(load("flags", "openfedllm"))
    left = {spec.name: spec for name in ("plugin", "builtin") for spec in fields(load("flags", name))}
    everywhere = frozenset(left)
    there = frozenset(spec.name for spec in patched) - REFUSED_THERE
    parts = []
    for heading, (kinds, own, sentence) in GROUPS.items():
        chosen = [CHOSEN_BY[kind] for kind in kinds.split()]
        of_kinds = [flag for kind in kinds.split() for name in names(kind) for flag in options(load(kind, name))]
        wanted = [*chosen, *own.split(), *of_kinds] if heading != list(GROUPS)[-1] else list(left)
        specs = [left.pop(flag) for flag in wanted if flag in left]
        parts += [_table(heading, sentence, [row(spec, there) for spec in specs])]
    for host, (heading, sentence) in ALONE.items():
        alone = [spec for spec in fields(load("flags", host)) if spec.name not in everywhere]
        parts += [_table(heading, sentence, [row(spec, there) for spec in alone])]
    return "\n".join(parts)


def page(text: str) -> str:
    """The page with its tables made anew; what stands above its first heading of the second level stays."""
    return text[: text.index("\n## ") + 1] + tables()


def _table(heading: str, sentence: str, rows: list[str]) -> str:
    head = "| flag | default | patched | meaning |\n|---|---|---|---|"
    return "\n".join([f"## {heading}\n\n{sentence}\n", head, *rows, ""])


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
