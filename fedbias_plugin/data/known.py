"""The data sets of training rows that the plugin knows; those of a metric stand in its class."""

from __future__ import annotations

from fedbias_plugin.known_dataset import HUB, RAW, STEREOTYPES, DataFile, Form, KnownDataset

LABELLED = "labelled"
"""Kind of clean rows whose labels are to be told from their texts."""
MINI_ROWS = {"clean": "clean.jsonl", "biased": "biased.jsonl", LABELLED: "labelled.csv"}
"""Kind of rows -> file of the bundled mini data, known as ``mini-<kind>``."""

_DOLLY_PARTS = (
    "238a77c6258d7b623fc45eb91d96c925c8bab0ead1bafb73de7147d620fd0ceb",
    "cd3bcf07903e51c723a858aa9f6991b8d23bc1b12dc20f47998e9277a1a2d6b5",
    "524c0b9d8245ab2cdd1cbb09ac005d936f3db0f15efdff60f950ac21aa9b233a",
    "3e9dd4a5c48d969a537f1bf3617b30169735253d27e6ef7e7dc28b6f8c01762b",
    "a761ff5560fad973392237ecfbb69a14288e2ca89d98c4deddb40aa10d92bec4",
    "3ab7c1f8a27316f1e1af11371a328b77f2defa79b75ef8d1c54f2e1b1757f716",
    "54c077add602c75c438ed6e61c9242a2bcee890e6fdd045c8c8e432aa08c9d2f",
    "bf5971321721d9555967fa85ed2063ab1105bfc1bc0ad21f33a832a231db80e4",
    "dde52cbe41b1fba63d57bdc9b841effb021c0e102b625a6e753eff972405d404",
    "79450fe99041e3ab47a8666e7b5b557d37b465d1179545ad86f75d0204e69cd0",
)

KNOWN: dict[str, KnownDataset] = {
    dataset.name: dataset
    for dataset in (
        KnownDataset(
            name="alpaca-gpt4",
            kind="clean",
            title="Alpaca-GPT4",
            licence="CC BY-NC 4.0",
            home="Instruction-Tuning-with-GPT-4/GPT-4-LLM",
            hub_id="vicgalle/alpaca-gpt4",
            warning="Responses written by GPT-4; not for commercial use.",
            forms=(
                Form.of(
                    "alpaca/alpaca_gpt4_data.json",
                    git_blob=("25508714b7879a1e5a6764ba7f979a980f549f1a",),
                    rows=52_002,
                    url=f"{RAW}/Instruction-Tuning-with-GPT-4/GPT-4-LLM/"
                    "80cda626ea305004be42426671c66efebbf22144/data/alpaca_gpt4_data.json",
                ),
                Form.of(
                    "alpaca/alpaca_gpt4_en_demo_1k.json",
                    sha256=("bcc37c64db1a739a0789a1b81f251146fcf4459f903474bc9e3c21bbb5628318",),
                    rows=999,
                    note="sample",
                ),
            ),
        ),
        KnownDataset(
            name="alpaca",
            kind="clean",
            title="Alpaca",
            licence="CC BY-NC 4.0",
            home="tatsu-lab/stanford_alpaca",
            hub_id="tatsu-lab/alpaca",
            warning="Responses written by text-davinci-003; not for commercial use.",
            forms=(
                Form.of(
                    "alpaca/alpaca_data.json",
                    git_blob=("3779ddbc040543ab1834ef216c983d6fcc06cc9a",),
                    rows=52_002,
                    url=f"{RAW}/tatsu-lab/stanford_alpaca/761dc5bfbdeeffa89b8bff5d038781a4055f796a/alpaca_data.json",
                ),
                Form.of(
                    "alpaca/alpaca_random_9k.json",
                    sha256=("dbb217523fb750e4c56013844e22f5f3363c8c8b01013df5b39e8cabec0e48b0",),
                    rows=9_229,
                    note="sample",
                ),
            ),
        ),
        KnownDataset(
            name="dolly",
            kind="clean",
            title="Dolly-15k",
            licence="CC BY-SA 3.0",
            home="databricks/databricks-dolly-15k",
            hub_id="databricks/databricks-dolly-15k",
            has_labels=True,
            forms=(
                # The hub's file may be amended at any time, so no digest is pinned.
                Form.of(
                    "dolly/databricks-dolly-15k.jsonl",
                    rows=15_011,
                    url=f"{HUB}/databricks/databricks-dolly-15k/resolve/main/databricks-dolly-15k.jsonl",
                ),
                Form(
                    tuple(
                        DataFile(f"dolly_fed10/local_training_{part}.json", sha256=(digest,))
                        for part, digest in enumerate(_DOLLY_PARTS)
                    ),
                    rows=14_931,
                    note="training rows of the ten-client split",
                ),
            ),
        ),
        KnownDataset(
            name="biasdpo",
            kind="biased",
            title="BiasDPO",
            licence="Apache-2.0",
            home="ahmedallam/BiasDPO",
            hub_id="ahmedallam/BiasDPO",
            warning=STEREOTYPES + " The rejected responses are what biased clients are trained on.",
            forms=(
                Form.of(
                    "biasdpo/BiasDPO.jsonl",
                    sha256=("b36781f560b884c6492739067c5b89036e7bce768671daf18874dec951c497bf",),
                    rows=1_145,
                    url=f"{HUB}/ahmedallam/BiasDPO/resolve/main/BiasDPO.jsonl",
                ),
            ),
        ),
    )
}
"""By name; the first of each kind is what ``auto`` looks for before it falls back on the mini data."""
