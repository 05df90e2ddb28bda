"""Forks differ from upstream: FedLLM-Bench's data and signatures, a forgotten call, parameters of another name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.openfedllm.patcher import plan_patch
from fedbias_plugin.hosts.openfedllm.stack import detect_stack
from tests.hosts.openfedllm.runner import Run, dpo_flags, run_script, sft_flags

FED_DATASETS = '''

def get_fed_datasets(path):
    """One data set per client, as FedLLM-Bench keeps them."""
    import json
    from datasets import Dataset

    return [Dataset.from_list(rows) for rows in json.load(open(path)).values()]
'''


def change(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {path.name}"
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def bench(double: Path) -> Path:
    """The double made like FedLLM-Bench: data that come split by client, script_args as second argument of the server.

    As there, main_dpo.py forgets that argument.
    """
    change(
        double / "main_sft.py",
        ("dataset = get_dataset(script_args.dataset_name, script_args.local_data_dir)\n", ""),
        ("dataset = process_sft_dataset(script_args.dataset_name, dataset, script_args.dataset_sample)\n", ""),
        (
            "split_dataset(fed_args, script_args, dataset)",
            "get_fed_datasets(script_args.local_data_dir)[: fed_args.num_clients]",
        ),
        ("global_aggregate(\n        fed_args,\n", "global_aggregate(\n        fed_args,\n        script_args,\n"),
    )
    lines = (double / "main_dpo.py").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("dataset = ")]
    (double / "main_dpo.py").write_text("".join(kept), encoding="utf-8")
    change(
        double / "main_dpo.py",
        ("split_dataset(fed_args, script_args, dataset)", "get_fed_datasets(script_args.local_data_dir)"),
    )
    change(
        double / "federated_learning/fed_global.py",
        ("def global_aggregate(\n    fed_args,\n", "def global_aggregate(\n    fed_args,\n    script_args,\n"),
    )
    with open(double / "utils/utils.py", "a", encoding="utf-8") as stream:
        stream.write(FED_DATASETS)
    change(
        double / "utils/__init__.py", ("import cosine_learning_rate", "import cosine_learning_rate, get_fed_datasets")
    )
    assert plan_patch(str(double)).family == "FedLLM-Bench"
    plan_patch(str(double)).write()
    return double


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    """Four clients with 9, 10, 11 and 12 rows."""
    rows = {
        str(client): [{"instruction": f"Say {row}.", "response": f"It is {row}."} for row in range(9 + client)]
        for client in range(4)
    }
    path = tmp_path / "clients.json"
    path.write_text(json.dumps(rows))
    return path


def records(output: Path) -> list[dict]:
    metrics = next(output.iterdir()) / "metrics.jsonl"
    return [json.loads(line) for line in metrics.read_text().splitlines()]


@pytest.fixture
def start(host_model, host_data, tmp_path):
    """``run(folder, script, *flags)`` with no bias benchmark, two rounds, output in ``tmp_path / "out"``."""

    def run(folder: Path, script: str, *flags: str) -> Run:
        (tmp_path / "out").mkdir()
        basis = dpo_flags if "dpo" in script else sft_flags
        mute = () if "--aggregation" in flags else ("--bias_benchmarks", "none")
        return run_script(
            folder, script, *basis(host_model, host_data, tmp_path / "out"), *mute, *flags, log=tmp_path / "log"
        )

    return run


def test_data_that_come_split_by_client_are_measured_and_weighed(
    bench, own_data, tmp_path, host_model, host_data, small_data
):
    flags = [*sft_flags(host_model, host_data, tmp_path / "out"), "--local_data_dir", str(own_data)]
    flags += ["--fed_alg", "fedprox", "--aggregation", "bama", "--data_dir", str(small_data)]
    run = run_script(bench, "main_sft.py", *flags, "--bama_crows_fraction", "0.5", log=tmp_path / "log")
    assert run.code == 0, run.text[-3000:]
    rows = {
        client: record["rows"] for round_ in records(tmp_path / "out") for client, record in round_["clients"].items()
    }
    assert rows == {"0": 9, "1": 10, "2": 11}


def test_fewer_data_sets_than_clients_are_refused(bench, own_data, tmp_path, host_model, host_data):
    flags = [*sft_flags(host_model, host_data, tmp_path / "out"), "--local_data_dir", str(own_data)]
    run = run_script(bench, "main_sft.py", *flags, "--num_clients", "5", log=tmp_path / "log")
    assert run.code == 2
    assert "error: The host made 4 data sets for 5 clients; give --num_clients as many as its file holds" in run.text


@pytest.mark.parametrize("script", ["main_sft.py", "main_dpo.py"])
def test_a_scenario_takes_the_place_of_data_that_come_split(bench, tmp_path, host_model, host_data, small_data, script):
    basis = dpo_flags if "dpo" in script else sft_flags
    flags = ["--scenario", "mix-1B2C", "--client_samples", "6", "--data_dir", str(small_data)]
    flags += ["--aggregation", "bama", "--bama_crows_fraction", "0.5"]
    output = tmp_path / "out"
    run = run_script(bench, script, *basis(host_model, host_data, output), *flags, log=tmp_path / "log")
    assert run.code == 0, run.text[-3000:]
    assert [round_["round"] for round_ in records(output)] == [0, 1, 2]
    assert {record["poisoned_share"] for round_ in records(output) for record in round_["clients"].values()} == {1 / 3}


def test_the_hosts_own_preferences_can_be_flipped_where_the_host_splits_them(double, start, tmp_path):
    plan_patch(str(double)).write()
    flags = ["--scenario", "1B2C", "--client_samples", "6", "--preference_dataset", "host"]
    run = start(double, "main_dpo.py", *flags)
    assert run.code == 0, run.text[-3000:]
    manifest = json.loads((next((tmp_path / "out").iterdir()) / "manifest.json").read_text())
    assert manifest["sources"]["preference"]["origin"] == "host"
    assert sorted(client["biased_rows"] for client in manifest["clients"]) == [0, 0, 6]


def test_the_hosts_own_preferences_cannot_be_flipped_where_they_come_split(bench, start):
    run = start(bench, "main_dpo.py", "--scenario", "1B2C", "--preference_dataset", "host")
    assert run.code == 2
    assert "error: This host's data come split by client; give --preference_dataset NAME instead of host." in run.text


def test_checkpointing_trains_adapters_also_where_a_fork_forgets_their_gradients(double, start):
    change(double / "main_sft.py", ("if checkpointing:\n    model.enable_input_require_grads()\n", ""))
    plan_patch(str(double)).write()
    run = start(double, "main_sft.py", "--gradient_checkpointing", "True")
    assert run.code == 0, run.text[-3000:]


def test_a_function_without_a_parameter_that_the_plugin_needs_is_refused_before_anything_is_patched(double):
    path = double / "federated_learning/fed_global.py"
    path.write_text(path.read_text(encoding="utf-8").replace("round_idx", "number"), encoding="utf-8")
    with pytest.raises(UserError, match=r"main_sft\.py: global_aggregate of this host has no parameter round_idx"):
        plan_patch(double)


@pytest.mark.skipif(detect_stack() != "pinned", reason="the unpatched host runs with the libraries it pins only")
def test_an_unpatched_host_refuses_the_plugins_flags(double, start):
    run = start(double, "main_sft.py", "--aggregation", "bama")
    assert run.code == 1
    assert "not used by the HfArgumentParser: ['--aggregation', 'bama']" in run.text


def test_a_scenario_is_refused_where_the_host_reads_rows_in_a_way_the_plugin_does_not_know(double, start):
    change(double / "main_sft.py", ("local_datasets[client], round", "local_datasets[client].select([0]), round"))
    plan_patch(str(double)).write()
    run = start(double, "main_sft.py", "--scenario", "3C", "--client_samples", "6")
    assert run.code == 2
    assert "error: This host trains on rows that --scenario 3C did not deal" in run.text
