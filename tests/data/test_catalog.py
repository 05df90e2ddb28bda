import hashlib
import logging
from pathlib import Path

import pytest

from fedbias_plugin.data import catalog
from fedbias_plugin.data.catalog import (
    all_known,
    digest_verdict,
    find_known,
    known_datasets,
    locate,
    mini_files,
    mini_notice,
)
from fedbias_plugin.errors import UserError
from fedbias_plugin.files import cache_folder
from fedbias_plugin.known_dataset import DataFile

PAIRS = "crows_pairs/crows_pairs_anonymized.csv"


def put(folder: Path, name: str, content: str = "x") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def put_in_hub_cache(monkeypatch, folder: Path, hub_id: str, names: list[str]) -> list[Path]:
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    repository = folder / f"datasets--{hub_id.replace('/', '--')}"
    put(repository, "refs/main", "abc123\n")
    return [put(repository / "snapshots" / "abc123", name) for name in names]


@pytest.mark.usefixtures("mini")
def test_places_are_searched_in_the_documented_order(monkeypatch, tmp_path):
    given, environment = tmp_path / "given", tmp_path / "environment"
    monkeypatch.setenv("FEDBIAS_DATA", str(environment))
    expected = [
        ("data_dir", put(given, PAIRS)),
        ("FEDBIAS_DATA", put(environment, PAIRS)),
        ("fetched", put(cache_folder(), PAIRS)),
    ]
    for origin, path in expected:
        found = locate("crows_pairs", given)
        assert (found.origin, found.path) == (origin, path)
        path.unlink()
    assert locate("crows_pairs", given).origin == "bundled"


@pytest.mark.usefixtures("mini")
def test_the_hub_cache_comes_after_the_folders_and_before_the_mini_data(monkeypatch, tmp_path):
    [cached, _] = put_in_hub_cache(
        monkeypatch, tmp_path / "hub", "vicgalle/alpaca-gpt4", ["data/train-0.json", "README.md"]
    )
    found = locate("auto", kind="clean")
    assert (found.name, found.origin, found.paths) == ("alpaca-gpt4", "hub cache", (cached,))
    put(cache_folder(), "alpaca/alpaca_gpt4_data.json")
    assert locate("auto", kind="clean").origin == "fetched"


def test_only_training_files_of_one_format_are_taken_from_the_hub_cache(monkeypatch, tmp_path):
    names = ["train-00000.parquet", "train-00001.parquet", "test-00000.parquet"]
    paths = put_in_hub_cache(monkeypatch, tmp_path, "some/rows", names)
    found = locate("some/rows", kind="clean")
    assert (found.origin, found.paths) == ("hub cache", tuple(paths[:2]))
    put_in_hub_cache(monkeypatch, tmp_path, "some/mixture", ["train.csv", "train.json"])
    assert locate("some/mixture", kind="clean").origin == "hub"


def test_auto_falls_back_on_the_mini_data_and_says_so_to_who_debugs(mini, caplog):
    caplog.set_level(logging.DEBUG)
    for kind, file in (("clean", "clean.jsonl"), ("biased", "biased.jsonl")):
        found = locate("auto", kind=kind)
        assert (found.name, found.origin, found.path) == (f"mini-{kind}", "bundled", mini / file)
        assert found.sha256 == hashlib.sha256((mini / file).read_bytes()).hexdigest()
    assert [record.getMessage() for record in caplog.records] == [
        "alpaca-gpt4 is not on this machine: using the bundled mini data (fedbias data fetch alpaca-gpt4)",
        "biasdpo is not on this machine: using the bundled mini data (fedbias data fetch biasdpo)",
    ]


def test_mini_as_the_data_dir_means_the_bundled_data_for_everything(mini, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("FEDBIAS_DATA", str(tmp_path))
    put(tmp_path, PAIRS)
    assert locate("crows_pairs", "mini").path == mini / "crows_pairs.csv"
    assert locate("stereoset", "mini").path == mini / "stereoset.json"
    assert locate("auto", "mini", kind="biased").origin == "bundled"
    assert not caplog.records
    assert locate("dolly", "mini").origin == "bundled"
    assert "take the place of dolly" in caplog.text


def test_a_missing_asset_is_an_error_and_not_a_crash(monkeypatch, tmp_path):
    monkeypatch.setattr(catalog, "MINI_DATA", tmp_path)
    with pytest.raises(UserError, match=r"incomplete.*install the package again"):
        locate("mini", kind="clean")


@pytest.mark.parametrize("name", ["alpaca-gpt4", "vicgalle/alpaca-gpt4", "Alpaca-GPT4"])
def test_a_named_data_set_that_is_not_here_comes_from_the_hub_and_never_from_the_mini_data(name):
    found = locate(name, kind="clean")
    assert (found.name, found.origin, found.hub_id, found.paths) == ("alpaca-gpt4", "hub", "vicgalle/alpaca-gpt4", ())
    with pytest.raises(UserError, match="fedbias data fetch alpaca-gpt4"):
        _ = found.path


def test_any_hub_name_and_any_file_can_be_given(tmp_path):
    assert locate("owner/rows", kind="biased").hub_id == "owner/rows"
    path = put(tmp_path, "mine.csv")
    found = locate(str(path), kind="crows_pairs")
    assert (found.name, found.kind, found.origin, found.path) == ("mine.csv", "crows_pairs", "file", path)


def test_a_data_set_in_parts_is_found_only_when_all_parts_are_there(tmp_path):
    parts = [put(tmp_path, f"dolly_fed10/local_training_{part}.json") for part in range(9)]
    assert locate("dolly", tmp_path).origin == "hub"
    parts.append(put(tmp_path, "dolly_fed10/local_training_9.json"))
    assert locate("dolly", tmp_path).paths == tuple(parts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("alpca", None, "clean"), r"neither a known name \(alpaca-gpt4, .*Did you mean 'alpaca'"),
        (("crows_pairs", None, "clean"), "crows_pairs holds crows_pairs data.*never train on it"),
        (("alpaca", None, "biased"), "alpaca holds clean data, but biased data are wanted"),
        (("nowhere/rows.json", None, "clean"), "nowhere/rows.json: there is no such file"),
        (("crows_pairs", "no_such_folder"), "--data_dir names the folder no_such_folder, which does not exist"),
        (("auto",), "kind of data None is unknown"),
        (("owner/pairs", None, "crows_pairs"), "neither a known name"),
    ],
)
def test_a_name_that_leads_nowhere_says_what_would(arguments, message):
    with pytest.raises(UserError, match=message):
        locate(*arguments)


def test_a_folder_or_an_unknown_format_as_a_data_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="is a folder; name the file in it"):
        locate(str(tmp_path), kind="clean")
    with pytest.raises(UserError, match="suffix"):
        locate(str(put(tmp_path, "rows.txt")), kind="clean")


def test_a_data_folder_in_the_environment_that_does_not_exist_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDBIAS_DATA", str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"FEDBIAS_DATA names the folder .*gone, which does not exist"):
        locate("crows_pairs")


def test_a_file_that_is_not_the_known_release_is_used_with_a_warning(tmp_path, caplog):
    path = put(tmp_path, PAIRS, "something else")
    assert locate("crows_pairs", tmp_path).path == path
    assert "differs from the known release of CrowS-Pairs" in caplog.text


def test_either_digest_on_record_makes_a_known_release(tmp_path):
    path = put(tmp_path, "a", "hello\n")
    sha256 = hashlib.sha256(b"hello\n").hexdigest()
    blob = "ce013625030ba8dba906f756967f9e9ca394464a"
    assert digest_verdict(DataFile("a", sha256=("0" * 64, sha256)), path) is True
    assert digest_verdict(DataFile("a", sha256=("0" * 64,), git_blob=(blob,)), path) is True
    assert digest_verdict(DataFile("a", sha256=("0" * 64,), git_blob=("0" * 40,)), path) is False
    assert digest_verdict(DataFile("a"), path) is None


def test_every_known_data_set_is_described_completely():
    for known in known_datasets().values():
        assert known.kind in mini_files()
        assert known.licence
        assert known.home
        assert known.rows > 0
        form = known.fetched_form
        assert form is not None
        assert form.url if len(form.files) == 1 else all(file.url for file in form.files)
        assert find_known(known.name) is known
    assert len({known.name for known in all_known()}) == len(known_datasets()) + len(mini_files())
    assert "Blodgett" in known_datasets()["crows_pairs"].warning


def test_one_line_tells_the_user_about_mini_data():
    assert mini_notice({"clean": "data_dir", "stereoset": "fetched"}) is None
    notice = str(mini_notice({"clean": "data_dir", "biased": "bundled", "stereoset": "bundled"}))
    assert "bundled mini data (an invented world) for biased, stereoset;" in notice


@pytest.mark.parametrize("kind", mini_files())
def test_the_package_brings_mini_data_of_every_kind(kind):
    if not catalog.MINI_DATA.is_dir():
        pytest.skip("this checkout has no bundled mini data")
    found = locate("mini", kind=kind)
    assert (found.name, found.origin) == (f"mini-{kind}", "bundled")
