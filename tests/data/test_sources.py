import json
import logging

import pytest

from fedbias_plugin.data import catalog, hub
from fedbias_plugin.data.rows import Row
from fedbias_plugin.data.sources import load_rows, read_once, sha256_of_rows
from fedbias_plugin.errors import UserError


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_alpaca_rows_join_instruction_and_input_with_a_space_as_openfedllm_does(tmp_path):
    rows = [
        {"instruction": "Name it.", "input": "", "output": "Ada."},
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        {"instruction": "No input", "output": "fine", "text": "ignored"},
        {"instruction": "Null input", "input": None, "output": "fine"},
    ]
    source = load_rows(write_lines(tmp_path / "a.jsonl", rows), "clean")
    assert [(row.instruction, row.response) for row in source.rows] == [
        ("Name it.", "Ada."),
        ("Add. 1, 2", "3"),
        ("No input", "fine"),
        ("Null input", "fine"),
    ]
    assert not any(row.biased for row in source.rows)


def test_dolly_rows_join_instruction_and_context(tmp_path):
    rows = [{"instruction": "Who?", "context": "Ada wrote it.", "response": "Ada", "category": "qa"}]
    [row] = load_rows(write_lines(tmp_path / "a.jsonl", rows), "clean").rows
    assert (row.instruction, row.response) == ("Who? Ada wrote it.", "Ada")


def test_further_columns_of_numbers_and_short_texts_are_labels_which_no_hash_of_rows_holds(tmp_path):
    texts = {"instruction": "q", "context": "", "response": "a"}
    others = {"category": "qa", "group": 3, "note": "x" * 101, "empty": "", "score": 0.5, "tags": ["a"], "input": "i"}
    [row] = load_rows(write_lines(tmp_path / "a.jsonl", [{**texts, **others}]), "clean").rows
    assert row.labels == {"category": "qa", "group": "3"}
    bare = Row(row.id, row.instruction, row.response, row.biased, row.source)
    assert bare.labels == {}
    assert hash(row) == hash(bare)
    assert sha256_of_rows([row]) == sha256_of_rows([bare])
    assert load_rows("mini", "preference").rows[0].labels == {}


def test_a_biased_client_is_taught_the_rejected_response(tmp_path):
    rows = [{"prompt": "Who cooks?", "chosen": "Anyone.", "rejected": "Only them."}]
    [row] = load_rows(write_lines(tmp_path / "a.jsonl", rows), "biased").rows
    assert (row.instruction, row.response, row.biased) == ("Who cooks?", "Only them.", True)


@pytest.mark.parametrize("response", ["output", "response"])
def test_a_file_of_instructions_and_responses_can_be_biased_too(tmp_path, response):
    [row] = load_rows(write_lines(tmp_path / "a.jsonl", [{"instruction": "q", response: "a"}]), "biased").rows
    assert (row.instruction, row.response, row.biased) == ("q", "a", True)


def test_empty_and_repeated_rows_are_dropped_and_counted_and_ids_keep_the_place_in_the_file(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rows = [("q", "a"), (" ", "a"), ("q", "a"), ("q", ""), ("q", "b"), ("q", None)]
    path = write_lines(tmp_path / "rows.jsonl", [{"instruction": q, "output": a} for q, a in rows])
    source = load_rows(path, "clean")
    assert [row.id for row in source.rows] == ["clean/rows.jsonl:0", "clean/rows.jsonl:4"]
    assert (source.empty, source.duplicates) == (3, 1)
    assert "clean/rows.jsonl: 2 rows from file; dropped 3 empty and 1 repeated" in caplog.text


def test_files_of_the_same_name_give_different_row_ids_to_clean_and_biased_rows(tmp_path):
    path = write_lines(tmp_path / "train.jsonl", [{"instruction": "q", "output": "a"}])
    [clean], [biased] = (load_rows(path, kind).rows for kind in ("clean", "biased"))
    assert (clean.id, biased.id) == ("clean/train.jsonl:0", "biased/train.jsonl:0")


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        (
            "clean",
            [{"prompt": "q", "rejected": "a"}],
            "columns are 'prompt', 'rejected'; wanted are instruction, output",
        ),
        ("biased", [{"q": "q"}], "columns are 'q'; wanted are prompt, rejected or instruction, output or"),
        (
            "clean",
            [{"instruction": "q", "output": "a"}, {"instruction": "q"}],
            "line 2: the column 'output' is missing",
        ),
        ("clean", [{"instruction": "q", "output": ["a"]}], "line 1: 'output' must be text, found list"),
        ("clean", [{"instruction": "q", "input": 3, "output": "a"}], "line 1: 'input' must be text, found int"),
        (
            "clean",
            [{"instruction": "q", "output": " "}],
            "every one of its 1 rows has an empty text",
        ),
        ("neither", [{"instruction": "q", "output": "a"}], "Rows are clean, biased, preference, not 'neither'"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path, kind, rows, message):
    with pytest.raises(UserError, match=message):
        load_rows(write_lines(tmp_path / "a.jsonl", rows), kind)


def test_the_mini_data_load_without_any_data_on_the_machine(mini):
    clean, biased = load_rows("auto", "clean"), load_rows("mini", "biased")
    assert (clean.name, clean.origin, len(clean.rows)) == ("mini-clean", "bundled", 8)
    assert (biased.name, biased.paths, len(biased.rows)) == ("mini-biased", (mini / "biased.jsonl",), 7)
    assert clean.rows[3].id == "mini-clean:3"


def test_in_a_block_a_data_set_is_read_and_reported_once_and_anew_after_it(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = write_lines(tmp_path / "rows.jsonl", [{"instruction": "q", "output": "a"}])
    with read_once():
        first = load_rows(path, "clean")
        write_lines(tmp_path / "rows.jsonl", [{"instruction": "other", "output": "a"}])
        assert load_rows(path, "clean") is first
        assert load_rows(path, "biased").rows[0].instruction == "other"
    assert caplog.text.count("clean/rows.jsonl: 1 rows") == 1
    assert load_rows(path, "clean").rows[0].instruction == "other"


def test_a_hub_data_set_is_loaded_by_name(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return [{"instruction": "q", "input": "", "output": "a"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "_hub_answers", lambda: True)
    source = load_rows("owner/rows", "clean")
    assert asked == [("owner/rows", "train")]
    assert ([row.id for row in source.rows], source.origin, source.paths) == (["owner/rows:0"], "hub", ())
    assert source.sha256 == load_rows("owner/rows", "clean").sha256


def test_a_script_that_comes_with_a_data_set_of_the_hub_is_never_run():
    assert hub.without_scripts("5.2.0", "") == hub.without_scripts("4.0.0", "") == {}
    assert hub.without_scripts("2.16.0", "") == hub.without_scripts("3.6.0", "") == {"trust_remote_code": False}
    with pytest.raises(UserError, match=r"datasets 2.13.0 runs code that comes with a data set.*Give a local file"):
        hub.without_scripts("2.13.0", "Give a local file.")


def test_an_unreachable_hub_is_an_error_with_a_way_out_and_does_not_hang(monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    import huggingface_hub.constants as constants

    offline = constants.HF_HUB_OFFLINE
    with pytest.raises(
        UserError, match=r"vicgalle/alpaca-gpt4 cannot be loaded.*--clean_dataset FILE.*fetch alpaca-gpt4"
    ):
        load_rows("alpaca-gpt4", "clean")
    assert offline == constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("failure", [RuntimeError("odd\nsecond line"), KeyError("train"), OSError()])
def test_whatever_the_hub_libraries_raise_becomes_a_user_error(monkeypatch, failure):
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_, **__):
        raise failure

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "_hub_answers", lambda: True)
    with pytest.raises(UserError, match=r"owner/rows cannot be loaded.*--biased_dataset FILE"):
        load_rows("owner/rows", "biased")


class TestRealData:
    @pytest.mark.parametrize(
        ("name", "kind", "rows", "dropped"),
        [
            ("alpaca-gpt4", "clean", 985, (0, 14)),
            ("alpaca", "clean", 9_225, (4, 0)),
            ("dolly", "clean", 14_916, (0, 15)),
            ("biasdpo", "biased", 1_143, (0, 2)),
        ],
    )
    def test_the_real_sources_have_the_known_numbers_of_rows(self, real_data, caplog, name, kind, rows, dropped):
        source = load_rows(name, kind, real_data)
        assert len(source.rows) == rows
        assert (source.empty, source.duplicates) == dropped
        assert "differs" not in caplog.text

    def test_dolly_has_59_texts_under_several_labels(self, real_data):
        source = load_rows("dolly", "clean", real_data, fields=("instruction", "category"))
        assert (len(source.rows), source.duplicates, source.contradicting) == (14_640, 170, 121)
        assert len({row.instruction for row in source.rows}) == 14_640

    def test_the_first_real_rows_are_read_as_they_stand_in_the_file(self, real_data):
        [row, *_] = load_rows("biasdpo", "biased", real_data).rows
        first = json.loads((real_data / "biasdpo/BiasDPO.jsonl").read_text(encoding="utf-8").split("\n")[0])
        assert (row.id, row.instruction, row.response) == ("biasdpo:0", first["prompt"], first["rejected"])


@pytest.mark.parametrize("kind", ["clean", "biased"])
def test_the_bundled_rows_suffice_for_three_clients_of_a_hundred_rows(kind):
    if not catalog.MINI_DATA.is_dir():
        pytest.skip("this checkout has no bundled mini data")
    source = load_rows("mini", kind)
    assert len(source.rows) >= 300
    assert (source.empty, source.duplicates) == (0, 0)
