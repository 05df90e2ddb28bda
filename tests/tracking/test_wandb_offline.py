"""A whole run, offline: what W&B wrote is read back, and holds everything that ``wandb sync`` is to upload."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fedbias_plugin.cli.main import main
from fedbias_plugin.study.frame import load_study
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


def test_a_run_of_three_clients_has_about_forty_curves_with_the_numbers_of_metrics_jsonl(offline: Offline) -> None:
    assert [row["round"] for row in history(offline)] == [line["round"] for line in offline.lines] == [0, 1, 2, 3]
    curves = {key for row in history(offline) for key in row if not key.startswith(("_", "categories/"))}
    assert 35 <= len(curves) <= 50
    for line, row in zip(offline.lines, history(offline), strict=True):
        wanted = {
            "bias/crows_pairs": line["global"]["crows_pairs"]["score"],
            "bias/stereoset": line["global"]["stereoset"]["ss"],
            "bias/stereoset_lms": line["global"]["stereoset"]["lms"],
            "bias/bias_score": line["global"]["bias_score"],
            "eval/heldout_loss": line["global"]["heldout_loss"]["loss"],
            "run/seconds_train": line["seconds"]["train"],
            "run/peak_memory_mib": line["peak_memory_bytes"] / 2**20,
            "run/warnings": len(line["warnings"]),
        }
        for client, record in line["clients"].items():
            for name in ("bias_score", "weight", "train_loss", "update_norm"):
                wanted[f"client_{client}/{name}"] = record[name]
        assert {key: row.get(key) for key in wanted} == wanted


def test_the_table_of_runs_has_the_numbers_of_the_report(offline: Offline) -> None:
    """Every column of the study's frame of runs, under its own name."""
    summary = summary_of(offline.records)
    (finals,) = load_study([offline.output]).finals.to_dict("records")
    assert len(finals) > 25
    assert {name: summary[f"final/{name}"] for name in finals} == finals


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
                named["ss"] = named["score"]
                wanted = {key: value for key, value in result.items() if isinstance(value, (int, float))}
                assert {key: named[key] for key in wanted} == wanted
                assert result["ci95"] in (None, [named["ci95_low"], named["ci95_high"]])
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
    assert config["poisoned_shares"] == list(run_file["poisoned_shares"].values())
    assert opened.job_type == "federated"
    assert opened.display_name.endswith("fedavg 1B2C bama seed 2023")
    assert {"alg:fedavg", "scenario:1B2C", "agg:bama", "clients:3/3", "tuning:lora", "table3"} <= set(opened.tags)
    summary = summary_of(offline.records)
    stored = json.loads((offline.output / "summary.json").read_text())
    for part, values in (("final", stored["final"]), ("best", stored["best_round"])):
        assert summary[f"{part}/round"] == values["round"]
        assert summary[f"{part}/bias_score"] == values["bias_score"]
        assert summary[f"{part}/crows_pairs/delta"] == values["delta"]["crows_pairs"]
        assert summary[f"{part}/stereoset/delta"] == values["delta"]["stereoset"]
        assert summary[f"{part}/stereoset"] == values["stereoset"]["ss"]
        assert summary[f"{part}/heldout_loss"] == values["heldout_loss"]["loss"]
    weights = [line["weight_on_poisoned"] for line in offline.lines[1:]]
    assert summary["final/weight_on_poisoned"] == pytest.approx(sum(weights) / 3)
    assert summary["warnings"] == stored["warnings"]


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
