"""The plugin's flags in the host's own parser, and all flags checked together before anything is loaded."""

from __future__ import annotations

import logging
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import Any

from fedbias_plugin.assets import TINY
from fedbias_plugin.errors import UserError, did_you_mean
from fedbias_plugin.fed_algs import ALGORITHMS, check_fed_alg, is_known
from fedbias_plugin.hosts.openfedllm.arguments import AllArguments, AttachedArguments
from fedbias_plugin.hosts.openfedllm.inspection import PREFIX, Requirements
from fedbias_plugin.known_flags import all_options
from fedbias_plugin.logs import print_error
from fedbias_plugin.options import check_range, idle_flags, shown_help
from fedbias_plugin.preflight import (
    check_bitsandbytes,
    check_model,
    check_quantisation,
    check_training_numbers,
    model_path,
)
from fedbias_plugin.registry import load
from fedbias_plugin.training.base import check_host_trains

logger = logging.getLogger(__name__)

_FIELDS = fields(AttachedArguments)


def install(begin: Callable[[AllArguments], None]) -> None:
    """Have the host's ``HfArgumentParser`` read the plugin's flags too, wherever the host imports it from.

    The host gets its own dataclasses back, as if nothing had been added.

    Args:
        begin: called with every flag once they are read, before the host gets its own.
    """
    import transformers

    cls = transformers.HfArgumentParser
    make, read, read_dict, matches = (
        cls.__init__,
        cls.parse_args_into_dataclasses,
        cls.parse_dict,
        cls._get_option_tuples,
    )

    def init(self: Any, dataclass_types: Any = None, **kwargs: Any) -> None:
        types = [dataclass_types] if isinstance(dataclass_types, type) else list(dataclass_types or ())
        taken = {spec.name for kind in types for spec in fields(kind)}
        if "fed_alg" not in taken:  # another parser
            make(self, dataclass_types, **kwargs)
            return
        self.renamed_flags = {spec.name: PREFIX + spec.name for spec in _FIELDS if spec.name in taken}
        hints = typing.get_type_hints(AttachedArguments)
        unchecked = []
        for spec in _FIELDS:
            told = field(default=spec.default, metadata={"help": shown_help(spec)})
            unchecked.append((self.renamed_flags.get(spec.name, spec.name), hints[spec.name], told))
        make(self, (*types, make_dataclass("PluginArguments", unchecked)), **kwargs)

    def parse(self: Any, args: Any = None, *more: Any, **kwargs: Any) -> tuple[Any, ...]:
        if not hasattr(self, "renamed_flags"):
            return read(self, args, *more, **kwargs)
        self.error = _refuse
        words = sys.argv[1:] if args is None else list(args)
        with one_line(self.renamed_flags):
            if not (kwargs.get("return_remaining_strings") or (more and more[0])):
                _refuse_unknown_flags(self, words)
            return _begun(self, read(self, args, *more, **kwargs), words, begin)

    def parse_dict(self: Any, args: dict[str, Any], *more: Any, **kwargs: Any) -> tuple[Any, ...]:
        if not hasattr(self, "renamed_flags"):
            return read_dict(self, args, *more, **kwargs)
        with one_line(self.renamed_flags):
            return _begun(self, read_dict(self, args, *more, **kwargs), [f"--{name}" for name in args], begin)

    def one_match_a_flag(self: Any, word: str) -> list[Any]:
        """One for both spellings of a shortened flag, ``--sample_clients`` and ``--sample-clients``."""
        found: dict[int, Any] = {}
        for match in matches(self, word):
            found.setdefault(id(match[0]), match)
        return list(found.values())

    cls.__init__, cls.parse_args_into_dataclasses, cls.parse_dict = init, parse, parse_dict
    cls._get_option_tuples = one_match_a_flag


def _refuse(message: str) -> None:
    """argparse's way to say what is wrong, without its list of all flags."""
    text = re.sub(r"^argument (--\w+)(/--[\w-]+)?", r"\1", message)
    raise UserError(f"{text.rstrip('.')}. See --help.")


def _refuse_unknown_flags(parser: Any, words: Sequence[str]) -> None:
    """Name a flag that neither the host nor the plugin has, which the host would answer with a traceback."""
    if any(word.split("=")[0] == "--resume" for word in words):
        raise UserError("--resume belongs to fedbias run; a patched OpenFedLLM has --resume_from FOLDER.")
    _, unknown = parser.parse_known_args(list(words))
    if not unknown:
        return
    flag = unknown[0]
    if not flag.startswith("--"):
        raise UserError(f"{flag!r} belongs to no flag; several values are written with commas, without blanks.")
    known = [name for name in parser._option_string_actions if name.startswith("--") and "-" not in name[2:]]
    name = flag.split("=")[0]
    near = did_you_mean(f"--{name[2:].replace('-', '_')}", known)
    raise UserError(f"{name}: neither OpenFedLLM nor the plugin has this flag.{near or ' See --help for all.'}")


def _begun(
    parser: Any, parsed: Sequence[Any], words: Sequence[str], begin: Callable[[AllArguments], None]
) -> tuple[Any, ...]:
    """What of the ``parsed`` objects is the host's, after ``begin`` was called with every flag."""
    host, renamed = list(parsed), parser.renamed_flags
    plugin = host.pop(len(parser.dataclass_types) - 1)
    given = {spec.name: getattr(plugin, renamed.get(spec.name, spec.name)) for spec in _FIELDS}
    fed = next(part for part in host if hasattr(part, "fed_alg"))
    script = next((part for part in host if hasattr(part, "output_dir")), fed)
    missing = [name for name in Requirements.load().flags if not hasattr(fed, name) and not hasattr(script, name)]
    if missing:
        raise UserError(f"This host has no flag --{', --'.join(missing)}, which the plugin reads; fedbias unpatch it.")
    begin(AllArguments(script, fed, AttachedArguments(**given), renamed, words))
    return tuple(host)


@contextmanager
def one_line(renamed: dict[str, str] | None = None) -> Iterator[None]:
    """Wrong input in this block ends the script with one line and exit code 2.

    Args:
        renamed: flag of the plugin -> its name in this host, for the message.
    """
    try:
        yield
    except UserError as error:
        text = str(error)
        for name, there in (renamed or {}).items():
            text = re.sub(rf"--{name}\b", f"--{there}", text)
        print_error(UserError(text))
        raise SystemExit(2) from None


def check_arguments(arguments: AllArguments) -> None:
    """Refuse what would fail after the model has been loaded, and warn of what does nothing."""
    script, fed, plugin, renamed = arguments.script, arguments.fed, arguments.plugin, arguments.renamed
    processes = os.environ.get("WORLD_SIZE", "")
    if processes.isdecimal() and int(processes) > 1 and not plugin.is_idle:
        raise UserError("The plugin works in one process; start the script with python instead of a launcher.")
    if plugin.trainable is not None and load("trainable", plugin.trainable).sends_model:
        raise UserError(
            f"--trainable {plugin.trainable} sends a client what it lacks of the model that it may hold, and this "
            "host's loop broadcasts one state to all: use fedbias run or fedbias flower run."
        )
    if plugin.task != "sft" or plugin.trainable is not None:
        raise UserError(
            "--task and --trainable belong to fedbias run; here the script and --use_peft decide what is trained."
        )
    check_host_trains(plugin)
    if script.model_name_or_path == TINY:
        script.model_name_or_path = model_path(TINY)
    _check_federation(arguments)
    check_training_numbers(script, local_epochs=plugin.local_epochs)
    in_8bit, in_4bit = (bool(getattr(script, name, False)) for name in ("load_in_8bit", "load_in_4bit"))
    check_quantisation(in_8bit, in_4bit, use_peft=script.use_peft)
    check_bitsandbytes(in_8bit, in_4bit, runs_on_cpu=False)  # the host asks for the first GPU by its number
    check_model(script.model_name_or_path, pickled_weights=True)
    if not script.use_peft:
        logger.warning("--use_peft is not given: every weight of the model is trained.")
    there = {name: renamed.get(name, name) for name in arguments.config}  # flag -> its name in this host
    written = written_flags([*vars(script), *vars(fed), *there.values()], arguments.words)
    for name, needed in idle_flags(all_options(), arguments.config, [n for n in there if there[n] in written]):
        logger.warning("--%s has no effect %s.", there[name], needed)
    for name, new in renamed.items():
        logger.warning("--%s is this host's own flag; the plugin's is --%s here.", name, new)
    if "num_train_epochs" in written:
        logger.warning("--num_train_epochs has no effect in OpenFedLLM (--max_steps wins); give --local_epochs.")


def written_flags(known: Sequence[str], words: Sequence[str]) -> set[str]:
    """Those of the ``known`` flags that ``words`` hold, shortened or with hyphens too, as argparse allows."""
    given = {word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")}
    return {name for name in known for word in given if name == word or (word not in known and name.startswith(word))}


def _check_federation(arguments: AllArguments) -> None:
    script, fed, plugin = arguments.script, arguments.fed, arguments.plugin
    for flag in ("num_clients", "sample_clients", "num_rounds", "save_model_freq", "checkpoint_step"):
        if hasattr(fed, flag):
            check_range(flag, getattr(fed, flag), 1)
    if fed.sample_clients > fed.num_clients:
        logger.warning("--sample_clients %d: there are %d clients.", fed.sample_clients, fed.num_clients)
    if not is_known(fed.fed_alg) and not _host_mentions(fed.fed_alg):
        check_fed_alg(fed.fed_alg)
    if plugin.aggregation != "plain" and not is_known(fed.fed_alg):
        raise UserError(
            f"--aggregation {plugin.aggregation} works with --fed_alg {', '.join(ALGORITHMS)} and localN, not with "
            f"{fed.fed_alg!r}; give one of them, or --aggregation plain."
        )
    if fed.fed_alg.startswith("local"):
        last = fed.fed_alg[-1]
        if not last.isdigit() or int(last) >= fed.num_clients:
            raise UserError(
                f"--fed_alg {fed.fed_alg}: OpenFedLLM reads the last digit as the client, and the clients are 0 "
                f"to {fed.num_clients - 1}."
            )
    if plugin.split is not None:
        plugin.split.check(fed.num_clients)
        if getattr(script, "multi_turn_task", False):
            raise UserError("--scenario deals single-turn rows; leave out --multi_turn_task, or give --scenario none.")


def _host_mentions(fed_alg: str) -> bool:
    """Whether the host's code knows the algorithm, or cannot be read: a fork has more (``trimean``, ``cc=0.5``)."""
    package = getattr(sys.modules.get("federated_learning"), "__file__", None)
    if package is None:
        return True
    sources = Path(package).parent.glob("*.py")
    words = {word for path in sources for word in re.findall(r"""["'](\w\w+)["']""", path.read_text(errors="replace"))}
    return any(fed_alg.startswith(word) for word in words)


def make_output_dir(script_args: Any) -> None:
    """Create ``--output_dir``; the host makes only the run's own folder inside it and fails when it is absent."""
    try:
        os.makedirs(script_args.output_dir, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {script_args.output_dir!r} cannot be made: {error.strerror}.") from None
