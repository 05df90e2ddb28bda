"""Patching a checkout: which lines go where, and that unpatching gives every byte back."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.openfedllm.patch_files import load_families, patches_folder
from fedbias_plugin.hosts.openfedllm.patcher import plan_patch
from fedbias_plugin.hosts.openfedllm.script import Script
from tests.hosts.openfedllm.patching_fixtures import (
    BENCH,
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
    unpatch,
)


def test_the_three_scripts_get_exactly_the_documented_lines(tmp_path):
    folder = checkout(tmp_path / "host")
    patch(folder)
    assert (folder / "config.py").read_text() == CONFIG.replace("parser = Hf", f"{FLAGS}\nparser = Hf")
    assert (folder / "main_sft.py").read_text() == PATCHED_SFT
    assert (folder / "main_dpo.py").read_text() == PATCHED_SFT.replace("_sft_", "_dpo_")


def test_the_plan_gives_each_line_with_its_number_in_the_patched_file(tmp_path):
    plan = plan_patch(checkout(tmp_path / "host"))
    assert {script.name: script.lines for script in plan.scripts} == {
        "config.py": ((4, FLAGS),),
        "main_sft.py": ((1, COMPAT), (4, HOOKS)),
        "main_dpo.py": ((1, COMPAT), (4, HOOKS)),
    }


def test_planning_writes_nothing(tmp_path):
    folder = checkout(tmp_path / "host")
    before = contents(folder)
    assert plan_patch(folder).changes
    assert contents(folder) == before


def test_patching_twice_changes_nothing(tmp_path):
    folder = checkout(tmp_path / "host")
    patch(folder)
    once, inodes = contents(folder), [path.stat().st_ino for path in sorted(folder.iterdir())]
    assert not patch(folder).changes
    assert contents(folder) == once
    assert [path.stat().st_ino for path in sorted(folder.iterdir())] == inodes


def test_unpatching_an_unpatched_checkout_changes_nothing(tmp_path):
    assert not unpatch(checkout(tmp_path / "host")).changes


def test_fedllm_bench_is_recognised_by_the_data_function_that_only_it_has(tmp_path):
    bench = checkout(tmp_path / "bench", main_sft=BENCH, main_dpo=BENCH.replace("_sft_", "_dpo_"))
    assert patch(bench).family == "FedLLM-Bench"
    assert plan_patch(checkout(tmp_path / "host")).family == "OpenFedLLM"
    assert (bench / "main_sft.py").read_text() == f"{COMPAT}\n" + BENCH.replace("import *\n", f"import *\n{HOOKS}\n")


def test_a_checkout_of_which_a_whole_file_was_restored_is_completed(tmp_path):
    folder = checkout(tmp_path / "host")
    patch(folder)
    whole = contents(folder)
    (folder / "main_sft.py").write_text(SFT)
    assert [script.name for script in patch(folder).scripts if script.changes] == ["main_sft.py"]
    assert contents(folder) == whole


def test_a_fork_without_one_entry_script_is_patched_without_it(tmp_path):
    assert patch(checkout(tmp_path / "sft", main_dpo=None)).absent == ("main_dpo.py",)
    assert patch(checkout(tmp_path / "dpo", main_sft=None)).absent == ("main_sft.py",)
    assert (tmp_path / "sft/main_sft.py").read_text() == PATCHED_SFT


def test_scripts_that_get_the_flags_but_not_the_hooks_are_told(tmp_path):
    folder = checkout(tmp_path / "host")
    (folder / "main_other.py").write_text("from config import settings\n")
    (folder / "helper.py").write_text("# from config import settings\n")
    assert plan_patch(folder).idle == ("main_other.py",)


BYTES = {
    "plain": SFT.encode(),
    "windows line ends": SFT.replace("\n", "\r\n").encode(),
    "old mac line ends": SFT.replace("\n", "\r").encode(),
    "mixed line ends": SFT.replace("\n", "\r\n", 3).encode(),
    "no line end at the end": SFT.rstrip("\n").encode(),
    "byte order mark": b"\xef\xbb\xbf" + SFT.encode(),
    "latin-1": b"# -*- coding: latin-1 -*-\n# caf\xe9\n" + SFT.encode(),
    "form feed": b"# page\n\x0c\n" + SFT.encode(),
    "utf-8": "# café ☕\n".encode() + SFT.encode(),
    "anchor on the last line": SFT.replace("from federated_learning import *\n", "").encode()
    + b"from federated_learning import *",
}


@pytest.mark.parametrize("data", BYTES.values(), ids=BYTES)
def test_unpatching_gives_every_byte_back(tmp_path, data):
    folder = checkout(tmp_path / "host", main_sft=data, config=CONFIG.rstrip("\n"))
    before = contents(folder)
    patch(folder)
    patched = (folder / "main_sft.py").read_bytes()
    assert patched != data
    ast.parse(patched)
    assert not plan_patch(folder).changes
    unpatch(folder)
    assert contents(folder) == before


@given(st.lists(st.sampled_from([b"a", b"# \xe9", b" ", b"\n", b"\r", b"\r\n", b"\x0c", b"\xef\xbb\xbf"])), st.data())
def test_a_line_added_anywhere_in_any_bytes_is_taken_out_without_a_trace(parts, choice):
    data = b"".join(parts)
    script = Script.of(data)
    index = choice.draw(st.integers(0, len(script.lines)))
    longer = Script.of(script.with_line(index, b"added").data)
    assert longer.text(index) == b"added"
    assert len(longer.lines) == len(script.lines) + 1
    assert longer.without([index]).data == data


def test_new_lines_end_as_their_neighbours_do(tmp_path):
    folder = checkout(tmp_path / "host", main_sft=SFT.replace("\n", "\r\n"))
    patch(folder)
    assert (folder / "main_sft.py").read_bytes() == PATCHED_SFT.replace("\n", "\r\n").encode()


def test_below_an_anchor_on_a_last_line_without_end_the_new_line_has_no_end_either(tmp_path):
    script = SFT.replace("from federated_learning import *\n", "") + "from federated_learning import *"
    folder = checkout(tmp_path / "host", main_sft=script)
    patch(folder)
    assert (folder / "main_sft.py").read_bytes().endswith(f"import *\n{HOOKS}".encode())


@pytest.mark.parametrize(
    ("head", "line"),
    [
        (b"", 1),
        (b"\xef\xbb\xbf", 1),
        (b"#!/usr/bin/env python\n", 2),
        (b"#!/usr/bin/env python\n# -*- coding: latin-1 -*-\n", 3),
        (b"\n# coding: latin-1\n", 3),
        (b"# licence\n\n# more\n", 4),
        (b'"""What it is for."""\n', 1),
    ],
)
def test_the_first_statement_goes_below_what_must_stay_at_the_top(tmp_path, head, line):
    folder = checkout(tmp_path / "host", main_sft=head + SFT.encode())
    plan = patch(folder)
    assert plan.scripts[1].lines[0] == (line, COMPAT)
    patched = (folder / "main_sft.py").read_bytes()
    assert patched.startswith(head if line > 1 else head.partition(b'"')[0])
    ast.parse(patched)


def test_a_script_that_is_no_python_any_more_can_be_unpatched(tmp_path):
    folder = checkout(tmp_path / "host", main_sft=f"{PATCHED_SFT}if:\n")
    unpatch(folder)
    assert (folder / "main_sft.py").read_text() == f"{SFT}if:\n"


def test_permissions_stay(tmp_path):
    folder = checkout(tmp_path / "host")
    (folder / "main_sft.py").chmod(0o750)
    patch(folder)
    assert (folder / "main_sft.py").stat().st_mode & 0o777 == 0o750
    unpatch(folder)
    assert (folder / "main_sft.py").stat().st_mode & 0o777 == 0o750


def test_unpatching_keeps_what_the_user_changed_since(tmp_path):
    folder = checkout(tmp_path / "host")
    patch(folder)
    path = folder / "main_sft.py"
    path.write_text(path.read_text().replace("range(3)", "range(5)") + "print('done')\n")
    unpatch(folder)
    assert path.read_text() == SFT.replace("range(3)", "range(5)") + "print('done')\n"


def test_an_anchor_inside_a_string_or_a_comment_is_none(tmp_path):
    script = '"""Do not write\nfrom federated_learning import *\nhere."""\n# from federated_learning import *\n' + SFT
    folder = checkout(tmp_path / "host", main_sft=script)
    assert patch(folder).scripts[1].lines[1] == (8, HOOKS)


def test_a_patch_file_whose_line_lost_its_marker_is_refused_by_name(tmp_path):
    for path in patches_folder().glob("*.yaml"):
        shutil.copy(path, tmp_path)
    path = tmp_path / "openfedllm.yaml"
    path.write_text(path.read_text().replace(f"hooks import *{MARK}", "hooks import *"))
    with pytest.raises(UserError, match=r"\.yaml: not a patch file: ValueError: a line does not end with"):
        load_families(tmp_path)
    path.write_text("- 1\n")
    with pytest.raises(UserError, match="not a patch file"):
        load_families(tmp_path)
    with pytest.raises(UserError, match=r"holds no patch files"):
        load_families(tmp_path / "none")


def test_both_families_add_the_same_lines_and_differ_in_the_data_function_alone():
    bench, general = load_families()
    assert (bench.name, general.name) == ("FedLLM-Bench", "OpenFedLLM")
    for name, script in general.scripts.items():
        assert bench.scripts[name].insertions == script.insertions
        assert set(bench.scripts[name].calls) ^ set(script.calls) <= {"split_dataset", "get_fed_datasets"}


def test_patching_imports_neither_torch_nor_transformers():
    code = "import sys, fedbias_plugin.hosts.openfedllm.patcher, fedbias_plugin.hosts.openfedllm.stack\n"
    code += "sys.exit(bool({'torch', 'transformers', 'trl'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_official_checkout_is_patched_and_given_back_byte_for_byte(tmp_path):
    home = os.environ.get("OPENFEDLLM_HOME")
    if not home:
        pytest.skip("OPENFEDLLM_HOME does not name an OpenFedLLM checkout")
    folder = tmp_path / "OpenFedLLM"
    shutil.copytree(home, folder, ignore=shutil.ignore_patterns(".git"))
    unpatch(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    plan = plan_patch(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    plan.write()
    assert [len(script.lines) for script in plan.scripts] == [1, 2, 2]
    changed = {path.name for path, data in before.items() if path.read_bytes() != data}
    assert changed == {"config.py", "main_sft.py", "main_dpo.py"}
    assert not plan_patch(folder).changes
    unpatch(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
