"""``fedbias evaluate``: bias of any causal LM, of an adapter on it, or of published StereoSet predictions."""

from __future__ import annotations

import argparse
import logging
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedbias_plugin.arguments import BENCHMARKS
from fedbias_plugin.errors import UserError, printable
from fedbias_plugin.flags import add_flags, build, field_types
from fedbias_plugin.options import check_options, option, split_list
from fedbias_plugin.preflight import check_adapter, check_bitsandbytes, check_model, check_quantisation
from fedbias_plugin.terminal import say

if TYPE_CHECKING:
    from fedbias_plugin.measuring import BiasResult

logger = logging.getLogger(__name__)


@dataclass
class EvaluateArguments:
    """What to measure and where to write it.

    Raises:
        UserError: a value is out of range or a name is unknown.
    """

    model_name_or_path: str | None = option(
        None, "hub name or folder of a causal LM; tiny is the bundled model; without it that of --adapter"
    )
    adapter: str | None = option(None, "folder of a LoRA adapter to put on the model, or output folder of a run")
    stereoset_predictions: str | None = option(None, "score this file of per-sentence scores instead of a model")
    bias_benchmarks: str = option(
        "crows_pairs,stereoset", "bias benchmarks, comma separated", choices=BENCHMARKS, many=True
    )
    output: str | None = option(None, "JSON file for the results")
    data_dir: str | None = option(None, "folder with the data sets; 'mini' uses the bundled mini data")
    crows_reduction: str = option("sum", "sentence score of CrowS-Pairs", choices=("sum", "mean", "shared", "matched"))
    stereoset_reduction: str = option("mean", "sentence score of StereoSet", choices=("mean", "sum"))
    bias_batch_tokens: int = option(4096, "tokens in one scoring batch, padding included", at_least=1)
    dtype: str = option(
        "float32", "dtype of the weights; auto is the checkpoint's", choices=("float32", "bfloat16", "auto")
    )
    load_in_8bit: bool = option(False, "load the model in 8 bits (bitsandbytes)")
    load_in_4bit: bool = option(False, "load the model in 4 bits (bitsandbytes, nf4)")
    trust_remote_code: bool = option(False, "run code that comes with the model")
    seed: int = option(2023, "seed of the bootstrap intervals", at_least=0)

    def __post_init__(self) -> None:
        check_options(self)
        if not split_list(self.bias_benchmarks):
            raise UserError("--bias_benchmarks none leaves nothing to evaluate; give crows_pairs, stereoset or both.")
        check_quantisation(self.load_in_8bit, self.load_in_4bit)
        if bool(self.model_name_or_path or self.adapter) == bool(self.stereoset_predictions):
            raise UserError(
                "fedbias evaluate needs --model_name_or_path, --adapter or both, or else --stereoset_predictions."
            )
        if self.output:
            _check_output(Path(self.output))


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
        description="CrowS-Pairs and StereoSet of any Hugging Face causal LM.",
    )
    add_flags(parser, EvaluateArguments)
    parser.set_defaults(main=main)


def main(parsed: argparse.Namespace) -> int:
    """Measure, print a table, write ``--output``."""
    given = {name: getattr(parsed, name) for name in field_types(EvaluateArguments) if hasattr(parsed, name)}
    arguments = build(EvaluateArguments, [("command line", given)])
    from fedbias_plugin.evaluation.processes import join_processes
    from fedbias_plugin.measuring import measure_predictions

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


def _find_in_run(arguments: EvaluateArguments) -> None:
    """Replace a run's output folder by its adapter, and a base model that nobody has named by the adapter's."""
    from fedbias_plugin.hosts.saved import base_model, find_adapter

    if arguments.adapter is None:
        return
    arguments.adapter = find_adapter(arguments.adapter)
    check_adapter(arguments.adapter)
    if arguments.model_name_or_path is None:
        arguments.model_name_or_path, file = base_model(arguments.adapter)
        logger.info("base model: %s, as %s says", arguments.model_name_or_path, file)


def _measure_model(arguments: EvaluateArguments) -> BiasResult:
    """Read the data, then the tokenizer, and the weights last, so that what is wrong is said before."""
    from fedbias_plugin.inputs import announce_mini_data, load_benchmark
    from fedbias_plugin.measuring import measure_on
    from fedbias_plugin.training.models import load_adapter, load_model, load_tokenizer, model_outline

    _find_in_run(arguments)
    path, trusted = check_model(str(arguments.model_name_or_path)), arguments.trust_remote_code
    check_bitsandbytes(arguments.load_in_8bit, arguments.load_in_4bit)
    names = list(dict.fromkeys(split_list(arguments.bias_benchmarks)))
    benchmarks = {name: load_benchmark(name, arguments.data_dir) for name in names}
    announce_mini_data(benchmarks, {})
    tokenizer = load_tokenizer(path, trust_remote_code=trusted)
    if arguments.adapter:
        load_adapter(model_outline(path, trust_remote_code=trusted), arguments.adapter)  # refuses what does not fit
    model = load_model(
        path,
        dtype=arguments.dtype,
        load_in_8bit=arguments.load_in_8bit,
        load_in_4bit=arguments.load_in_4bit,
        trust_remote_code=trusted,
    )
    return measure_on(
        benchmarks,
        load_adapter(model, arguments.adapter) if arguments.adapter else model,
        tokenizer,
        reductions={"crows_pairs": arguments.crows_reduction, "stereoset": arguments.stereoset_reduction},
        batch_tokens=arguments.bias_batch_tokens,
        seed=arguments.seed,
        adapter=arguments.adapter,
    )
