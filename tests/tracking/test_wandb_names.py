"""Names, groups, tags and job types of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.assets import TINY_MODEL
from fedbias_plugin.federation.run_description import HostRun, run_info
from fedbias_plugin.hosts.openfedllm.arguments import AttachedArguments
from fedbias_plugin.tracking.wandb_names import RunNames, artifact_name, model_label, run_names

CONFIG = {
    "model_name_or_path": "tiny", "scenario": "1B2C", "aggregation": "bama", "bama_weighting": "normalized",
    "bama_alpha": 0.5, "bama_lambda": 0.2, "attack": "none", "use_peft": True, "seed": 2023, "output_dir": "runs/a",
}  # fmt: skip
TOKEN = "hf_" + "Q7x" * 11 + "Z"


def names(experiments: str = "", seed: int = 2023, fed_alg: str = "fedavg", clients: str = "3/3", **changes: Any):
    taking_part, of_all = map(int, clients.split("/"))
    config = {**CONFIG, "seed": seed, **changes}
    return run_names(
        config, fed_alg=fed_alg, num_clients=of_all, sample_clients=taking_part, seed=seed, experiments=experiments
    )


def every_text(found: RunNames) -> list[str]:
    return [found.name, found.group, found.job_type, *found.tags]


def test_a_run_of_table_3_is_called_by_what_it_does() -> None:
    found = names(experiments="table1,table3")
    assert found.name == "fedavg 1B2C bama seed 2023"
    assert found.group.startswith("tiny fedavg 1B2C bama ")
    assert found.job_type == "federated"
    assert found.tags == (
        "model:tiny", "alg:fedavg", "scenario:1B2C", "agg:bama", "clients:3/3", "weighting:normalized", "tuning:lora",
        "table1", "table3",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"aggregation": "plain"}, "fedavg 1B2C plain seed 2023"),
        ({"bama_weighting": "paper"}, "fedavg 1B2C bama paper seed 2023"),
        ({"bama_lambda": 0.05, "bama_alpha": 1.0}, "fedavg 1B2C bama alpha=1 lambda=0.05 seed 2023"),
        ({"attack": "sign_flip"}, "fedavg 1B2C bama sign_flip seed 2023"),
        ({"clients": "3/10"}, "fedavg 1B2C bama 3/10 seed 2023"),
        ({"use_peft": False}, "fedavg 1B2C bama full seed 2023"),
        ({"model_name_or_path": "google/gemma-2-2b"}, "gemma-2-2b fedavg 1B2C bama seed 2023"),
    ],
)
def test_what_differs_from_most_runs_is_in_the_name(changes: dict[str, Any], name: str) -> None:
    assert names(**changes).name == name


def test_the_group_is_the_same_for_every_seed_and_folder_and_for_nothing_else() -> None:
    group = names().group
    for same in ({"seed": 7}, {"output_dir": "elsewhere"}, {"track": "jsonl"}, {"data_dir": "/home/me/data"}):
        assert names(**same).group == group, same
    assert names(seed=7, schedule_seed=7).group == names(seed=8, schedule_seed=8).group != group
    for other in ({"num_rounds": 9}, {"learning_rate": 1e-3}, {"bama_lambda": 0.4}, {"use_peft": False}):
        assert names(**other).group != group, other


def test_one_client_is_the_centralised_baseline_and_a_client_alone_is_local() -> None:
    assert names(clients="1/1").job_type == "centralised"
    found = names(fed_alg="local2")
    assert (found.job_type, found.tags[4]) == ("local", "clients:1/3")


def test_a_folder_of_the_users_is_shown_by_its_last_part_and_never_by_the_way_to_it() -> None:
    assert model_label(str(TINY_MODEL)) == "tiny"
    assert model_label(r"C:\Users\me\llama") == "llama"
    for text in every_text(names(model_name_or_path="/home/someone/secret-project/my-llama/")):
        assert "someone" not in text
        assert "secret-project" not in text
    assert names(model_name_or_path="/data/x/my-llama").group == names(model_name_or_path="/else/my-llama").group


def test_logins_and_what_does_not_print_do_not_get_into_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "correct-horse-battery-staple")
    found = names(model_name_or_path=f"a/{TOKEN}", experiments="correct-horse-battery-staple,a\x1b[31m\nb")
    for text in every_text(found):
        assert TOKEN not in text
        assert "battery" not in text
        assert text.isprintable()


def test_every_text_fits_the_limits_of_wandb_and_keeps_its_end() -> None:
    found = names(model_name_or_path="m" * 300, experiments=",".join(["e" * 100, *map(str, range(50))]))
    assert max(map(len, found.tags)) == 64
    assert len(found.name) == len(found.group) == 128
    assert found.name.endswith("… seed 2023")
    assert found.group[-6:] == names(model_name_or_path="m" * 300).group[-6:]
    assert len(found.tags) == 7 + 16
    wandb = pytest.importorskip("wandb", reason="the wandb package is not installed")
    assert wandb.Settings(run_tags=found.tags).run_tags == found.tags  # W&B checks them itself


def test_experiments_come_from_the_environment_and_a_tag_is_there_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBIAS_EXPERIMENTS", " table1, table3 ,,table1")
    run = HostRun(Path("out"), "fedadam", num_clients=3, sample_clients=3, num_rounds=5, seed=1, config=CONFIG)
    info = run_info(BiasArguments(), run, {0: 1.0})
    assert [tag for tag in info.tags if ":" not in tag] == ["table1", "table3"]
    assert info.run_name == "fedadam 1B2C bama seed 1"


def test_a_run_of_a_patched_openfedllm_is_named_alike() -> None:
    arguments = AttachedArguments(scenario="1B2C", aggregation="bama")
    run = HostRun(
        Path("out"), "fedavg", num_clients=3, sample_clients=3, num_rounds=5, seed=2023,
        config={"model_name_or_path": str(TINY_MODEL), "use_peft": True},
    )  # fmt: skip
    info = run_info(arguments, run, {})
    assert (info.run_name, info.job_type) == ("fedavg 1B2C bama seed 2023", "federated")
    assert info.tags == names().tags


def test_a_project_in_the_environment_wins_over_the_default_but_not_over_a_flag(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    run = HostRun(Path("out"), "fedavg", num_clients=3, sample_clients=3, num_rounds=5, seed=1)
    assert run_info(BiasArguments(), run, {}).wandb_project == "theirs"
    assert run_info(BiasArguments(wandb_project="mine"), run, {}).wandb_project == "mine"
    monkeypatch.delenv("WANDB_PROJECT")
    assert run_info(BiasArguments(), run, {}).wandb_project == "fedbias"


def test_names_of_artifacts_hold_only_what_every_store_takes() -> None:
    assert artifact_name("fedavg mix-1B2C 3/10: é", "ab12-files") == "fedavg-mix-1B2C-3-10-ab12-files"
    assert len(artifact_name("x" * 500, "ab12-adapter")) == 128
    assert artifact_name("🙂", "ab12-files") == "run-ab12-files"
