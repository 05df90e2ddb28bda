"""``fedbias patch`` and ``fedbias unpatch``: what they print, their exit codes, and how the patches are shipped."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import fedbias_plugin
from fedbias_plugin.cli.main import main
from fedbias_plugin.hosts.openfedllm import inspection
from tests.hosts.openfedllm.patching_fixtures import BENCH, CONFIG, LINE, OLD_FLAGS, SFT, checkout, contents

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def libraries(monkeypatch):
    """Pretend to have current libraries; the test may change the versions."""
    versions = {"trl": "1.16.0", "transformers": "5.23.0"}
    monkeypatch.setattr("importlib.metadata.version", versions.__getitem__)
    return versions


def test_patch_prints_the_lines_the_family_the_libraries_and_what_to_type_next(tmp_path, capsys):
    folder = checkout(tmp_path / "my host")
    assert main(["patch", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}: a checkout of the OpenFedLLM family",
        f"main_sft.py:1: added: {LINE}",
        f"main_dpo.py:1: added: {LINE}",
        "This Python has the current stack: trl 1.16.0, transformers 5.23.0",
        "Patched.",
        f"Next:    cd '{folder}' && python main_sft.py ... --aggregation bama",
        f"Undo it: fedbias unpatch '{folder}'",
    ]


def test_patching_twice_says_that_nothing_was_changed(tmp_path, capsys):
    folder = checkout(tmp_path / "host")
    main(["patch", str(folder)])
    capsys.readouterr()
    assert main(["patch", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "Patched already; nothing was changed." in out
    assert out.count(": there already: ") == 2


def test_the_lines_of_an_earlier_version_are_said_to_go(tmp_path, capsys):
    config = CONFIG.replace("parser = Hf", f"{OLD_FLAGS}\nparser = Hf")
    assert main(["patch", str(checkout(tmp_path / "host", config=config))]) == 0
    assert f": removed: {OLD_FLAGS}\n" in capsys.readouterr().out


def test_check_tells_and_writes_nothing(tmp_path, capsys):
    folder = checkout(tmp_path / "host")
    before = contents(folder)
    assert main(["patch", str(folder), "--check"]) == 0
    assert contents(folder) == before
    out = capsys.readouterr().out
    assert f"main_sft.py:1: would be added: {LINE}" in out
    assert out.endswith(f"Not patched. It can be: fedbias patch {folder}\n")
    main(["patch", str(folder)])
    (folder / "main_sft.py").write_text(SFT)
    capsys.readouterr()
    assert main(["patch", "--check", str(folder)]) == 0
    out = capsys.readouterr().out
    assert (out.count("would be added"), out.count("there already")) == (1, 1)


@pytest.mark.parametrize("flags", [[], ["--check"]])
def test_a_checkout_that_cannot_be_patched_is_exit_code_2_with_the_reason(tmp_path, capsys, flags):
    folder = checkout(tmp_path / "host", config="import hydra\n")
    assert main(["patch", str(folder), *flags]) == 2
    assert f"fedbias: error: {folder} cannot be patched; nothing was changed.\n" in capsys.readouterr().err


def test_the_exit_codes_are_in_the_help(capsys):
    for command, code in (("patch", "2 when it cannot be"), ("unpatch", "2 when one of its lines")):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert code in " ".join(capsys.readouterr().out.split())


def test_absent_and_other_scripts_are_told(tmp_path, capsys):
    folder = checkout(tmp_path / "host", main_sft=None)
    (folder / "main_other.py").write_text("from config import settings\n")
    main(["patch", str(folder)])
    out = capsys.readouterr().out
    assert "Note: main_sft.py: not in this checkout\n" in out
    assert "Note: not patched, and without the plugin's flags: main_other.py\n" in out
    assert "python main_dpo.py ... --aggregation bama" in out


def test_the_family_is_named(tmp_path, capsys):
    main(["patch", str(checkout(tmp_path / "host", main_sft=BENCH, main_dpo=None))])
    assert "a checkout of the FedLLM-Bench family" in capsys.readouterr().out


def test_libraries_that_do_not_fit_are_a_warning_not_an_error(tmp_path, capsys, libraries):
    folder = str(checkout(tmp_path / "host"))
    libraries["trl"] = "0.20.0"
    assert main(["patch", folder]) == 0
    out = capsys.readouterr().out
    assert "Warning: this Python has trl 0.20.0, transformers 5.23.0: not known to work together." in out
    assert "trl 1.16 with transformers 5.23 (constraints.txt)" in out
    libraries.update(trl="0.7.2", transformers="4.31.0")
    main(["patch", folder])
    assert "This Python has the pinned stack: trl 0.7.2, transformers 4.31.0" in capsys.readouterr().out


def test_unpatch_prints_what_it_removed_and_the_second_time_that_there_is_nothing(tmp_path, capsys):
    folder = checkout(tmp_path / "host")
    before = contents(folder)
    main(["patch", str(folder)])
    capsys.readouterr()
    assert main(["unpatch", str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"main_sft.py:1: removed: {LINE}\n" in out
    assert out.endswith(f"{folder}: unpatched.\n")
    assert contents(folder) == before
    assert main(["unpatch", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}: holds no line of the plugin; nothing to do.\n"


def test_unpatch_leaves_lines_that_hold_more_with_exit_code_2(tmp_path, capsys):
    folder = checkout(tmp_path / "host", main_sft=f"x = 1; {LINE}\n{SFT}")
    before = contents(folder)
    assert main(["unpatch", str(folder)]) == 2
    assert "main_sft.py: the plugin's statement shares a line, or stands alone in a block: take out line 1" in (
        capsys.readouterr().err
    )
    assert contents(folder) == before


def test_a_missing_patch_file_says_that_the_installation_is_incomplete(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inspection, "REQUIREMENTS", "gone.yaml")
    assert main(["patch", str(checkout(tmp_path / "host"))]) == 2
    assert "gone.yaml is neither in" in capsys.readouterr().err


def test_doctor_says_what_a_checkout_is_and_what_of_it_will_run(tmp_path, capsys):
    folder = checkout(tmp_path / "host", main_sft=SFT.replace("global_aggregate(", "my_own("))
    (folder / ".git/refs/heads").mkdir(parents=True)
    (folder / ".git/config").write_text('[remote "origin"]\n\turl = git@github.com:someone/OpenFedLLM.git\n')
    (folder / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (folder / ".git/refs/heads/main").write_text("14c6af2" + "0" * 33 + "\n")
    assert main(["doctor", str(folder)]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:5] == [
        str(folder),
        "ok  someone/OpenFedLLM at 14c6af2",
        "ok  a checkout of the OpenFedLLM family",
        "--  not patched, or by an earlier version",
        f"fedbias patch {folder}",
    ]
    assert "ok  main_dpo.py: DPO has all that the plugin needs to poison, measure and weigh" in lines
    assert any(line.startswith("--  main_sft.py: not patched: it uses no global_aggregate;") for line in lines)
    main(["patch", str(folder)])
    assert main(["doctor", str(folder)]) == 0
    assert "  ok  patched\n" in capsys.readouterr().out
    (folder / "config.py").write_text("import hydra\n")
    assert main(["doctor", str(folder)]) == 1
    assert "config.py makes no HfArgumentParser (Hydra?)" in capsys.readouterr().out


def test_the_setup_script_ships_the_patches_and_knows_the_extra():
    source = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert '"fedbias_plugin.patches": "patches"' in source
    assert re.search(r'"openfedllm": \["trl>=0\.7\.2", "tqdm", "sentencepiece"\]', source)


def package_under(monkeypatch, *version):
    """Execute the package's first file as that version of Python would, and give its names."""
    monkeypatch.setitem(sys.modules, "sys", SimpleNamespace(version_info=version, executable="/old/python"))
    path = Path(fedbias_plugin.__file__)
    names: dict[str, object] = {}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    return names


@pytest.mark.parametrize("version", [(3, 6, 15), (3, 9, 18)])
def test_an_old_python_is_refused_by_name(monkeypatch, version):
    found = rf"needs Python 3\.10 or newer; this is Python 3\.{version[1]} \(/old/python\)"
    with pytest.raises(ImportError, match=found):
        package_under(monkeypatch, *version)


def test_python_3_10_is_good_enough(monkeypatch):
    assert package_under(monkeypatch, 3, 10, 0)["__version__"] == fedbias_plugin.__version__


def test_the_packages_first_file_is_valid_syntax_for_an_old_python():
    import ast

    ast.parse(Path(fedbias_plugin.__file__).read_text(encoding="utf-8"), feature_version=(3, 6))
