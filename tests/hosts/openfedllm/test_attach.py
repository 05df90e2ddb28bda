"""The host's flags and the plugin's in one parser, what it refuses, and how a script ends that cannot go on."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Optional

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.openfedllm import attach
from fedbias_plugin.hosts.openfedllm.attach import AttachedArguments, check_arguments, extend_arguments, make_output_dir
from fedbias_plugin.hosts.openfedllm.patcher import plan_patch
from tests.hosts.openfedllm.runner import Run, run_script, sft_flags


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
    model_name_or_path: str = "model"


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a script that holds the plugin's lines."""
    monkeypatch.setitem(sys.modules, attach.HOOKS, ModuleType(attach.HOOKS))
    monkeypatch.setattr(sys, "argv", ["main_sft.py"])


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """``parse("--scenario 3C")`` -> what the host's config.py gets."""
    from transformers import HfArgumentParser

    def read(flags: str = "") -> Any:
        fed_arguments, parser = extend_arguments(FedArguments, HfArgumentParser)
        argv = ["main_sft.py", *flags.split()]
        if "--output_dir" not in flags:
            argv += ["--output_dir", str(tmp_path / "new/out")]
        monkeypatch.setattr(sys, "argv", argv)
        return parser((ScriptArguments, fed_arguments)).parse_args_into_dataclasses()

    return read


def test_both_sets_of_flags_are_read_and_the_host_prints_its_own_class(hooked, parse, tmp_path):
    script_args, fed_args = parse("--num_clients 4 --scenario 1B2C --local_epochs 2 --bama_lambda 0.5 --seed 9")
    assert (fed_args.num_clients, fed_args.fed_alg, script_args.seed) == (4, "fedavg", 9)
    assert (fed_args.scenario, fed_args.local_epochs, fed_args.bama_lambda) == ("1B2C", 2, 0.5)
    assert (fed_args.biased_shares, fed_args.schedule_seed, fed_args.preference_dataset) == (None, None, "auto")
    assert repr(fed_args).startswith("FedArguments(")
    assert (tmp_path / "new/out").is_dir()


def test_without_flags_the_host_s_data_are_left_alone(hooked, parse):
    _, fed_args = parse()
    assert (fed_args.scenario, fed_args.aggregation, fed_args.is_idle) == ("none", "host", False)


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
        ("--scenario 9B", "--scenario '9B' is unknown; choose one of none, 3B, 3C, 1B2C"),
        ("--scenario 1B2C --num_clients 2", "--scenario 1B2C needs at least 3 clients, but --num_clients is 2"),
        ("--scenario custom --biased_shares 1,0", "--biased_shares holds 2 shares, but --num_clients is 3"),
        ("--bama_lambda 0", "--bama_lambda must be greater than 0"),
        ("--bias_benchmarks crowspairs", "--bias_benchmarks 'crowspairs' is unknown"),
        ("--num_clients 0", "--num_clients must be at least 1, got 0."),
        ("--sample_clients 0", "--sample_clients must be at least 1, got 0."),
        ("--num_rounds -1", "--num_rounds must be at least 1, got -1."),
        ("--seed -1", "--seed must be at least 0, got -1."),
        ("--max_steps -1", "--max_steps -1 is no number of steps in OpenFedLLM; give --local_epochs N"),
        ("--max_steps 0", "--max_steps 0 is no number of steps"),
        ("--load_in_4bit True", "A quantised model cannot be trained whole; add --use_peft"),
        ("--load_in_8bit True", "A quantised model cannot be trained whole; add --use_peft"),
        ("--aggregation bama --fed_alg fednova", "--aggregation bama works with --fed_alg fedavg"),
        ("--fed_alg local3", "--fed_alg local3: OpenFedLLM reads the last digit as the client, and the clients are 0 "),
        ("--fed_alg localx", "--fed_alg localx: OpenFedLLM reads the last digit"),
    ],
)
def test_wrong_flags_end_the_script_with_one_line_and_code_2(hooked, parse, capsys, tmp_path, flags, message):
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
        "--load_in_4bit True --use_peft True",
        "--fed_alg fednova",
        "--fed_alg local2 --aggregation bama",
        "--scenario custom --biased_shares 1,0,0.5",
    ],
)
def test_what_works_is_not_refused(hooked, parse, flags):
    parse(flags)


@dataclass
class BothArguments(AttachedArguments, FedArguments):
    pass


def test_multi_turn_rows_cannot_be_dealt(hooked):
    script_args = ScriptArguments()
    script_args.multi_turn_task = True
    check_arguments(script_args, BothArguments())
    with pytest.raises(UserError, match=r"^--scenario deals single-turn rows; leave out --multi_turn_task"):
        check_arguments(script_args, BothArguments(scenario="3C"))


def test_a_check_that_the_host_s_dataclass_makes_itself_is_kept():
    from transformers import HfArgumentParser

    @dataclass
    class Careful(FedArguments):
        def __post_init__(self) -> None:
            self.checked = True

    assert extend_arguments(Careful, HfArgumentParser)[0]().checked


def test_a_flag_of_the_host_with_the_plugin_s_name_is_refused(capsys):
    from transformers import HfArgumentParser

    @dataclass
    class Taken(FedArguments):
        scenario: str = "iid"
        data_dir: str = "data"

    with pytest.raises(SystemExit) as end:
        extend_arguments(Taken, HfArgumentParser)
    assert end.value.code == 2
    assert "This host has flags of the same name: --data_dir, --scenario;" in capsys.readouterr().err


def test_a_host_whose_other_flags_clash_with_the_plugin_s_is_refused(capsys):
    from transformers import HfArgumentParser

    @dataclass
    class OtherArguments:
        data_dir: str = "data"

    extended, parser = extend_arguments(FedArguments, HfArgumentParser)
    with pytest.raises(SystemExit) as end:
        parser((OtherArguments, extended))
    assert end.value.code == 2
    assert "This host has a flag of the same name as the plugin: argument --data_dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "warning"),
    [
        ("--num_train_epochs 3", "--num_train_epochs has no effect in OpenFedLLM (--max_steps wins)"),
        ("--num_train_epochs=3", "--num_train_epochs has no effect in OpenFedLLM (--max_steps wins)"),
        ("--client_samples 7", "--client_samples has no effect without --scenario 1B2C or another."),
        ("--bama_lambda=0.5", "--bama_lambda has no effect without --aggregation bama."),
        ("--num-train-ep 3", "--num_train_epochs has no effect in OpenFedLLM (--max_steps wins)"),
        ("--bama-lambda 0.5", "--bama_lambda has no effect without --aggregation bama."),
        ("--wandb-proj x", "--wandb_project has no effect without --track jsonl,wandb."),
        ("--max_steps 7", None),
    ],
)
def test_a_flag_without_effect_is_warned_about_however_it_is_written(hooked, monkeypatch, caplog, flags, warning):
    monkeypatch.setattr(sys, "argv", ["main_sft.py", *flags.split()])
    monkeypatch.setattr(logging.getLogger("fedbias_plugin"), "propagate", True)
    check_arguments(ScriptArguments(use_peft=True), BothArguments())
    assert [record.getMessage()[: len(warning or "")] for record in caplog.records] == ([warning] if warning else [])


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--output_dir .*/file/out cannot be made: Not a directory\.$"):
        make_output_dir(SimpleNamespace(output_dir=str(tmp_path / "file/out")))


def test_a_script_without_the_plugin_s_lines_refuses_its_flags_and_takes_the_host_s(monkeypatch):
    monkeypatch.delitem(sys.modules, attach.HOOKS, raising=False)
    monkeypatch.setattr(sys, "argv", ["/some/where/main_other.py"])
    check_arguments(ScriptArguments(max_steps=-1), AttachedArguments())
    message = (
        r"^main_other\.py does not hold the plugin's lines, so --scenario, --local_epochs would do nothing; run main_"
    )
    with pytest.raises(UserError, match=message):
        check_arguments(ScriptArguments(), AttachedArguments(scenario="3C", local_epochs=2))


INTERRUPTED = """\
    if round == 1:
        import sys
        from fedbias_plugin.errors import UserError
        from fedbias_plugin.session import BiasSession
        close = BiasSession.close
        def told(self, failure=None):
            if self._recorder.is_open:
                print("closed:", failure)
            close(self, failure=failure)
        BiasSession.close = told
        {statement}
"""


@pytest.fixture
def interrupted(
    double: Path, host_model: Path, host_data: Path, small_data: Path, tmp_path: Path
) -> Callable[..., Run]:
    """A run of two rounds that meets ``statement`` at the end of the second's training."""
    plan_patch(double).write()
    script = double / "main_sft.py"
    whole, anchor = script.read_text(), "    global_dict, global_auxiliary = global_aggregate("
    assert anchor in whole

    def start(statement: str) -> Run:
        script.write_text(whole.replace(anchor, INTERRUPTED.format(statement=statement) + anchor))
        flags = [*sft_flags(host_model, host_data, tmp_path / "out"), "--bias_benchmarks", "none", "--max_steps", "1"]
        return run_script(double, "main_sft.py", *flags, log=tmp_path / "log.txt")

    return start


@pytest.mark.parametrize(
    ("statement", "code", "failure", "traceback"),
    [
        ("raise UserError('The disk is full.')", 1, "UserError: The disk is full.", False),
        ("raise ValueError('odd')", 1, "ValueError: odd", True),
        ("sys.exit(3)", 3, "the script ended before its last round", False),
    ],
)
def test_a_run_that_breaks_off_is_marked_failed_once(interrupted, tmp_path, statement, code, failure, traceback):
    run = interrupted(statement)
    assert run.code == code, run.text
    lines = run.text.splitlines()
    assert [line for line in lines if line.startswith("closed:")] == [f"closed: {failure}"]
    assert ("Traceback" in run.text) is traceback
    errors = [line for line in lines if line.startswith("fedbias: error:")]
    assert errors == (["fedbias: error: The disk is full."] if "UserError" in statement else [])
    (folder,) = (tmp_path / "out").iterdir()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert not (folder / "summary.json").exists()


def test_another_script_of_a_patched_host_refuses_the_plugin_s_flags(double, host_model, host_data, tmp_path):
    plan_patch(double).write()
    (double / "main_other.py").write_text("from config import fed_args\nprint('went on')\n")
    flags = sft_flags(host_model, host_data, tmp_path / "out")
    assert run_script(double, "main_other.py", *flags, log=tmp_path / "log.txt").text.endswith("went on\n")
    run = run_script(double, "main_other.py", *flags, "--scenario", "3C", log=tmp_path / "log.txt")
    assert run.code == 2
    assert "main_other.py does not hold the plugin's lines, so --scenario would do nothing" in run.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--agregation", "bama"],
            "--agregation: neither OpenFedLLM nor the plugin has this flag. Did you mean 'aggregation'?",
        ),
        (
            ["--bama-lamda=0.2"],
            "--bama-lamda: neither OpenFedLLM nor the plugin has this flag. Did you mean 'bama_lambda'?",
        ),
        (
            ["--bias_benchmarks", "crows_pairs", "stereoset"],
            "'stereoset' belongs to no flag; several values are written",
        ),
    ],
)
def test_a_flag_that_nobody_has_is_named_in_one_line(monkeypatch, capsys, words, message):
    from transformers import HfArgumentParser

    monkeypatch.setattr(sys, "argv", ["main_sft.py", *words])
    extended, parser = extend_arguments(FedArguments, HfArgumentParser)
    with pytest.raises(SystemExit) as end:
        parser((ScriptArguments, extended)).parse_args_into_dataclasses()
    assert end.value.code == 2
    assert f"fedbias: error: {message}" in capsys.readouterr().err


def test_a_misspelt_algorithm_is_refused_and_a_fork_s_own_is_not(hooked, monkeypatch, tmp_path):
    (tmp_path / "server.py").write_text("if fed_alg == 'trimean' or fed_alg.startswith('cc'): pass")
    package = ModuleType("federated_learning")
    package.__file__ = str(tmp_path / "__init__.py")
    monkeypatch.setitem(sys.modules, "federated_learning", package)
    for name in ("trimean", "cc=0.5"):
        check_arguments(ScriptArguments(), BothArguments(fed_alg=name))
    with pytest.raises(UserError, match=r"--fed_alg 'fedyogy' is unknown; .* Did you mean 'fedyogi'\?"):
        check_arguments(ScriptArguments(), BothArguments(fed_alg="fedyogy"))


def test_tiny_is_the_bundled_model_and_training_every_weight_is_said(hooked, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("fedbias_plugin"), "propagate", True)
    script_args = ScriptArguments(model_name_or_path="tiny")
    check_arguments(script_args, BothArguments())
    assert script_args.model_name_or_path.endswith("tiny_llama")
    assert [record.getMessage() for record in caplog.records] == [
        "--use_peft is not given: every weight of the model is trained."
    ]
