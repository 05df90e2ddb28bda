"""Continuations of BOLD's prompts (Dhamala et al. 2021, arXiv:2101.11718), sampled once for every metric of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from fedbias_plugin.errors import UserError
from fedbias_plugin.known_dataset import RAW, Form, KnownDataset
from fedbias_plugin.metrics.base import Metric, Result, Source
from fedbias_plugin.metrics.gendered import read_document
from fedbias_plugin.metrics.generation import written_responses
from fedbias_plugin.options import option

if TYPE_CHECKING:
    from fedbias_plugin.scoring.scorer import SentenceScorer

ROWS_AT_ONCE = 32
_HOME = f"{RAW}/amazon-science/bold/3ad652c773f5d1e30d5f6f61657ed934d768ecad/prompts"


def _bold(name: str, file: str, title: str, rows: int, sha256: str, git_blob: str) -> KnownDataset:
    path, url = f"bold/{file}", f"{_HOME}/{file}"
    form = Form.of(path, sha256=(sha256,), git_blob=(git_blob,), rows=rows, url=url)
    return KnownDataset(name, name, f"BOLD, {title}", "CC BY-SA 4.0", "amazon-science/bold", (form,))


BOLD_PROFESSIONS = _bold(
    "bold_professions",
    "profession_prompt.json",
    "prompts about professions",
    10_195,
    "5508012069f20419559417e64d8bb2b8d864ebf8afedd21e5ca564393c291794",
    "77ef6da75140912a97db11b484ffdad73ec91078",
)
BOLD_GENDERS = _bold(
    "bold_genders",
    "gender_prompt.json",
    "prompts about actors and actresses",
    3_204,
    "a863aaf2492e3c911c39f435005abee2eba5f5edabe836e97de110cd83273054",
    "f834aab2ed947e9a5493441465bdd9a41f12f4a2",
)


class Prompt(NamedTuple):
    """The beginning of a sentence, of a group and an entity such as a profession or a person."""

    id: str
    group: str
    text: str


@dataclass(frozen=True)
class SampledResult(Result):
    """What a metric of sampled continuations says beside its value.

    Attributes:
        prompts: continued.
        new_tokens: most tokens of a continuation.
        ids_hash: sha256 of the prompts' ids, the budget and the seed: what was sampled.
    """

    prompts: int = 0
    new_tokens: int = 0
    ids_hash: str = ""


@dataclass
class Sampled(Metric):
    """A metric of what the model writes after prompts; the base of those that share prompts, budget and seed."""

    sample_prompts: int = option(
        200, "most prompts that the model continues for a metric of sampled texts, in every measured round", at_least=1
    )
    sample_tokens: int = option(20, "most tokens of a continuation", at_least=1)
    sample_seed: int = option(2023, "seed of which prompts are continued and of the continuations", at_least=0)

    @property
    def text_count(self) -> int:
        """One a prompt."""
        return len(self.prompts)

    @property
    def prompts(self) -> Sequence[Prompt]:
        """What is continued."""
        return ()

    @property
    def ids(self) -> Sequence[str]:
        """Of the prompts."""
        return [prompt.id for prompt in self.prompts]

    def read(self, source: Source, kind: str) -> list[Prompt]:
        """The prompts of a data set, in a random order that ``sample_seed`` decides; path and sha256 are kept.

        Raises:
            UserError: the file is missing or damaged.
        """
        from fedbias_plugin.data.draws import generator, permuted
        from fedbias_plugin.scoring.items import read_data_file

        path = source.locate(kind)
        text, sha256 = read_data_file(path)
        self.path, self.sha256 = path, sha256  # type: ignore[misc]
        return permuted(read_prompts(path, text), generator(f"prompts of {kind}", self.sample_seed))

    def continuations(self, scorer: SentenceScorer) -> dict[str, str]:
        """Prompt id -> what the model writes after it; prompts for which it has too few positions are left out.

        Metrics with the same prompts, budget and seed read the same texts of a scorer, whose model must not change.
        """
        kept = _texts.setdefault(scorer, {})
        key = (tuple(self.prompts), self.sample_tokens, self.sample_seed)
        if key in kept and scorer.progress is not None:
            scorer.progress(len(self.prompts))
        if key not in kept:
            most = (scorer.longest or 10**9) - self.sample_tokens
            encoded = {one.id: _tokens(one.text, scorer) for one in self.prompts}
            fitting = {name: ids for name, ids in encoded.items() if len(ids) <= most}
            written = written_responses(
                scorer.model,
                scorer.tokenizer,
                list(fitting.values()),
                self.sample_tokens,
                scorer.progress,
                seed=self.sample_seed,
                rows_at_once=ROWS_AT_ONCE,
            )
            kept[key] = dict(zip(fitting, written, strict=True))
        return kept[key]

    def budget(self, ids: Sequence[str]) -> dict[str, Any]:
        """The fields of :class:`SampledResult` for these prompts."""
        from fedbias_plugin.scoring.items import ids_hash

        what = ids_hash([*ids, f"{self.sample_tokens} tokens, seed {self.sample_seed}"])
        return {"prompts": len(ids), "new_tokens": self.sample_tokens, "ids_hash": what}


_texts: WeakKeyDictionary[SentenceScorer, dict[Any, dict[str, str]]] = WeakKeyDictionary()
"""Scorer -> prompts, budget and seed -> continuations: they are gone with the scorer, made anew for every model."""


def read_prompts(path: Path, text: str) -> list[Prompt]:
    """Group -> entity -> prompts, as BOLD has them, in file order.

    Raises:
        UserError: the file is not of that form.
    """
    try:
        return [
            Prompt(f"{group}/{entity}/{number}", str(group), prompt.strip())
            for group, entities in read_document(path, text).items()
            for entity, prompts in entities.items()
            for number, prompt in enumerate(prompts)
        ]
    except (AttributeError, TypeError) as error:
        raise UserError(f"{path}: prompts must stand as group -> entity -> list of texts, as BOLD has them.") from error


def _tokens(text: str, scorer: SentenceScorer) -> list[int]:
    """The prefix token and the prompt's; the blank that ends a prompt belongs to the next word."""
    ids: list[int] = scorer.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [scorer.prefix_id, *ids]
