"""Patching a checkout: which line goes where, and that unpatching gives every byte back."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbias_plugin.hosts.openfedllm.inspection import Requirements
from fedbias_plugin.hosts.openfedllm.lines import with_line, without_plugin
from fedbias_plugin.hosts.openfedllm.patcher import plan_patch
from tests.hosts.openfedllm.patching_fixtures import (
    BENCH,
    CONFIG,
    LINE,
    OLD_COMPAT,
    OLD_FLAGS,
    OLD_HOOKS,
    PATCHED_SFT,
    SERVER,
    SFT,
    checkout,
    contents,
    patch,
    unpatch,
)


def test_each_script_gets_exactly_the_documented_line_and_config_py_nothing(tmp_path):
    folder = checkout(tmp_path / "host")
    patch(folder)
    assert (folder / "config.py").read_text() == CONFIG
    assert (folder / "main_sft.py").read_text() == PATCHED_SFT
    assert (folder / "main_dpo.py").read_text() == PATCHED_SFT.replace("_sft_", "_dpo_")
    assert Requirements.load().line == LINE


def test_the_plan_gives_each_line_with_its_number_and_writes_nothing(tmp_path):
    folder = checkout(tmp_path / "host")
    before = contents(folder)
    plan = plan_patch(folder)
    assert {script.name: script.lines for script in plan.scripts} == {
        "main_sft.py": ((1, LINE),),
        "main_dpo.py": ((1, LINE),),
    }
    assert plan.changes
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
    assert (bench / "main_sft.py").read_text() == f"{LINE}\n{BENCH}"


def test_a_script_that_was_restored_is_completed(tmp_path):
    folder = checkout(tmp_path / "host")
    patch(folder)
    whole = contents(folder)
    (folder / "main_sft.py").write_text(SFT)
    assert [script.name for script in patch(folder).scripts if script.changes] == ["main_sft.py"]
    assert contents(folder) == whole


def test_a_checkout_patched_by_an_earlier_version_is_brought_up_to_date(tmp_path):
    config = CONFIG.replace("parser = Hf", f"{OLD_FLAGS}\nparser = Hf")
    old = f"{OLD_COMPAT}\n" + SFT.replace("import *\n", f"import *\n{OLD_HOOKS}\n")
    folder = checkout(tmp_path / "host", config=config, main_sft=old)
    patch(folder)
    assert (folder / "config.py").read_text() == CONFIG
    assert (folder / "main_sft.py").read_text() == PATCHED_SFT
    (folder / "config.py").write_text(config)
    (folder / "main_sft.py").write_text(old)
    unpatch(folder)
    assert (folder / "config.py").read_text() == CONFIG
    assert (folder / "main_sft.py").read_text() == SFT


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
}


@pytest.mark.parametrize("data", BYTES.values(), ids=BYTES)
def test_unpatching_gives_every_byte_back(tmp_path, data):
    folder = checkout(tmp_path / "host", main_sft=data)
    before = contents(folder)
    patch(folder)
    patched = (folder / "main_sft.py").read_bytes()
    assert patched != data
    ast.parse(patched)
    assert not plan_patch(folder).changes
    unpatch(folder)
    assert contents(folder) == before


@given(st.lists(st.sampled_from([b"a = 1", b"# \xe9", b"'x'", b" ", b"\n", b"\r", b"\r\n", b"\x0c", b"\xef\xbb\xbf"])))
def test_a_line_added_to_any_script_is_taken_out_without_a_trace(parts):
    data = b"".join(parts)
    try:
        ast.parse(data)
        longer = with_line(data, LINE)
    except SyntaxError:
        return
    kept, lines = without_plugin(longer)
    assert [text for _, text in lines] == [LINE]
    assert kept.rstrip(b"\r\n") == data.rstrip(b"\r\n")
    if data.endswith((b"\n", b"\r")):
        assert kept == data


def test_the_new_line_ends_as_the_script_s_lines_do(tmp_path):
    folder = checkout(tmp_path / "host", main_sft=SFT.replace("\n", "\r\n"))
    patch(folder)
    assert (folder / "main_sft.py").read_bytes() == PATCHED_SFT.replace("\n", "\r\n").encode()


@pytest.mark.parametrize(
    ("head", "line"),
    [
        (b"", 1),
        (b"\xef\xbb\xbf", 1),
        (b"#!/usr/bin/env python\n", 2),
        (b"#!/usr/bin/env python\n# -*- coding: latin-1 -*-\n", 3),
        (b"\n# coding: latin-1\n", 3),
        (b'"""What it is for."""\n', 2),
        (b'"""What\nit is for."""\n\n# licence\nfrom __future__ import annotations\n', 6),
        (b"from __future__ import (\n    annotations,\n)\n", 4),
    ],
)
def test_the_line_goes_below_what_must_stay_at_the_top(tmp_path, head, line):
    folder = checkout(tmp_path / "host", main_sft=head + SFT.encode())
    plan = patch(folder)
    assert plan.scripts[0].lines == ((line, LINE),)
    patched = (folder / "main_sft.py").read_bytes()
    assert patched == head + LINE.encode() + b"\n" + SFT.encode()
    assert ast.get_docstring(ast.parse(patched)) == ast.get_docstring(ast.parse(head))
    unpatch(folder)
    assert (folder / "main_sft.py").read_bytes() == head + SFT.encode()


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
    shutil.copy(path, folder / "main_mine.py")
    assert not patch(folder).changes  # a copy keeps the line
    unpatch(folder)
    assert path.read_text() == SFT.replace("range(3)", "range(5)") + "print('done')\n"
    assert (folder / "main_mine.py").read_text() == path.read_text()


@pytest.mark.parametrize("old", [False, True], ids=["this version", "an earlier version"])
def test_a_formatter_and_a_sorter_of_imports_do_not_get_in_the_way(tmp_path, old):
    """ruff format, ruff check --select I,F401 --fix with narrow lines: all but the plugin's statements stays."""
    pytest.importorskip("ruff", reason="the formatter is not installed beside the pinned libraries")
    docstring = '"""A script."""\n'
    folder = checkout(tmp_path / "host", main_sft=docstring + SFT)
    patch(folder)
    if old:
        (folder / "config.py").write_text(CONFIG.replace("parser = Hf", f"{OLD_FLAGS}\nparser = Hf"))
        (folder / "main_sft.py").write_text(docstring + OLD_COMPAT + "\n" + SFT.replace("*\n", f"*\n{OLD_HOOKS}\n"))
    plain = checkout(tmp_path / "plain", main_sft=docstring + SFT)
    for place in (folder, plain):
        ruff = [sys.executable, "-m", "ruff"]
        quiet = ["--isolated", "--line-length", "60", "-q", str(place)]
        fixed = [*ruff, "check", "--fix", "--select", "I,F401", "--exit-zero", *quiet]
        if old and place is folder:
            fixed = [*ruff, "check", "--fix", "--select", "I", "--exit-zero", *quiet]
        subprocess.run(fixed, check=True)
        subprocess.run([*ruff, "format", *quiet], check=True)
    assert "fedbias_plugin" in (folder / "main_sft.py").read_text()
    unpatch(folder)
    for name in ("config.py", "main_sft.py"):
        left = (folder / name).read_text()
        assert "fedbias" not in left
        assert "extend_arguments" not in left
        if not old or name == "config.py":
            assert ast.dump(ast.parse(left)) == ast.dump(ast.parse((plain / name).read_text()))


def test_a_line_that_a_sorter_has_moved_is_put_back(tmp_path):
    folder = checkout(tmp_path / "host", main_sft=SFT.replace("import trl\n", f"import trl\n{LINE}\n"))
    plan = patch(folder)
    assert [script.is_moved for script in plan.scripts] == [True, False]
    assert (folder / "main_sft.py").read_text() == PATCHED_SFT


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
    assert [len(script.lines) for script in plan.scripts] == [1, 1]
    changed = {path.name for path, data in before.items() if path.read_bytes() != data}
    assert changed == {"main_sft.py", "main_dpo.py"}
    assert not plan_patch(folder).changes
    unpatch(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_what_the_run_will_find_is_told_with_the_plan(tmp_path):
    config = CONFIG.replace('    fed_alg: str = "fedavg"\n', '    fed_alg: str = "fedavg"\n    attack: str = "none"\n')
    function = "".join(f"    {line}\n" for line in SFT.splitlines() if "import" not in line)
    script = f"import trl\nfrom federated_learning import *\ndef main():\n{function}main()\n"
    server = f"import no_such_package\n{SERVER}"
    folder = checkout(tmp_path / "host", server=server, config=config, main_sft=script, main_dpo=None)
    (folder / "main_other.py").write_text("from config import settings\n")
    (folder / "helper.py").write_text("# from config import settings\n")
    assert plan_patch(folder).notes == (
        "main_dpo.py: not in this checkout",
        "not patched, and without the plugin's flags: main_other.py",
        "this host has --attack of its own: the plugin's is --fedbias_attack here",
        "cannot run with this Python, which lacks modules that this host imports: no_such_package",
        "main_sft.py: its rounds run in a function, so that a run cannot be resumed",
    )
