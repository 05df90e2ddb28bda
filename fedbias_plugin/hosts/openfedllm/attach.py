"""What ``config.py`` of a patched checkout calls: the host's flags and the plugin's in one parser, checked together."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbias_plugin.algorithms import ALGORITHMS, check_fed_alg, is_known
from fedbias_plugin.arguments import BiasArguments, check_choice, check_range, option
from fedbias_plugin.assets import TINY, TINY_MODEL
from fedbias_plugin.errors import UserError, did_you_mean
from fedbias_plugin.logs import print_error
from fedbias_plugin.poisoning.scenarios import SCENARIOS, biased_shares

logger = logging.getLogger(__name__)

HOOKS = "fedbias_plugin.hosts.openfedllm.hooks"


@dataclass
class AttachedArguments(BiasArguments):
    """The plugin's flags in a patched OpenFedLLM: no scenario unless asked for, and preference sets for DPO."""

    scenario: str = option(
        "none", f"who holds biased rows: {', '.join(SCENARIOS)}; none leaves the host's own data and split alone"
    )
    preference_dataset: str = option(
        "auto",
        "main_dpo.py with a scenario: the preference rows (prompt, chosen, rejected), which poisoned clients hold with "
        "chosen and rejected exchanged: a known name, a hub name or a file; auto takes BiasDPO if it is on this "
        "machine, else the bundled mini data; host takes what --dataset_name gives",
    )

    checkpoint_every: int = option(
        1, "write a checkpoint every so many rounds, from which --resume_from goes on; 0 writes none"
    )
    resume_from: str | None = option(
        None,
        "go on with the run in this folder (the one with metrics.jsonl) after its last finished round; give the flags "
        "that it began with",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("checkpoint_every", self.checkpoint_every, 0)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be poisoned, measured, weighed, refused or scheduled; the run is the host's."""
        asked = (
            self.aggregation != "host",
            self.scenario != "none",
            self.attack != "none",
            self.on_bad_update != "stop",
            self.deterministic,
            self.benchmark_names,
        )
        given = (self.local_epochs, self.schedule_seed, self.max_update_norm)
        return not any(asked) and all(value is None for value in given)


def extend_arguments(host_arguments: type, host_parser: type) -> tuple[type, type]:
    """``FedArguments`` with the plugin's fields, and a parser that checks all flags together as soon as it has them.

    Args:
        host_arguments: the host's ``FedArguments``.
        host_parser: ``transformers.HfArgumentParser``.

    Raises:
        SystemExit: the host has a flag of the same name (said on standard error).
    """
    ours = set(AttachedArguments.__dataclass_fields__)
    taken = sorted(ours & set(getattr(host_arguments, "__dataclass_fields__", {})))
    if taken:
        _leave(
            UserError(f"This host has flags of the same name: --{', --'.join(taken)}; the plugin cannot add its own.")
        )

    @dataclass
    class FedArguments(AttachedArguments, host_arguments):
        """The host's federated arguments and the plugin's."""

        def __post_init__(self) -> None:
            AttachedArguments.__post_init__(self)
            checks = getattr(host_arguments, "__post_init__", None)
            if checks is not None:
                checks(self)

    FedArguments.__qualname__ = host_arguments.__qualname__  # what the host prints

    class Parser(host_parser):
        """Leaves with one line and exit code 2 where a flag of the plugin is wrong."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            try:
                super().__init__(*args, **kwargs)
            except argparse.ArgumentError as error:
                _leave(UserError(f"This host has a flag of the same name as the plugin: {error}."))

        def parse_args_into_dataclasses(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
            try:
                refuse_unknown_flags(self)
                parsed = super().parse_args_into_dataclasses(*args, **kwargs)
                fed_args = next(part for part in parsed if isinstance(part, AttachedArguments))
                script_args = next(part for part in parsed if hasattr(part, "output_dir"))
                check_arguments(script_args, fed_args)
                make_output_dir(script_args)
            except UserError as error:
                _leave(error)
            return parsed

    return FedArguments, Parser


def refuse_unknown_flags(parser: argparse.ArgumentParser) -> None:
    """Name a flag that neither the host nor the plugin has, which the host would answer with a traceback.

    Raises:
        UserError: with the nearest flag there is.
    """
    if any(word.split("=")[0] == "--resume" for word in sys.argv[1:]):
        raise UserError("--resume belongs to fedbias run; a patched OpenFedLLM has --resume_from FOLDER.")
    _, unknown = parser.parse_known_args()
    if not unknown:
        return
    known = [
        option[2:] for option in parser._option_string_actions if option.startswith("--") and "-" not in option[2:]
    ]
    flag = unknown[0]
    if not flag.startswith("--"):
        raise UserError(f"{flag!r} belongs to no flag; several values are written with commas, without blanks.")
    name = flag[2:].split("=")[0]
    near = did_you_mean(name.replace("-", "_"), known)
    raise UserError(f"--{name}: neither OpenFedLLM nor the plugin has this flag.{near or ' See --help for all.'}")


def check_arguments(script_args: Any, fed_args: Any) -> None:
    """Refuse what would fail, or do nothing, after the model has been loaded.

    Raises:
        UserError: naming the flags and what to give instead.
    """
    if HOOKS not in sys.modules:
        _check_unhooked(fed_args)
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not fed_args.is_idle:
        raise UserError("The plugin works in one process; start the script with python instead of a launcher.")
    if script_args.model_name_or_path == TINY:
        script_args.model_name_or_path = str(TINY_MODEL)
    _check_federation(script_args, fed_args)
    check_range("seed", script_args.seed, 0)
    if script_args.max_steps < 1 and fed_args.local_epochs is None:
        raise UserError(
            f"--max_steps {script_args.max_steps} is no number of steps in OpenFedLLM; give --local_epochs N to train "
            "over all rows of a client."
        )
    if (script_args.load_in_8bit or script_args.load_in_4bit) and not script_args.use_peft:
        raise UserError("A quantised model cannot be trained whole; add --use_peft, or drop --load_in_8bit/4bit.")
    if not script_args.use_peft:
        logger.warning("--use_peft is not given: every weight of the model is trained.")
    written = written_flags([*vars(script_args), *vars(fed_args)])
    for name, needed in fed_args.idle_flags(written):
        logger.warning("--%s has no effect without %s.", name, needed)
    if "num_train_epochs" in written:
        logger.warning("--num_train_epochs has no effect in OpenFedLLM (--max_steps wins); give --local_epochs.")


def written_flags(known: Sequence[str]) -> set[str]:
    """Those of the ``known`` flags that the command line holds, shortened or with hyphens too, as argparse allows."""
    words = {word[2:].split("=")[0].replace("-", "_") for word in sys.argv[1:] if word.startswith("--")}
    return {name for name in known for word in words if name == word or (word not in known and name.startswith(word))}


def make_output_dir(script_args: Any) -> None:
    """Create ``--output_dir``; the host makes only the run's own folder inside it and fails when it is absent.

    Raises:
        UserError: it cannot be made.
    """
    try:
        os.makedirs(script_args.output_dir, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {script_args.output_dir} cannot be made: {error.strerror}.") from None


def _check_federation(script_args: Any, fed_args: Any) -> None:
    for flag in ("num_clients", "sample_clients", "num_rounds"):
        check_range(flag, getattr(fed_args, flag), 1)
    if fed_args.sample_clients > fed_args.num_clients:
        logger.warning("--sample_clients %d: there are %d clients.", fed_args.sample_clients, fed_args.num_clients)
    if not is_known(fed_args.fed_alg) and not _host_mentions(fed_args.fed_alg):
        check_fed_alg(fed_args.fed_alg)
    if fed_args.aggregation != "host" and not is_known(fed_args.fed_alg):
        raise UserError(
            f"--aggregation {fed_args.aggregation} works with --fed_alg {', '.join(ALGORITHMS)} and localN, not with "
            f"{fed_args.fed_alg!r}; give one of them, or --aggregation host."
        )
    if fed_args.fed_alg.startswith("local"):
        last = fed_args.fed_alg[-1]
        if not last.isdigit() or int(last) >= fed_args.num_clients:
            raise UserError(
                f"--fed_alg {fed_args.fed_alg}: OpenFedLLM reads the last digit as the client, and the clients are 0 "
                f"to {fed_args.num_clients - 1}."
            )
    check_choice("scenario", fed_args.scenario, ("none", *SCENARIOS))
    if fed_args.scenario != "none":
        biased_shares(fed_args.scenario, fed_args.num_clients, script_args.seed, fed_args.custom_shares)
        if getattr(script_args, "multi_turn_task", False):
            raise UserError("--scenario deals single-turn rows; leave out --multi_turn_task, or give --scenario none.")


def _host_mentions(fed_alg: str) -> bool:
    """Whether the host's code knows the algorithm, or cannot be read: a fork has more (``trimean``, ``cc=0.5``)."""
    package = getattr(sys.modules.get("federated_learning"), "__file__", None)
    if package is None:
        return True
    sources = Path(package).parent.glob("*.py")
    words = {word for path in sources for word in re.findall(r"""["'](\w\w+)["']""", path.read_text(errors="replace"))}
    return any(fed_alg.startswith(word) for word in words)


def _check_unhooked(fed_args: Any) -> None:
    """A script that holds no hooks would take every flag of the plugin and obey none."""
    spec = AttachedArguments.__dataclass_fields__
    given = [name for name, field in spec.items() if getattr(fed_args, name) != field.default]
    if given:
        script = os.path.basename(sys.argv[0])
        raise UserError(
            f"{script} does not hold the plugin's lines, so --{', --'.join(given)} would do nothing; run main_sft.py "
            "or main_dpo.py, after `fedbias patch`."
        )


def _leave(error: UserError) -> None:
    print_error(error)
    raise SystemExit(2)
