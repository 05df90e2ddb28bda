"""What a run is: what the session is told of it, and what its files and trackers say before training."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.data.partition import Partition, manifest
from fedbias_plugin.data.rows import usual_response
from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.client_tests import ClientTests
from fedbias_plugin.metrics.heldout_accuracy import LabelledRows
from fedbias_plugin.metrics.preference_accuracy import ScoredRows
from fedbias_plugin.metrics.results import package_versions
from fedbias_plugin.options import options, split_list
from fedbias_plugin.registry import CHOSEN_BY, load, names
from fedbias_plugin.tasks.templates import TEMPLATES
from fedbias_plugin.tracking.records import RunInfo
from fedbias_plugin.tracking.wandb_names import EXPERIMENTS_VARIABLE, run_names

if TYPE_CHECKING:
    from fedbias_plugin.data.rows import Row
    from fedbias_plugin.extension import Extension
    from fedbias_plugin.federation.inputs import Inputs
    from fedbias_plugin.metrics.scoring_choice import ScoringChoice
    from fedbias_plugin.scoring.scorer import SentenceScorer
    from fedbias_plugin.tasks.base import RowScores, Task


@dataclass(frozen=True)
class HostRun:
    """What the session must know of the host's run.

    Attributes:
        output_dir: the run's folder; it need not exist yet.
        fed_alg: server algorithm (``fedavg``, ``scaffold``, ...).
        num_clients: clients in the federation.
        sample_clients: clients that take part in a round.
        num_rounds: rounds to train.
        seed: of roles, rows, probe items and bootstrap.
        template: name of the prompt template.
        seq_length: tokens of a training row.
        config: every resolved argument, JSON-ready, to be stored with the run.
        prompt: instruction -> the text up to where the response begins; None: as the plugin's template of that name.
        task: what rows become, where it is one of the plugin's; it says how rows are scored.
        trains_here: whether all clients train in the session's live model, so that its frozen weights may change.
    """

    output_dir: Path
    fed_alg: str
    num_clients: int
    sample_clients: int
    num_rounds: int
    seed: int
    template: str = "alpaca"
    seq_length: int = 512
    config: Mapping[str, Any] = field(default_factory=dict)
    prompt: Callable[[str], str] | None = None
    task: Task | None = None
    trains_here: bool = False

    @property
    def known_prompt(self) -> Callable[[str], str] | None:
        """``prompt``, or that of the template; None where nobody knows it."""
        return self.prompt or (TEMPLATES[self.template].prompt if self.template in TEMPLATES else None)


def run_info(arguments: BiasArguments, run: HostRun, shares: Mapping[int, float]) -> RunInfo:
    """What trackers are told of a run; ``shares``: client id -> share of biased rows."""
    names = run_names(
        {**dataclasses.asdict(arguments), **run.config},
        fed_alg=run.fed_alg,
        num_clients=run.num_clients,
        sample_clients=run.sample_clients,
        seed=run.seed,
        experiments=os.environ.get(EXPERIMENTS_VARIABLE, ""),
    )
    # A project that nobody asked for gives way to the environment; a flag that was given does not.
    is_default = arguments.wandb_project == type(arguments).wandb_project
    return RunInfo(
        run_name=names.name,
        output_dir=run.output_dir,
        config=run.config,
        group=names.group,
        job_type=names.job_type,
        tags=names.tags,
        wandb_project=(is_default and os.environ.get("WANDB_PROJECT")) or arguments.wandb_project,
        wandb_mode=arguments.wandb_mode or os.environ.get("WANDB_MODE") or "online",
        num_clients=run.num_clients,
        num_rounds=run.num_rounds,
        poisoned_shares=shares,
    )


def heldout_pairs(run: HostRun, partition: Partition | None) -> list[tuple[str, str]]:
    """(prompt, response) of the held-out rows; none where there are no such rows or the host's prompt is unknown."""
    prompt = run.known_prompt
    if partition is None or prompt is None or (run.task is not None and not run.task.model_kind.is_causal_lm):
        return []
    return [(prompt(row.instruction), row.response) for row in partition.heldout]


def client_tests(run: HostRun, partition: Partition | None) -> ClientTests | None:
    """Every client's own test rows, and how they are scored; None where clients keep none.

    Raises:
        UserError: nobody knows the host's prompt.
    """
    if partition is None or not any(dataset.test for dataset in partition.clients):
        return None
    task, prompt = run.task, run.known_prompt
    if task is None and prompt is None:
        raise UserError(
            f"--client_test_fraction: the prompts of --template {run.template} are the host's own and not known here, "
            "so that no test row can be scored; give another --template, or 0."
        )

    def score(rows: Sequence[Row], scorer: SentenceScorer) -> RowScores:
        if task is not None:
            return task.score_rows(rows, scorer, run.seq_length)
        from fedbias_plugin.tasks.response_scores import response_scores

        assert prompt is not None, "refused above"
        pairs = [(prompt(row.instruction), row.response) for row in rows]
        return response_scores(pairs, scorer, run.seq_length, lambda index: f"row {rows[index].id}")

    return ClientTests(
        {dataset.client: dataset.test for dataset in partition.clients},
        {dataset.client: len(dataset.rows) for dataset in partition.clients},
        score,
        tells_right=task is not None and task.tells_right,
    )


def labelled_rows(run: HostRun, partition: Partition | None) -> LabelledRows | None:
    """The held-out rows of a task that tells right labels from wrong ones, None of another."""
    task = run.task
    if task is None or not task.tells_right or task.reads_preferences or partition is None or not partition.heldout:
        return None
    trained = [row for dataset in partition.clients for row in dataset.rows]
    tested = [row for dataset in partition.clients for row in dataset.test]
    return LabelledRows(
        partition.heldout,
        lambda rows, scorer: task.score_rows(rows, scorer, run.seq_length),
        usual_response(trained),
        len({row.response for row in (*trained, *tested, *partition.heldout)}),
    )


def preferred_rows(run: HostRun, partition: Partition | None) -> ScoredRows | None:
    """The held-out rows of a task that trains on preferences, None of another."""
    task = run.task
    if task is None or not (task.reads_preferences and task.tells_right) or partition is None or not partition.heldout:
        return None
    return ScoredRows(partition.heldout, lambda rows, scorer: task.score_rows(rows, scorer, run.seq_length))


def run_versions(settings: Mapping[str, Any]) -> dict[str, str]:
    """Versions of packages, and ``KIND NAME`` -> hash of the file of every extension that the settings ask for.

    The hash tells runs apart between which an extension was changed and its package's version was not. It knows
    nothing of what that file imports.
    """
    versions = package_versions()
    for kind, selector in CHOSEN_BY.items():
        asked = split_list(str(settings.get(selector) or "")) if selector else names(kind)
        for name in (name for name in asked if kind != "tracker" and name.partition(":")[0] in names(kind)):
            cls: type[Extension] = load(kind, name)
            code = cls.code() if selector or _switched_on(cls, settings) else None
            versions |= {f"{kind} {name}": code} if code else {}
    return versions


def _switched_on(cls: type[Extension], settings: Mapping[str, Any]) -> bool:
    """Whether its own flags ask for it; False where others do, such as ``--fed_alg`` for a term."""
    return "is_on" in vars(cls) and cls(**{flag: settings[flag] for flag in options(cls) if flag in settings}).is_on


def first_files(
    run: HostRun,
    model: Mapping[str, Any],
    tokenizer: Mapping[str, str],
    prefix_token: str,
    inputs: Inputs,
    scoring: ScoringChoice | None,
) -> dict[str, Any]:
    """Name -> content of the files that say, before training, what the run is.

    Args:
        run: what the host does.
        model: ``model_identity`` of the untouched model.
        tokenizer: its ``tokenizer_fingerprints``.
        prefix_token: what every scored sentence is conditioned on.
        inputs: rows, metrics and stages.
        scoring: what texts are scored in.
    """
    probe, partition = inputs.suite.probe_record(), inputs.partition
    data = {name: {key: part[key] for key in part if key != "probe_ids"} for name, part in probe.items()}
    files: dict[str, Any] = {}
    if partition is not None:
        files["manifest.json"] = manifest(partition)
        data |= files["manifest.json"]["sources"]
    if probe:
        files["probe.json"] = probe
    files["run.json"] = {
        "config": dict(run.config),
        "versions": run_versions(run.config),
        "model": {**model, "drawn_by_seed": run.task is not None and run.task.model_kind.draws_weights},
        "tokenizer": tokenizer,
        "prefix_token": prefix_token,
        "scoring": scoring.to_json() if scoring else None,
        "seed": run.seed,
        "poisoned_shares": {str(client): share for client, share in inputs.shares.items()},
        "attackers": sorted(inputs.pipeline.attackers),
        "data": data,
    }
    return files
