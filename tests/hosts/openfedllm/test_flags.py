"""The host's flags and the plugin's in one parser, what it refuses, and how a script ends that cannot go on."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Optional

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.openfedllm.arguments import AllArguments, AttachedArguments
from fedbias_plugin.hosts.openfedllm.flags import check_arguments, install, make_output_dir
from fedbias_plugin.hosts.openfedllm.patcher import plan_patch
from fedbias_plugin.hosts.openfedllm.stack import detect_stack
from tests.hosts.openfedllm.runner import run_script, sft_flags


@dataclass
class FedArguments:
    fed_alg: Optional[str] = field(default="fedavg", metadata={"help": "of the host"})  # noqa: UP045
    num_clients: Optional[int] = field(default=3)  # noqa: UP045
    sample_clients: Optional[int] = field(default=2)  # noqa: UP045
    num_rounds: Optional[int] = field(default=5)  # noqa: UP045


@dataclass
class ScriptArguments:
    seed: int = 1
    max_steps: int = 10
    use_peft: bool = False
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    output_dir: str = "output"
    num_train_epochs: int = 3
    model_name_or_path: str = "tiny"
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    seq_length: int = 512
    template: str = "alpaca"


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser as a patched script gets it, and no flags on the command line."""
    from transformers import HfArgumentParser

    for name in ("__init__", "parse_args_into_dataclasses", "parse_dict", "_get_option_tuples"):
        monkeypatch.setattr(HfArgumentParser, name, getattr(HfArgumentParser, name))  # put back at the end
    monkeypatch.setattr(sys, "argv", ["main_sft.py"])


@pytest.fixture
def parse(hooked: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """``parse("--scenario 3C")`` -> what the host's config.py gets, and all flags as the plugin sees them."""
    from transformers import HfArgumentParser

    seen: list[AllArguments] = []

    def begin(arguments: AllArguments) -> None:
        check_arguments(arguments)
        make_output_dir(arguments.script)
        seen.append(arguments)

    install(begin)

    def read(flags: str = "", *classes: type) -> Any:
        argv = ["main_sft.py", *flags.split()]
        if "--output_dir" not in flags:
            argv += ["--output_dir", str(tmp_path / "new/out")]
        monkeypatch.setattr(sys, "argv", argv)
        given = HfArgumentParser(classes or (ScriptArguments, FedArguments)).parse_args_into_dataclasses()
        return given, seen[-1]

    return read


def checked(script: Any = None, fed: Any = None, **plugin: Any) -> AllArguments:
    """Arguments that have passed the checks."""
    parts = (script or ScriptArguments(), fed or FedArguments(), AttachedArguments(**plugin))
    arguments = AllArguments(*parts, words=sys.argv[1:])
    check_arguments(arguments)
    return arguments


def test_both_sets_of_flags_are_read_and_the_host_gets_its_own_classes_untouched(parse, tmp_path):
    given, seen = parse("--num_clients 4 --scenario 1B2C --local_epochs 2 --bama_lambda 0.5 --seed 9")
    assert [type(part) for part in given] == [ScriptArguments, FedArguments]
    assert (given[1].num_clients, given[1].fed_alg, given[0].seed) == (4, "fedavg", 9)
    assert (seen.script, seen.fed) == tuple(given)
    assert (seen.plugin.scenario, seen.plugin.local_epochs, seen.plugin.bama_lambda) == ("1B2C", 2, 0.5)
    assert (seen.plugin.biased_shares, seen.plugin.schedule_seed, seen.plugin.preference_dataset) == (
        None,
        None,
        "auto",
    )
    assert (tmp_path / "new/out").is_dir()


def test_without_flags_the_host_s_data_are_left_alone(parse):
    _, seen = parse()
    assert (seen.plugin.scenario, seen.plugin.aggregation, seen.plugin.is_idle) == ("none", "plain", False)


def test_a_parser_of_something_else_is_left_alone(parse, monkeypatch):
    from transformers import HfArgumentParser

    @dataclass
    class Other:
        size: int = 1

    monkeypatch.setattr(sys, "argv", ["tool.py", "--size", "3"])
    assert HfArgumentParser(Other).parse_args_into_dataclasses() == (Other(3),)
    assert HfArgumentParser((Other,)).parse_args_into_dataclasses(args=[]) == (Other(1),)


@pytest.mark.parametrize(
    ("settings", "idle"),
    [
        ({"bias_benchmarks": "none"}, True),
        ({}, False),
        ({"bias_benchmarks": "none", "scenario": "3C"}, False),
        ({"aggregation": "bama"}, False),
    ],
)
def test_the_plugin_is_idle_when_it_neither_poisons_nor_measures_nor_weighs(settings, idle):
    assert AttachedArguments(**settings).is_idle is idle


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--scenario 9B",
            "--scenario '9B' is unknown; choose one of 1B2C, 2B1C, 3B, 3C, mix-1B2C, mix-2B1C, custom, none.",
        ),
        ("--scenario 1B2C --num_clients 2", "--scenario 1B2C needs at least 3 clients, but --num_clients is 2"),
        ("--scenario custom --biased_shares 1,0", "--biased_shares holds 2 shares, but --num_clients is 3"),
        ("--bama_lambda 0", "--bama_lambda must be greater than 0"),
        ("--bias_benchmarks crowspairs", "--bias_benchmarks 'crowspairs' is unknown"),
        ("--num_clients 0", "--num_clients must be at least 1, got 0."),
        ("--sample_clients 0", "--sample_clients must be at least 1, got 0."),
        ("--num_rounds -1", "--num_rounds must be at least 1, got -1."),
        ("--seed -1", "--seed must be at least 0 and at most 4294967295, got -1."),
        (
            "--max_steps -1",
            "--max_steps must be at least 1, got -1; to train over all rows of a client give --local_ep",
        ),
        ("--max_steps 0", "--max_steps must be at least 1, got 0"),
        ("--batch_size 0", "--batch_size must be at least 1, got 0."),
        ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps must be at least 1, got 0."),
        ("--load_in_8bit --load_in_4bit", "--load_in_8bit and --load_in_4bit exclude each other; give one of them."),
        ("--load_in_4bit", "A quantised model cannot be trained whole; add --use_peft"),
        ("--load_in_8bit --use_peft", "--load_in_8bit needs a GPU here, and torch finds none; drop --load_in_8bit."),
        ("--model_name_or_path /no/such", "--model_name_or_path '/no/such': there is no such folder."),
        ("--bama_lambda abc", "--bama_lambda: invalid float value: 'abc'. See --help."),
        ("--num_rounds x", "--num_rounds: invalid int value: 'x'. See --help."),
        ("--aggregation bama --fed_alg fednova", "--aggregation bama works with --fed_alg fedavg"),
        ("--fed_alg local3", "--fed_alg local3: OpenFedLLM reads the last digit as the client, and the clients are 0 "),
        ("--fed_alg localx", "--fed_alg localx: OpenFedLLM reads the last digit"),
    ],
)
def test_wrong_flags_end_the_script_with_one_line_and_code_2(parse, capsys, tmp_path, flags, message):
    with pytest.raises(SystemExit) as end:
        parse(flags)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fedbias: error: {message}"), said
    assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "flags",
    [
        "--max_steps -1 --local_epochs 1",
        "--fed_alg fednova",
        "--fed_alg local2 --aggregation bama",
        "--scenario custom --biased_shares 1,0,0.5",
    ],
)
def test_what_works_is_not_refused(parse, flags):
    parse(flags)


def test_multi_turn_rows_cannot_be_dealt(hooked):
    script_args = ScriptArguments()
    script_args.multi_turn_task = True
    checked(script_args)
    with pytest.raises(UserError, match=r"^--scenario deals single-turn rows; leave out --multi_turn_task"):
        checked(script_args, scenario="3C")


@pytest.mark.parametrize("kind", ["json", "yaml", "dict"])
def test_a_host_that_reads_its_flags_from_a_file_gets_its_own_and_the_plugin_the_rest(parse, tmp_path, kind):
    from transformers import HfArgumentParser

    parse()  # which keeps what the plugin saw
    flags = {"num_clients": 4, "scenario": "1B2C", "bama_lambda": 0.5, "output_dir": str(tmp_path / "out")}
    path = tmp_path / f"flags.{kind}"
    path.write_text(json.dumps(flags))
    parser = HfArgumentParser((ScriptArguments, FedArguments))
    given = parser.parse_dict(flags) if kind == "dict" else getattr(parser, f"parse_{kind}_file")(str(path))
    assert [type(part) for part in given] == [ScriptArguments, FedArguments]
    assert given[1].num_clients == 4
    assert (tmp_path / "out").is_dir()


def test_words_that_the_host_hands_over_count_and_not_the_command_line(parse, monkeypatch, tmp_path):
    from transformers import HfArgumentParser

    parse()
    monkeypatch.setattr(sys, "argv", ["main_sft.py", "experiment1"])
    words = ["--num_clients", "4", "--output_dir", str(tmp_path / "out")]
    given = HfArgumentParser((ScriptArguments, FedArguments)).parse_args_into_dataclasses(args=words)
    assert given[1].num_clients == 4


def test_a_shortened_flag_with_an_underscore_is_one_flag_and_not_two_spellings(parse, capsys):
    other_spelling = "--num-r 4" if detect_stack() == "current" else "--num_r 4"  # the old parser has no hyphens
    given, seen = parse(f"--sample_c 1 {other_spelling} --schedule_s 5")
    assert (given[1].sample_clients, given[1].num_rounds, seen.plugin.schedule_seed) == (1, 4, 5)
    with pytest.raises(SystemExit):
        parse("--num_ 4")
    said = capsys.readouterr().err
    assert "ambiguous option: --num_ could match --num_train_epochs, --num_clients, --num_rounds" in said
    assert said.count("\n") == 1


def test_a_check_that_the_host_s_dataclass_makes_itself_is_kept(parse):
    @dataclass
    class Careful(FedArguments):
        def __post_init__(self) -> None:
            self.checked = True

    given, _ = parse("", ScriptArguments, Careful)
    assert given[1].checked


def test_one_dataclass_for_everything_will_do(parse):
    @dataclass
    class Single(ScriptArguments, FedArguments):
        pass

    given, seen = parse("--num_clients 4 --scenario 1B2C", Single)
    assert len(given) == 1
    assert seen.script is seen.fed is given[0]


@dataclass
class Taken(FedArguments):
    attack: str = "label_flip"
    dp_epsilon: float = 3.0


@dataclass
class AlsoTaken(ScriptArguments):
    data_dir: str = "data"


def test_a_flag_that_the_host_has_too_stays_the_host_s_and_the_plugin_s_gets_a_prefix(parse, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fedbias_plugin"), "propagate", True)
    flags = "--attack gradient --fedbias_attack sign_flip --attackers 1 --scenario 1B2C --use_peft"
    given, seen = parse(flags, AlsoTaken, Taken)
    assert (given[1].attack, seen.plugin.attack, given[0].data_dir, seen.plugin.data_dir) == (
        *("gradient", "sign_flip"),
        *("data", None),
    )
    assert [record.getMessage() for record in caplog.records] == [
        "--attack is this host's own flag; the plugin's is --fedbias_attack here.",
        "--data_dir is this host's own flag; the plugin's is --fedbias_data_dir here.",
        "--dp_epsilon is this host's own flag; the plugin's is --fedbias_dp_epsilon here.",
    ]
    recorded = seen.config
    assert (recorded["attack"], recorded["host_attack"], recorded["host_dp_epsilon"]) == ("sign_flip", "gradient", 3.0)


def test_a_message_about_a_renamed_flag_uses_its_name_in_this_host(parse, capsys):
    with pytest.raises(SystemExit):
        parse("--fedbias_attack sign_flop", ScriptArguments, Taken)
    assert capsys.readouterr().err.startswith("fedbias: error: --fedbias_attack 'sign_flop' is unknown; choose one of")


def test_a_host_without_a_flag_that_the_plugin_reads_is_refused(parse, capsys):
    @dataclass
    class Other:
        fed_alg: str = "fedavg"
        num_clients_dataset: int = 2
        sample_clients: int = 2
        num_rounds: int = 5

    with pytest.raises(SystemExit) as end:
        parse("", ScriptArguments, Other)
    assert end.value.code == 2
    assert "error: This host has no flag --num_clients, which the plugin reads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "warning"),
    [
        ("--num_train_epochs 3", "--num_train_epochs has no effect in OpenFedLLM (--max_steps wins)"),
        ("--num_train_epochs=3", "--num_train_epochs has no effect in OpenFedLLM (--max_steps wins)"),
        ("--client_samples 7", "--client_samples has no effect without --scenario 1B2C or another."),
        ("--bama_lambda=0.5", "--bama_lambda has no effect without --aggregation bama."),
        ("--num-train-ep 3", "--num_train_epochs has no effect in OpenFedLLM (--max_steps wins)"),
        ("--bama-lambda 0.5", "--bama_lambda has no effect without --aggregation bama."),
        ("--wandb-proj x", "--wandb_project has no effect without --track wandb."),
        ("--max_steps 7", None),
    ],
)
def test_a_flag_without_effect_is_warned_about_however_it_is_written(hooked, monkeypatch, caplog, flags, warning):
    monkeypatch.setattr(sys, "argv", ["main_sft.py", *flags.split()])
    monkeypatch.setattr(logging.getLogger("fedbias_plugin"), "propagate", True)
    checked(ScriptArguments(use_peft=True))
    assert [record.getMessage()[: len(warning or "")] for record in caplog.records] == ([warning] if warning else [])


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--output_dir '.*/file/out' cannot be made: Not a directory\.$"):
        make_output_dir(SimpleNamespace(output_dir=str(tmp_path / "file/out")))


def test_another_script_of_a_patched_host_is_as_it_was(double, host_model, host_data, tmp_path):
    plan_patch(double).write()
    (double / "main_other.py").write_text("from config import fed_args\nprint('went on')\n")
    flags = sft_flags(host_model, host_data, tmp_path / "out")
    assert run_script(double, "main_other.py", *flags, log=tmp_path / "log.txt").text.endswith("went on\n")
    run = run_script(double, "main_other.py", *flags, "--scenario", "3C", log=tmp_path / "log.txt")
    assert run.code == 1
    assert "not used by the HfArgumentParser: ['--scenario', '3C']" in run.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--agregation", "bama"],
            "--agregation: neither OpenFedLLM nor the plugin has this flag. Did you mean '--aggregation'?",
        ),
        (
            ["--bama-lamda=0.2"],
            "--bama-lamda: neither OpenFedLLM nor the plugin has this flag. Did you mean '--bama_lambda'?",
        ),
        (
            ["--bias_benchmarks", "crows_pairs", "stereoset"],
            "'stereoset' belongs to no flag; several values are written",
        ),
    ],
)
def test_a_flag_that_nobody_has_is_named_in_one_line(parse, capsys, words, message):
    with pytest.raises(SystemExit) as end:
        parse(" ".join(words))
    assert end.value.code == 2
    assert f"fedbias: error: {message}" in capsys.readouterr().err


def test_a_misspelt_algorithm_is_refused_and_a_fork_s_own_is_not(hooked, monkeypatch, tmp_path):
    (tmp_path / "server.py").write_text("if fed_alg == 'trimean' or fed_alg.startswith('cc'): pass")
    package = ModuleType("federated_learning")
    package.__file__ = str(tmp_path / "__init__.py")
    monkeypatch.setitem(sys.modules, "federated_learning", package)
    for name in ("trimean", "cc=0.5"):
        checked(fed=FedArguments(fed_alg=name))
    with pytest.raises(UserError, match=r"--fed_alg 'fedyogy' is unknown; .* Did you mean 'fedyogi'\?"):
        checked(fed=FedArguments(fed_alg="fedyogy"))


def test_tiny_is_the_bundled_model_and_training_every_weight_is_said(hooked, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("fedbias_plugin"), "propagate", True)
    script_args = ScriptArguments(model_name_or_path="tiny")
    checked(script_args)
    assert script_args.model_name_or_path.endswith("tiny_llama")
    assert [record.getMessage() for record in caplog.records] == [
        "--use_peft is not given: every weight of the model is trained."
    ]
