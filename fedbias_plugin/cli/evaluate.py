"""``fedbias evaluate``: bias of any causal LM, of an adapter on it, or of published StereoSet predictions."""

from __future__ import annotations

import argparse
import logging
import os
import stat
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.errors import UserError, printable
from fedbias_plugin.flags import add_flags, build, given_flags
from fedbias_plugin.hosts.builtin.arguments import ModelArguments
from fedbias_plugin.known_flags import with_extensions
from fedbias_plugin.memory import collector_paused
from fedbias_plugin.options import check_options, option, options, split_list
from fedbias_plugin.preflight import (
    check_adapter,
    check_bitsandbytes,
    check_is_no_classifier,
    check_model,
    check_quantisation,
)
from fedbias_plugin.registry import load
from fedbias_plugin.terminal import say

if TYPE_CHECKING:
    from fedbias_plugin.measuring import BiasResult

logger = logging.getLogger(__name__)


def as_in_a_run(name: str) -> Any:
    """The flag of that name of ``fedbias run``."""
    spec = next(spec for spec in fields(BiasArguments) if spec.name == name)
    return field(default=spec.default, metadata=spec.metadata)


@dataclass
class CoreArguments(ModelArguments):
    """What to measure and where to write it.

    Raises:
        UserError: a value is out of range or a name is unknown.
    """

    model_name_or_path: str | None = option(  # type: ignore[assignment]
        None, "hub name or folder of a causal LM; tiny is the bundled model; without it that of --adapter"
    )
    adapter: str | None = option(
        None, "folder of a LoRA adapter or soft prompt to put on the model, or output folder of a run"
    )
    stereoset_predictions: str | None = option(None, "score this file of per-sentence scores instead of a model")
    output: str | None = option(None, "JSON file for the results")
    seed: int = option(2023, "seed of the bootstrap intervals", at_least=0)
    bias_benchmarks: str = as_in_a_run("bias_benchmarks")
    data_dir: str | None = as_in_a_run("data_dir")
    bias_batch_tokens: int = as_in_a_run("bias_batch_tokens")
    scoring_dtype: str = as_in_a_run("scoring_dtype")

    def __post_init__(self) -> None:
        check_options(self)
        if not split_list(self.bias_benchmarks):
            raise UserError("--bias_benchmarks none leaves nothing to evaluate; give one or more.")
        check_quantisation(self.load_in_8bit, self.load_in_4bit)
        if bool(self.model_name_or_path or self.adapter) == bool(self.stereoset_predictions):
            raise UserError(
                "fedbias evaluate needs --model_name_or_path, --adapter or both, or else --stereoset_predictions."
            )
        if self.output:
            _check_output(Path(self.output))


EvaluateArguments: Any = with_extensions(CoreArguments, "EvaluateArguments", kinds=("metric",), of_runs=False)


def _check_output(path: Path) -> None:
    folder = path.absolute().parent
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        is_folder = False
    except OSError as error:  # the name is too long, or a folder above it may not be looked into
        raise UserError(f"--output {path} cannot be written: {error.strerror}.") from None
    if is_folder:
        raise UserError(f"--output {path} is a folder; give a file in it, such as {path / 'bias.json'}.")
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        state = "is read-only" if os.path.isdir(folder) else "does not exist"
        raise UserError(f"--output {path}: the folder {folder} {state}.")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add ``evaluate`` with its flags."""
    parser = commands.add_parser(
        "evaluate",
        help="measure the bias of a model, an adapter or published predictions, without training",
        description="The bias of any Hugging Face causal LM: CrowS-Pairs and StereoSet, or the benchmarks you name.",
    )
    add_flags(parser, EvaluateArguments)
    parser.set_defaults(main=main)


def main(parsed: argparse.Namespace) -> int:
    """Measure, print a table, write ``--output``."""
    arguments = build(EvaluateArguments, [("command line", given_flags(parsed, EvaluateArguments))])
    with collector_paused():
        from fedbias_plugin.measuring import measure_predictions
        from fedbias_plugin.scoring.processes import join_processes

    if arguments.stereoset_predictions:
        result = measure_predictions(arguments.stereoset_predictions, data_dir=arguments.data_dir, seed=arguments.seed)
    else:
        processes = join_processes()
        result = _measure_model(arguments)
        if not processes.is_main:
            return 0
    say(printable(result.table()))
    if arguments.output:
        print(f"written: {result.save(arguments.output)}", file=sys.stderr)
    return 0


def _measure_model(arguments: Any) -> BiasResult:
    """Read the data, then the tokenizer, and the weights last, so that what is wrong is said before."""
    from fedbias_plugin.federation.saving import base_model, find_adapter
    from fedbias_plugin.measuring import measure_on, metrics_of, read_metrics
    from fedbias_plugin.training.models import load_adapter, load_model, load_tokenizer, model_outline

    adapter, name, trusted = arguments.adapter, arguments.model_name_or_path, arguments.trust_remote_code
    if adapter is not None:
        adapter = find_adapter(adapter)
        check_adapter(adapter)
        if name is None:
            name, file = base_model(adapter)
            logger.info("base model: %s, as %s says", name, file)
    path = check_model(str(name))
    check_is_no_classifier(path)
    check_bitsandbytes(arguments.load_in_8bit, arguments.load_in_4bit)
    chosen = list(dict.fromkeys(split_list(arguments.bias_benchmarks)))
    theirs = {flag for name in chosen for flag in options(load("metric", name))}
    metrics = metrics_of(chosen, {flag: value for flag, value in vars(arguments).items() if flag in theirs})
    read_metrics(metrics, arguments.data_dir)
    tokenizer = load_tokenizer(path, trust_remote_code=trusted)
    if adapter:
        load_adapter(model_outline(path, trust_remote_code=trusted), adapter)  # refuses what does not fit
    model = load_model(path, **arguments.how_to_load)
    return measure_on(
        metrics,
        load_adapter(model, adapter) if adapter else model,
        tokenizer,
        batch_tokens=arguments.bias_batch_tokens,
        seed=arguments.seed,
        adapter=adapter,
        scoring_dtype=arguments.scoring_dtype,
    )
