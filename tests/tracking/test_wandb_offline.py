"""A whole run, offline: what W&B wrote is read back, and holds everything that ``wandb sync`` is to upload."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fedbias_plugin.cli.main import main
from fedbias_plugin.tracking.flatten import flatten_record
from fedbias_plugin.tracking.jsonl import read_rounds
from tests.tracking.wandb_records import items, kinds, offline_records, summary_of

FLAGS = (
    "--num_rounds 3 --save_model_freq 1 --client_samples 8 --heldout_samples 4 --max_steps 2 --batch_size 4 "
    "--learning_rate 5e-3 --gradient_checkpointing false --bama_crows_fraction 0.5 --bama_stereoset_fraction 0.5 "
    "--use_peft --peft_lora_target_modules all-linear --aggregation bama --track jsonl,wandb --wandb_mode offline"
)
TOKEN = "hf_" + "Q7x" * 11 + "Z"


class Offline(NamedTuple):
    """The folder of a run, its lines of ``metrics.jsonl``, and what W&B recorded."""

    output: Path
    lines: list[dict[str, Any]]
    records: list[Any]


@pytest.fixture(scope="module")
def offline(random_model: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Offline:
    wandb = pytest.importorskip("wandb", reason="the wandb package is not installed")
    output = tmp_path_factory.mktemp("offline") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_TAGS", "WANDB_RUN_ID", "WANDB_MODE", "FEDBIAS_DATA"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(output.parent))
        patch.setenv("FEDBIAS_EXPERIMENTS", f"table3,{TOKEN}")
        wandb.teardown()
        places = ["--model_name_or_path", random_model, "--data_dir", small_data, "--output_dir", output]
        assert main(["run", *map(str, places), *FLAGS.split()]) == 0
        wandb.teardown()
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return Offline(output, lines, offline_records(output))


def numbers(value: Any, *, leave_out: tuple[str, ...], path: str = "") -> Iterator[tuple[str, float]]:
    """Path and value of every number in a JSON value, but those below the keys to ``leave_out``."""
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in leave_out:
                yield from numbers(part, leave_out=leave_out, path=f"{path}/{key}")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path[1:], value


def promised_key(path: str) -> str:
    """The key that docs/metrics-file.md promises for a path of ``metrics.jsonl``."""
    path = re.sub("^clients/", "client/", path)
    path = re.sub("^aggregation_mass$", "aggregation/mass", path)
    path = re.sub("^(effective_clients|weight_on_poisoned)$", r"aggregation/\1", path)
    path = re.sub("^global/heldout_loss/", "global/heldout_", path)
    return re.sub("ci95/([01])$", lambda match: ("ci95_low", "ci95_high")[int(match[1])], path)


def history(offline: Offline) -> list[dict[str, Any]]:
    """One mapping a round, in W&B's own order."""
    return [items(record.item) for record in kinds(offline.records, "history")]


def table(offline: Offline, key: str) -> dict[str, Any]:
    """The JSON file of a table, found through the last round's record of it, its hash checked."""
    last = next(row for row in reversed(history(offline)) if f"{key}/path" in row)
    (folder,) = offline.output.glob("wandb/offline-run-*")
    content = (folder / "files" / last[f"{key}/path"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == last[f"{key}/sha256"]
    return json.loads(content)


def test_every_number_of_metrics_jsonl_is_in_the_history_of_its_round(offline: Offline) -> None:
    assert [row["round"] for row in history(offline)] == [line["round"] for line in offline.lines] == [0, 1, 2, 3]
    for line, row in zip(offline.lines, history(offline), strict=True):
        wanted = dict(numbers(line, leave_out=("by_type", "by_domain", "settings")))
        assert len(wanted) > 30
        assert {path: row.get(promised_key(path)) for path in wanted} == wanted


def test_every_key_that_dashboards_are_promised_has_its_number(offline: Offline) -> None:
    for record, row in zip(read_rounds(offline.output), history(offline), strict=True):
        flat = flatten_record(record)
        assert {key: row.get(key) for key in flat} == flat
        if record.round:
            assert {"client_poisoned/mean/bias_score", "client_clean/mean/weight"} <= flat.keys()


def test_every_number_of_a_category_is_in_the_table_of_all_rounds(offline: Offline) -> None:
    data = table(offline, "categories/by_round")
    assert data["columns"][:3] == ["round", "benchmark", "category"]
    rows = {tuple(row[:3]): row for row in data["data"]}
    count = 0
    for line in offline.lines:
        for benchmark, part in (("crows_pairs", "by_type"), ("stereoset", "by_domain")):
            for category, result in line["global"][benchmark][part].items():
                row = rows.pop((line["round"], benchmark, category))
                named = dict(zip(data["columns"], row, strict=True))
                named["ci95/0"], named["ci95/1"] = named["ci95_low"], named["ci95_high"]
                named["ss"] = named["score"]
                wanted = dict(numbers(result, leave_out=()))
                assert {path: named[path] for path in wanted} == wanted
                assert named["delta"] == abs(named["score"] - 50)
                count += 1
    assert rows == {}
    assert count == 4 * (3 + 2)


def test_configuration_names_and_summary_are_there(offline: Offline) -> None:
    (opened,) = kinds(offline.records, "run")
    run_file = json.loads((offline.output / "run.json").read_text())
    config = items(opened.config.update)
    for name, value in run_file["config"].items():
        assert config[name] == value, name
    poisoned = [int(client) for client, share in run_file["poisoned_shares"].items() if share > 0]
    assert config["poisoned_clients"] == poisoned
    assert opened.job_type == "federated"
    assert opened.display_name.endswith("fedavg 1B2C bama seed 2023")
    assert {"alg:fedavg", "scenario:1B2C", "agg:bama", "clients:3/3", "tuning:lora", "table3"} <= set(opened.tags)
    summary = summary_of(offline.records)
    stored = json.loads((offline.output / "summary.json").read_text())
    for part, values in (("final", stored["final"]), ("best", stored["best_round"])):
        assert summary[f"{part}/round"] == values["round"]
        assert summary[f"{part}/bias_score"] == values["bias_score"]
        assert summary[f"{part}/delta_crows"] == values["delta"]["crows_pairs"]
        assert summary[f"{part}/delta_ss"] == values["delta"]["stereoset"]
        assert summary[f"{part}/ss"] == values["stereoset"]["ss"]
        assert summary[f"{part}/heldout_loss"] == values["heldout_loss"]["loss"]
    assert summary["final/weight_on_poisoned"] == offline.lines[-1]["weight_on_poisoned"]
    scores = [line["global"]["bias_score"] for line in offline.lines]
    assert summary["global/bias_score/min"] == min(scores)
    assert summary["global/bias_score/last"] == scores[-1]


def test_the_adapter_of_every_saved_round_and_the_files_of_the_run_are_artifacts(offline: Offline) -> None:
    artifacts = kinds(offline.records, "artifact")
    sent = {(artifact.type, alias) for artifact in artifacts for alias in artifact.aliases}
    rounds = {("adapter", f"round-{number}") for number in (1, 2, 3)}
    assert sent - {("run_table", "latest")} == {
        *rounds, ("adapter", "latest"), ("adapter", "final"), ("run-files", "latest"),
    }  # fmt: skip
    for artifact in artifacts:
        for entry in artifact.manifest.contents:
            assert Path(entry.local_path).is_relative_to(offline.output)  # nothing has to be fetched from a home
            content = Path(entry.local_path).read_bytes()  # what wandb sync uploads
            assert base64.b64encode(hashlib.md5(content).digest()).decode() == entry.digest
    of_kind = {artifact.type: {entry.path for entry in artifact.manifest.contents} for artifact in artifacts}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= of_kind["adapter"]
    assert of_kind["run-files"] == {"run.json", "manifest.json", "probe.json", "summary.json", "metrics.jsonl"}


def test_no_login_and_no_way_to_a_users_folder_is_in_names_and_tags(offline: Offline, random_model: Path) -> None:
    (opened,) = kinds(offline.records, "run")
    artifacts = [artifact.name for artifact in kinds(offline.records, "artifact")]
    assert f"model:{random_model.name}" in opened.tags
    for text in [opened.display_name, opened.run_group, *opened.tags, *artifacts]:
        assert str(random_model.parent) not in text
        assert TOKEN not in text
