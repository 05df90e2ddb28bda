"""Atomic writes and strict JSON."""

import json
import os
from enum import Enum
from pathlib import Path

import numpy as np
import pytest

from fedbias_plugin import files
from fedbias_plugin.files import plain_json, write_json_atomic, write_text_atomic


def test_numpy_numbers_arrays_paths_tuples_and_sets_become_plain_json() -> None:
    value = {
        1: np.float32(0.5), "n": np.int64(3), "flag": np.bool_(True), "a": np.array([1.0, 2.0]), "p": Path("x/y"),
        "t": (1, 2), "s": {"b", "a"}, "none": None,
    }  # fmt: skip
    plain, lost = plain_json(value)
    assert plain == {
        "1": 0.5, "n": 3, "flag": True, "a": [1.0, 2.0], "p": "x/y", "t": [1, 2], "s": ["a", "b"], "none": None,
    }  # fmt: skip
    assert lost == []
    assert json.loads(json.dumps(plain)) == plain


def test_numbers_that_are_not_finite_become_null_and_are_named() -> None:
    plain, lost = plain_json({"a": [1.0, float("nan")], "b": {"c": float("-inf")}, "d": np.float64("inf")})
    assert plain == {"a": [1.0, None], "b": {"c": None}, "d": None}
    assert lost == ["a/1", "b/c", "d"]


def test_an_enum_of_text_is_written_as_its_text() -> None:
    class Mode(str, Enum):
        ON = "online"

    assert json.dumps(plain_json({"mode": Mode.ON})[0]) == '{"mode": "online"}'


def test_a_value_without_json_form_is_refused_by_its_path() -> None:
    with pytest.raises(TypeError, match="a/0 is a object"):
        plain_json({"a": [object()]})


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    write_text_atomic(path, "old")

    def broken(source: object, target: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["summary.json"]


def test_the_content_is_on_the_disk_before_the_name_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(files.os, "replace", lambda a, b: (calls.append("replace"), replace(a, b))[1])
    write_text_atomic(tmp_path / "new" / "file", "text")
    assert calls[:2] == ["fsync", "replace"]
    assert (tmp_path / "new" / "file").read_text() == "text"


def test_a_new_file_gets_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_text_atomic(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_nothing_is_written_when_a_value_has_no_json_form(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json_atomic(tmp_path / "x.json", {"a": object()})
    assert os.listdir(tmp_path) == []


def test_json_files_are_strict_utf8_and_warn_of_nan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_json_atomic(tmp_path / "x.json", {"ä": float("nan")})
    assert (tmp_path / "x.json").read_bytes() == '{\n  "ä": null\n}\n'.encode()
    assert "not finite, written as null: ä" in caplog.text
