"""Five small tasks of lm-evaluation-harness as a user writes them: a YAML file each, and rows as JSON lines."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

NAMES = ("baker", "pilot", "nurse", "farmer", "teacher", "driver")
ADJECTIVES = ("kind", "rude", "calm", "loud", "brave", "shy")
MEAN = {"aggregation": "mean", "higher_is_better": True}
LIKELIHOOD = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{question}}",
    "doc_to_target": " {{choices[label]}}",
    "metric_list": [
        {"metric": "acc", **MEAN},
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
    ],
}
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{passage}}\n\nQ: {{question}}\nA:",
    "doc_to_target": "label",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": "acc", **MEAN}],
}
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{passage}}",
    "metric_list": [
        {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
        {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
    ],
}
NORMED = CHOICE | {"metric_list": [{"metric": "acc_norm", **MEAN}, {"metric": "acc", **MEAN}], "num_fewshot": 2}
GENERATION = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[label]}}",
    "generation_kwargs": {"until": ["."], "max_gen_toks": 5},
    "metric_list": [{"metric": "exact_match", **MEAN}],
}
GROUP = {
    "group": "little_group",
    "task": ["little_choice", "little_normed"],
    "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}],
    "metadata": {"version": 2},
}
TASKS = {
    "little_likelihood": LIKELIHOOD,
    "little_choice": CHOICE,
    "little_rolling": ROLLING,
    "little_normed": NORMED,
    "little_generation": GENERATION,
}


def write_rows(path: Path, rows: int, words: int, seed: int) -> None:
    """Rows with a passage, a question, choices of one to three words, and the number of the right one."""
    draws = random.Random(seed)
    with open(path, "w") as stream:
        for _ in range(rows):
            name = draws.choice(NAMES)
            told = [f"The {draws.choice(NAMES)} was {draws.choice(ADJECTIVES)}." for _ in range(words // 4)]
            choices = draws.sample(ADJECTIVES, 4)
            choices[1] = f"very {choices[1]} and {draws.choice(ADJECTIVES)}"
            row = {"passage": " ".join(told), "question": f"How is the {name}? The {name} is", "choices": choices}
            stream.write(json.dumps(row | {"label": draws.randrange(4)}) + "\n")


def write_tasks(folder: Path, rows: int = 12, words: int = 40) -> Path:
    """The tasks, their rows and the group, as files of ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "test.jsonl", rows, words, seed=0)
    write_rows(folder / "train.jsonl", 6, 8, seed=1)
    files = {"test": str(folder / "test.jsonl"), "train": str(folder / "train.jsonl")}
    data: dict[str, Any] = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "training_split": "train",
        "metadata": {"version": 1.5},
    }
    for name, task in TASKS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **data, **task}))
    (folder / "little_group.yaml").write_text(yaml.safe_dump(GROUP))
    return folder
