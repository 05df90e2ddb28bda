"""What cannot be patched or unpatched is refused with its reason, and stays as it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.openfedllm.inspection import Requirements
from fedbias_plugin.hosts.openfedllm.patcher import plan_patch, plan_unpatch
from tests.hosts.openfedllm.patching_fixtures import (
    CONFIG,
    LINE,
    PATCHED_SFT,
    SERVER,
    SFT,
    checkout,
    contents,
    patch,
    refusal,
)


@pytest.mark.parametrize(
    ("script", "lines"),
    [
        (f"x = 1; {LINE}\n{SFT}", "line 1"),
        (f"if True:\n    {LINE}\n{SFT}", "line 2"),
        (f"import os, fedbias_plugin.hosts.openfedllm.attach\n{SFT}", "line 1"),
        (f"{PATCHED_SFT}if:\n", "line 1"),
    ],
)
@pytest.mark.parametrize("plan", [plan_patch, plan_unpatch])
def test_lines_that_cannot_be_taken_out_by_themselves_are_named(tmp_path, script, lines, plan):
    message = refusal(checkout(tmp_path / "host", main_sft=script), plan)
    assert "main_sft.py: " in message
    assert plan is plan_patch or f"take out {lines}" in message


def test_a_settings_file_without_the_parser_is_refused(tmp_path):
    hydra = CONFIG.replace("parser = HfArgumentParser(", "# parser = HfArgumentParser(").replace("settings", "# ")
    message = refusal(checkout(tmp_path / "host", config=hydra))
    assert "config.py makes no HfArgumentParser (Hydra?)" in message
    assert message.endswith("The same experiment without a checkout: fedbias run.")


def test_a_flag_that_the_plugin_reads_and_the_host_lacks_is_named(tmp_path):
    config = CONFIG.replace("num_clients:", "num_clients_dataset:")
    assert "config.py has no flag --num_clients, which the plugin reads" in refusal(checkout(tmp_path, config=config))


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
    message = refusal(checkout(tmp_path / "host", main_sft=mentioned, main_dpo=None))
    shown = f"{name} or get_fed_datasets" if name == "split_dataset" else name
    assert f"main_sft.py: it uses no {shown}; the plugin works by replacing these functions" in message


def test_a_script_that_cannot_be_attached_is_left_out_with_its_reason_and_the_other_is_patched(tmp_path):
    folder = checkout(tmp_path / "host", main_sft=SFT.replace("global_aggregate(", "my_own("))
    plan = patch(folder)
    assert [script.name for script in plan.scripts] == ["main_dpo.py"]
    assert any(note.startswith("main_sft.py: not patched: it uses no global_aggregate;") for note in plan.notes)
    assert "fedbias" not in (folder / "main_sft.py").read_text()


@pytest.mark.parametrize(
    "line",
    [
        "def global_aggregate(*parts): ...",
        "from mine import global_aggregate",
        "from mine import average as global_aggregate",
        "global_aggregate = print",
    ],
)
def test_a_script_that_gives_a_replaced_name_another_meaning_is_refused(tmp_path, line):
    script = SFT.replace("import *\n", f"import *\n{line}\n")
    message = refusal(checkout(tmp_path / "host", main_sft=script, main_dpo=None))
    assert "main_sft.py: line 3 gives global_aggregate another meaning than the host's utils and federated" in message


@pytest.mark.parametrize(
    "line",
    ["from federated_learning.fed_global import global_aggregate", "from federated_learning import global_aggregate"],
)
def test_the_functions_may_be_imported_from_wherever_the_host_keeps_them(tmp_path, line):
    assert patch(checkout(tmp_path / "host", main_sft=SFT.replace("import *\n", f"import *\n{line}\n"))).changes


def test_a_function_without_a_parameter_that_the_plugin_reads_is_refused(tmp_path):
    folder = checkout(tmp_path / "host", server=SERVER.replace("round_idx", "number"))
    message = refusal(folder)
    assert "main_sft.py: global_aggregate of this host has no parameter round_idx, which the plugin reads" in message
    patch(checkout(tmp_path / "any", server="def global_aggregate(*args, **kwargs): ...\n"))


def test_every_function_that_a_script_must_use_is_replaced_and_the_other_way_round():
    from fedbias_plugin.hosts.openfedllm.hooks import HOOKS

    requirements = Requirements.load()
    assert requirements.functions.keys() == HOOKS.keys()
    used = {name for uses in requirements.scripts.values() for names in uses for name in names}
    assert used <= HOOKS.keys()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (SFT + "if:\n", "line 10: invalid syntax"),
        (SFT.encode() + b"# caf\xe9\n", "utf-8"),
        (b"# coding: klingon\n" + SFT.encode(), "unknown encoding: klingon"),
        (SFT.encode() + b"\x00", "null byte"),
        (f'"""What it is for."""; x = 1\n{SFT}', "line 1: two statements in one line where the plugin's line belongs"),
    ],
)
def test_a_script_that_is_no_python_or_has_no_place_for_the_line_is_refused(tmp_path, script, reason):
    message = refusal(checkout(tmp_path / "host", main_sft=script))
    assert "main_sft.py: " in message
    assert reason in message


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
    with pytest.raises(UserError, match=r"config\.py is missing: the host's flags are read from it"):
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

    monkeypatch.setattr(os, "replace", full_disk)
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

    monkeypatch.setattr(os, "replace", broken_disk)
    with pytest.raises(UserError, match=rf"these are changed all the same: {folder / 'main_sft.py'}$"):
        patch(folder)
    assert sorted(contents(folder)) == ["config.py", "main_dpo.py", "main_sft.py"]


def test_an_interrupt_between_two_files_puts_the_first_back(tmp_path, monkeypatch):
    folder = checkout(tmp_path / "host")
    before, real = contents(folder), os.replace
    presses = iter([False, True])

    def interrupted(source, target):
        if next(presses, False):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        patch(folder)
    assert contents(folder) == before
