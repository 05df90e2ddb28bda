"""What cannot be patched or unpatched is refused with its reason, and stays as it is."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.openfedllm import checkout as checkout_module
from fedbias_plugin.hosts.openfedllm.patch_files import load_families
from fedbias_plugin.hosts.openfedllm.patcher import plan_patch, plan_unpatch
from tests.hosts.openfedllm.patching_fixtures import (
    COMPAT,
    CONFIG,
    FLAGS,
    HOOKS,
    MARK,
    PATCHED_SFT,
    SFT,
    checkout,
    contents,
    patch,
    refusal,
    unpatch,
)

REPOSITORY = Path(__file__).parents[3]
HALF = {
    "one line missing": (PATCHED_SFT.replace(f"{HOOKS}\n", ""), "this line of the plugin is missing, others are there"),
    "the other missing": (PATCHED_SFT.replace(f"{COMPAT}\n", ""), "this line of the plugin is missing"),
    "a line twice": (f"{COMPAT}\n{PATCHED_SFT}", "lines 1 and 2 are the same line of the plugin"),
    "below its place": (
        PATCHED_SFT.replace(f"{HOOKS}\n", "") + f"{HOOKS}\n",
        "line 11 is in the wrong place; it belongs directly below",
    ),
    "not first": (f"import os\n{PATCHED_SFT}", "line 2 is in the wrong place; it belongs as the first statement"),
}


@pytest.mark.parametrize(("script", "fault"), HALF.values(), ids=HALF)
def test_a_half_patched_script_is_refused_and_unpatching_cleans_it(tmp_path, script, fault):
    folder = checkout(tmp_path / "host", main_sft=script)
    message = refusal(folder)
    assert f"main_sft.py: {fault}" in message
    assert f"take the plugin's lines out (fedbias unpatch {folder}), then patch again" in message
    unpatch(folder)
    assert (folder / "main_sft.py").read_text().removeprefix("import os\n") == SFT


def test_flags_added_below_the_parsing_are_refused(tmp_path):
    message = refusal(checkout(tmp_path / "host", config=f"{CONFIG}{FLAGS}\n"))
    assert (
        "config.py: line 6 is in the wrong place; it belongs directly above the line that makes the parser" in message
    )


@pytest.mark.parametrize(
    "line",
    [f"x = 2  # old{MARK}", f"import os; {COMPAT}", f"x = 1{MARK}", COMPAT + " (mine)"],
)
@pytest.mark.parametrize("plan", [plan_patch, plan_unpatch])
def test_a_marked_line_that_was_altered_is_refused_both_ways(tmp_path, line, plan):
    folder, name = checkout(tmp_path / "host", main_sft=f"{line}\n{SFT}"), "main_sft.py"
    message = refusal(folder, plan)
    assert f"{name}: line 1 has the comment '# added by fedbias patch' but is no line that this version" in message
    assert f"Delete that line, or: git checkout {name}" in message


@pytest.mark.parametrize(
    ("name", "script", "line"),
    [
        ("main_sft.py", SFT, COMPAT.replace("compat", "older")),
        ("config.py", CONFIG, HOOKS),  # a line of another script
    ],
)
def test_a_line_of_another_version_stops_the_patch_and_is_taken_out_by_unpatch(tmp_path, name, script, line):
    folder = checkout(tmp_path / "host")
    (folder / name).write_text(f"{line}\n{script}")
    assert f"{name}: line 1 has the comment" in refusal(folder)
    unpatch(folder)
    assert (folder / name).read_text() == script


def test_every_missing_anchor_is_named_with_the_line_to_add_by_hand(tmp_path):
    config = CONFIG.replace("parser = Hf", "flags = Hf").replace("parser.", "flags.")
    script = SFT.replace("from federated_learning import *", "import federated_learning as fl")
    message = refusal(checkout(tmp_path / "host", config=config, main_sft=script))
    assert r"config.py: no line matches ^parser = HfArgumentParser\( " in message
    assert "Add this line by hand, directly above the line that makes the parser from FedArguments" in message
    assert r"main_sft.py: no line matches ^from federated_learning import \* " in message
    assert f"\n      {FLAGS}" in message
    assert f"\n      {HOOKS}" in message
    assert "main_dpo.py" not in message


def test_lines_added_by_hand_as_told_are_accepted_and_the_rest_follows(tmp_path):
    config = f"def parse():\n    {FLAGS}\n    return HfArgumentParser((FedArguments,))\n"
    script = SFT.replace(
        "from federated_learning import *\n", f"import federated_learning\nglobals().update(f=1)\n{HOOKS}\n"
    )
    folder = checkout(tmp_path / "host", config=config, main_sft=script)
    plan = patch(folder)
    assert [script.changes for script in plan.scripts] == [False, True, True]
    assert (folder / "main_sft.py").read_text() == f"{COMPAT}\n{script}"
    assert not plan_patch(folder).changes
    unpatch(folder)
    assert "fedbias" not in "".join(path.read_text() for path in folder.iterdir())


def test_an_anchor_found_twice_is_refused_with_both_line_numbers(tmp_path):
    message = refusal(checkout(tmp_path / "host", config=CONFIG + "parser = HfArgumentParser((FedArguments,))\n"))
    assert r"config.py: lines 4 and 6 match ^parser = HfArgumentParser\( (exactly one line should)" in message


@pytest.mark.parametrize(
    "name",
    [
        "split_dataset",
        "get_clients_this_round",
        "get_dataset_this_round",
        "get_fed_local_sft_trainer",
        "global_aggregate",
    ],
)
def test_a_script_that_does_not_use_a_replaced_name_is_refused(tmp_path, name):
    mentioned = f"# {name}(1)\ntext = '{name}(2)'\nhost.{name}(3)\n" + SFT.replace(f"{name}(", "something_else(")
    message = refusal(checkout(tmp_path / "host", main_sft=mentioned))
    assert f"main_sft.py: uses no {name}. The plugin works by replacing these functions" in message
    assert "it would do nothing and say nothing" in message


@pytest.mark.parametrize(
    "line",
    ["def global_aggregate(*parts): ...", "from mine import global_aggregate", "global_aggregate = print"],
)
def test_a_script_that_gives_a_replaced_name_another_meaning_is_refused(tmp_path, line):
    folder = checkout(tmp_path / "host", main_sft=SFT.replace("import *\n", f"import *\n{line}\n"))
    assert "main_sft.py: line 3 gives global_aggregate another meaning below the plugin's line" in refusal(folder)
    patch(checkout(tmp_path / "above", main_sft=f"{line}\n{SFT}"))


def test_line_numbers_count_the_plugins_own_lines(tmp_path):
    folder = checkout(tmp_path / "host", main_sft=PATCHED_SFT.replace(HOOKS, f"{HOOKS}\nglobal_aggregate = print"))
    assert "main_sft.py: line 5 gives global_aggregate another meaning" in refusal(folder)


@pytest.mark.parametrize(
    ("later", "what"),
    [
        ("from federated_learning.x import *", "names that the plugin replaces"),
        ("from utils import *", "names that the plugin replaces"),
        ("from peft import get_peft_model", "get_peft_model"),
        ("from transformers import AutoModelForCausalLM", "AutoModelForCausalLM"),
    ],
)
def test_a_later_import_of_a_replaced_name_is_refused(tmp_path, later, what):
    folder = checkout(tmp_path / "host", main_sft=SFT.replace("import *\n", f"import *\n{later}\n"))
    assert f"main_sft.py: line 3 gives {what} another meaning" in refusal(folder)


def test_the_names_that_must_stay_replaced_are_those_the_hooks_replace():
    source = (REPOSITORY / "fedbias_plugin/hosts/openfedllm/hooks.py").read_text(encoding="utf-8")
    names = {*re.findall(r'^    "(\w+)": \("\w+", \w+\),$', source, re.MULTILINE), "AutoModelForCausalLM"}
    for family in load_families():
        assert set(family.scripts["main_sft.py"].replaces) == set(family.scripts["main_dpo.py"].replaces) == names


def test_a_future_import_is_refused_by_name(tmp_path):
    script = f'"""Text."""\nfrom __future__ import annotations\n{SFT}'
    message = refusal(checkout(tmp_path / "host", main_sft=script))
    assert "main_sft.py: line 2: nothing may stand above `from __future__ import`" in message
    patch(checkout(tmp_path / "settings", config=f"from __future__ import annotations\n{CONFIG}"))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (SFT + "if:\n", "line 10: Python cannot read this script as it is: invalid syntax"),
        (SFT.encode() + b"# caf\xe9\n", "line 10: Python cannot read this script as it is: byte 0xe9 is not utf-8"),
        (b"# coding: klingon\n" + SFT.encode(), "Python cannot read this script as it is: unknown encoding: klingon"),
        (SFT.encode() + b"\x00", "null byte"),
    ],
)
def test_a_script_that_is_no_python_is_refused_with_the_syntax_error(tmp_path, script, reason):
    message = refusal(checkout(tmp_path / "host", main_sft=script))
    assert "main_sft.py: " in message
    assert reason in message


def test_lines_that_would_break_the_script_are_not_written(tmp_path):
    script = SFT.replace("import *\n", "import * \\\n  ; x = 1\n")
    message = refusal(checkout(tmp_path / "host", main_sft=script))
    assert "main_sft.py: with the plugin's lines, line 4 would not be Python" in message


@pytest.mark.parametrize("plan", [plan_patch, plan_unpatch])
def test_a_folder_that_is_no_checkout_is_refused_with_what_was_expected(tmp_path, plan):
    clone = "git clone https://github.com/rui-ye/OpenFedLLM"
    with pytest.raises(UserError, match=f"absent: no such folder; .*{clone}"):
        plan(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is a file; give the folder .* config\.py, main_sft\.py, main_dpo\.py"):
        plan(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=rf"empty is no OpenFedLLM checkout \({clone}\): it holds none of config\.py, main"
    ):
        plan(tmp_path / "empty")


def test_a_checkout_one_level_away_is_suggested(tmp_path):
    host = checkout(tmp_path / "work/OpenFedLLM")
    (host / "utils").mkdir()
    with pytest.raises(UserError, match=f"Did you mean {host}\\?"):
        plan_patch(tmp_path / "work")
    with pytest.raises(UserError, match=f"Did you mean {host}\\?"):
        plan_patch(host / "utils")


def test_an_incomplete_checkout_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.py is missing: the plugin's flags are added there"):
        plan_patch(checkout(tmp_path / "a", config=None))
    with pytest.raises(UserError, match=r"holds config\.py, but neither main_sft\.py nor main_dpo\.py"):
        plan_patch(checkout(tmp_path / "b", main_sft=None, main_dpo=None))


@pytest.mark.parametrize("plan", [plan_patch, plan_unpatch])
def test_a_read_only_script_or_folder_is_refused_even_for_root(tmp_path, plan):
    folder = checkout(tmp_path / "host", main_sft=SFT if plan is plan_patch else PATCHED_SFT)
    (folder / "main_sft.py").chmod(0o444)
    assert f"main_sft.py is read-only; allow writing: chmod u+w {folder / 'main_sft.py'}" in refusal(folder, plan)
    (folder / "main_sft.py").chmod(0o644)
    folder.chmod(0o555)
    try:
        assert f"the folder {folder} is read-only" in refusal(folder, plan)
    finally:
        folder.chmod(0o755)


def test_a_read_only_script_that_is_patched_already_is_no_obstacle(tmp_path):
    folder = checkout(tmp_path / "host")
    patch(folder)
    (folder / "main_sft.py").chmod(0o444)
    assert not plan_patch(folder).changes


@pytest.mark.parametrize("plan", [plan_patch, plan_unpatch])
def test_a_linked_script_is_refused_and_its_target_stays(tmp_path, plan):
    folder = checkout(tmp_path / "host", main_sft=None)
    elsewhere = tmp_path / "elsewhere.py"
    elsewhere.write_text(SFT)
    (folder / "main_sft.py").symlink_to(elsewhere)
    assert f"main_sft.py is a symbolic link to {elsewhere}" in refusal(folder, plan)
    assert elsewhere.read_text() == SFT
    link = tmp_path / "link"
    link.symlink_to(checkout(tmp_path / "real"))
    patch(link)
    assert (tmp_path / "real/main_sft.py").read_text() == PATCHED_SFT


def test_a_folder_with_the_name_of_a_script_is_refused(tmp_path):
    folder = checkout(tmp_path / "host", main_dpo=None)
    (folder / "main_dpo.py").mkdir()
    assert "main_dpo.py is no file" in refusal(folder)


def test_when_a_later_file_cannot_be_written_the_earlier_ones_are_put_back(tmp_path, monkeypatch):
    folder = checkout(tmp_path / "host")
    real = os.replace

    def full_disk(source, target):
        if Path(target).name == "main_dpo.py":
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(checkout_module.os, "replace", full_disk)
    message = refusal(folder)
    assert message == f"{folder / 'main_dpo.py'} could not be written: No space left on device; every file is as it was"


def test_a_file_that_cannot_be_put_back_is_named(tmp_path, monkeypatch):
    folder = checkout(tmp_path / "host")
    real, calls = os.replace, []

    def broken_disk(source, target):
        calls.append(target)
        if len(calls) > 1:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(checkout_module.os, "replace", broken_disk)
    with pytest.raises(UserError, match=rf"these are changed all the same: {folder / 'config.py'}$"):
        patch(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.py", "main_dpo.py", "main_sft.py"]


def test_an_interrupt_between_two_files_puts_the_first_back(tmp_path, monkeypatch):
    folder = checkout(tmp_path / "host")
    before, real = contents(folder), os.replace
    presses = iter([False, True])

    def interrupted(source, target):
        if next(presses, False):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(checkout_module.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        patch(folder)
    assert contents(folder) == before
