"""Reads a data set and gives its rows the columns the trainers want."""

import itertools

from datasets import load_dataset

from .conversation import get_conv_template

ALPACA = ("lucasmccabe-lmi/CodeAlpaca-20k", "yahma/alpaca-cleaned", "FinGPT/fingpt-sentiment-train")
ALPACA_WITH_TEXT = ("tatsu-lab/alpaca", "vicgalle/alpaca-gpt4", "gbharti/finance-alpaca")
HH = "Anthropic/hh-rlhf"
ULTRAFEEDBACK = "HuggingFaceH4/ultrafeedback_binarized"
HUMAN, ASSISTANT = "\n\nHuman: ", "\n\nAssistant: "


def get_dataset(dataset_name, local_data_dir=None):
    split = "train_sft" if dataset_name == ULTRAFEEDBACK else "train"
    return load_dataset(dataset_name if local_data_dir is None else local_data_dir + dataset_name, split=split)


def process_sft_dataset(dataset_name, dataset, dataset_sample):
    """Columns ``instruction`` and ``response``."""
    if dataset_name not in ALPACA + ALPACA_WITH_TEXT:
        raise NotImplementedError(f"No format is known for the data set {dataset_name}.")
    unused = ["input", "output", "text"] if dataset_name in ALPACA_WITH_TEXT else ["input", "output"]
    return _sample(dataset_name, dataset.map(_alpaca, remove_columns=unused), dataset_sample)


def process_dpo_dataset(dataset_name, dataset, template_name, dataset_sample):
    """Columns ``prompt``, ``chosen`` and ``rejected``."""
    options = {"fn_kwargs": {"template_name": template_name}, "load_from_cache_file": False}
    if dataset_name == HH:
        dataset = dataset.map(_hh, **options)
    elif dataset_name == ULTRAFEEDBACK:
        dataset = dataset.map(_ultrafeedback, **options)
        dataset = dataset.remove_columns(["prompt_id", "messages", "score_chosen", "score_rejected"])
    dataset = _sample(dataset_name, dataset, dataset_sample)
    print(f">> First example: {dataset[0]}")
    return dataset


def _sample(name, dataset, most):
    rows = dataset.shuffle(seed=2023)
    if most:
        rows = rows.select(range(min(most, len(rows))))
    print(f">> Dataset {name} has {len(rows)} examples.")
    return rows


def _alpaca(row):
    asked = row["instruction"] if row["input"] == "" else " ".join([row["instruction"], row["input"]])
    return {"instruction": asked, "response": row["output"]}


def _ultrafeedback(row, template_name):
    talk = get_conv_template(template_name)
    talk.append_message(talk.roles[0], row["prompt"])
    talk.append_message(talk.roles[1], None)
    answers = {side: " " + row[side][1]["content"] for side in ("chosen", "rejected")}
    return {"prompt": talk.get_prompt(), **answers}


def _hh(row, template_name):
    """The prompt is what both dialogues begin with, up to the last whole turn; answers keep the blank before them."""
    pairs = zip(row["chosen"], row["rejected"], strict=False)
    shared = "".join(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    talk = get_conv_template(template_name)
    rest = shared[len(HUMAN) :]
    for role, marker in itertools.cycle(zip(talk.roles, (ASSISTANT, HUMAN), strict=True)):
        message, found, rest = rest.partition(marker)
        if not found:
            break
        talk.append_message(role, message)
    talk.append_message(talk.roles[1], None)
    answers = {side: row[side][len(shared) - 1 :] for side in ("chosen", "rejected")}
    return {"prompt": talk.get_prompt(), **answers}
