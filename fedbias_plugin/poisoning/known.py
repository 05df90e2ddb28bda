"""The data sets the plugin knows, as data: names, files, checksums, homes, licences."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("clean", "biased", "crows_pairs", "stereoset")
_RAW = "https://raw.githubusercontent.com"
_HUB = "https://huggingface.co/datasets"


@dataclass(frozen=True)
class DataFile:
    """One file below a data folder.

    ``sha256`` and ``git_blob`` list the digests of the known releases (``git_blob`` is the id git gives the content,
    known where the home is a git repository); a file with another digest is used with a warning.
    """

    path: str
    sha256: tuple[str, ...] = ()
    git_blob: tuple[str, ...] = ()


@dataclass(frozen=True)
class Form:
    """One shape in which a data set lies on disk: all ``files`` together. ``url`` is the home of a single file."""

    files: tuple[DataFile, ...]
    rows: int
    url: str | None = None
    note: str = ""


@dataclass(frozen=True)
class KnownDataset:
    """One data set: what it is, in which forms it may be found (the first is preferred), and what its owners say."""

    name: str
    kind: str
    title: str
    licence: str
    home: str
    forms: tuple[Form, ...]
    hub_id: str | None = None
    warning: str = ""

    @property
    def rows(self) -> int:
        """Rows of the full release."""
        return self.forms[0].rows

    @property
    def fetched_form(self) -> Form | None:
        """The form ``fedbias data fetch`` downloads; None for bundled data."""
        return next((form for form in self.forms if form.url), None)


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

_STEREOTYPES = "Holds offensive stereotypes; research data."

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
                Form(
                    (DataFile("alpaca/alpaca_gpt4_data.json", git_blob=("25508714b7879a1e5a6764ba7f979a980f549f1a",)),),
                    rows=52_002,
                    url=f"{_RAW}/Instruction-Tuning-with-GPT-4/GPT-4-LLM/"
                    "80cda626ea305004be42426671c66efebbf22144/data/alpaca_gpt4_data.json",
                ),
                Form(
                    (
                        DataFile(
                            "alpaca/alpaca_gpt4_en_demo_1k.json",
                            sha256=("bcc37c64db1a739a0789a1b81f251146fcf4459f903474bc9e3c21bbb5628318",),
                        ),
                    ),
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
                Form(
                    (DataFile("alpaca/alpaca_data.json", git_blob=("3779ddbc040543ab1834ef216c983d6fcc06cc9a",)),),
                    rows=52_002,
                    url=f"{_RAW}/tatsu-lab/stanford_alpaca/761dc5bfbdeeffa89b8bff5d038781a4055f796a/alpaca_data.json",
                ),
                Form(
                    (
                        DataFile(
                            "alpaca/alpaca_random_9k.json",
                            sha256=("dbb217523fb750e4c56013844e22f5f3363c8c8b01013df5b39e8cabec0e48b0",),
                        ),
                    ),
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
            forms=(
                # The hub's file may be amended at any time, so no digest is pinned.
                Form(
                    (DataFile("dolly/databricks-dolly-15k.jsonl"),),
                    rows=15_011,
                    url=f"{_HUB}/databricks/databricks-dolly-15k/resolve/main/databricks-dolly-15k.jsonl",
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
            warning=_STEREOTYPES + " The rejected responses are what biased clients are trained on.",
            forms=(
                Form(
                    (
                        DataFile(
                            "biasdpo/BiasDPO.jsonl",
                            sha256=("b36781f560b884c6492739067c5b89036e7bce768671daf18874dec951c497bf",),
                        ),
                    ),
                    rows=1_145,
                    url=f"{_HUB}/ahmedallam/BiasDPO/resolve/main/BiasDPO.jsonl",
                ),
            ),
        ),
        KnownDataset(
            name="crows_pairs",
            kind="crows_pairs",
            title="CrowS-Pairs",
            licence="CC BY-SA 4.0",
            home="nyu-mll/crows-pairs",
            warning=_STEREOTYPES
            + " For evaluation only. Its owners warn, after Blodgett et al. (2021), that its pairs "
            "are noisy and unreliable enough that it may not be a good indicator of social bias in language models.",
            forms=(
                Form(
                    (
                        DataFile(
                            "crows_pairs/crows_pairs_anonymized.csv",
                            sha256=("dfb36986ce0502abbaf7055b9176da3d08d48e07df1251991b5dfbcbceab9d0c",),
                            git_blob=("28fa7d906a83d441001fb2a0eeae28c6d64a99e1",),
                        ),
                    ),
                    rows=1_508,
                    url=f"{_RAW}/nyu-mll/crows-pairs/8aaac11c485473159ec9328a65253a5be9a479dc/"
                    "data/crows_pairs_anonymized.csv",
                ),
            ),
        ),
        KnownDataset(
            name="stereoset",
            kind="stereoset",
            title="StereoSet (development set)",
            licence="CC BY-SA 4.0",
            home="moinnadeem/StereoSet",
            warning=_STEREOTYPES + " For evaluation only.",
            forms=(
                Form(
                    (
                        DataFile(
                            "stereoset/dev.json",
                            # The release without the per-annotator labels, which no score uses, ...
                            sha256=("2695133d38f0b5ea4c21dbbfcfac46c3044960261b803b91c647d3da844807a7",),
                            # ... and the public file with them.
                            git_blob=("637b1e3d284a3c629b74a4659c583b8eca9bd13e",),
                        ),
                    ),
                    rows=4_229,
                    url=f"{_RAW}/moinnadeem/StereoSet/ead7d086a64a192a1eca88e0dd2fd163de375218/data/dev.json",
                ),
            ),
        ),
    )
}

MINI_FILES = {
    "clean": "clean.jsonl",
    "biased": "biased.jsonl",
    "crows_pairs": "crows_pairs.csv",
    "stereoset": "stereoset.json",
}
"""The bundled mini data set of each kind, known as ``mini-<kind>``."""

AUTO = {"clean": "alpaca-gpt4", "biased": "biasdpo", "crows_pairs": "crows_pairs", "stereoset": "stereoset"}
"""What ``auto`` looks for, by kind, before it falls back on the mini data."""
