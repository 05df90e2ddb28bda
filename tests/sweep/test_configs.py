"""Files of experiments and models: ours load and expand; a wrong one is refused with the name that is wrong."""

import itertools

import pytest

from fedbias_plugin.configs_folder import configs_folder, find_config
from fedbias_plugin.errors import UserError
from fedbias_plugin.sweep.configs import load_experiment, load_model
from fedbias_plugin.sweep.plan import plan_runs

EXPERIMENTS = sorted((configs_folder() / "experiments").glob("*.yaml"))
MODELS = sorted((configs_folder() / "models").glob("*.yaml"))
GOOD = "name: mine\nseeds: [1]\narguments: {num_rounds: 2}\ngrid: {fed_alg: fedavg}\n"
RUNS = {
    "table1": 3 * 4 * 3,
    "table2": (2 * 4 + 4) * 3,
    "table3": (3 + 3 * 2) * 3,
    "figure1": 4 * 3,
    "participation": 3 * 3,
    "algorithms": 7 * 3,
    "lambda": 7 * 2 * 3,
    "dp_cda": (4 * 3 + 2) * 3,
    "fm_paradox": 4 * 4 * 2 * 5,
    "fm_paradox_small": 2 * 2 * 2,
    "fedpsf": 5 * 5,
    "offsite": (2 + 3 * 2 + 2 + 2) * 3,
    "offsite_dolly": (1 + 2 * 2) * 3,
    "offsite_gsm8k": (1 + 2 * 2) * 3,
    "offsite_code": (1 + 2 * 2) * 3,
    "defence_sizes": 9 * 5,
    "defence_dialects": 2 * 9 * 5,
    "defence_insider": 2 * 8 * 5,
    "defence": 5 * 8 * 5,
    "defence_attacks": 2 * (5 * 8 + 2) * 5,
    "defence_clients": 2 * (3 * 8 + 1) * 5,
}


def test_every_file_of_ours_has_a_test_of_its_size():
    assert {path.stem for path in EXPERIMENTS} == set(RUNS)
    assert {path.stem for path in MODELS} == {
        *("llama3_8b", "llama2_7b", "mistral_7b", "phi3_mini", "gemma2_2b", "gemma2_9b", "distilgpt2", "tiny", "tiny6"),
    }


LARGE = ("defence_attacks", "defence_clients")  # of the small world, and of hundreds of runs
PAIRS = [pair for pair in itertools.product(EXPERIMENTS, MODELS) if pair[0].stem not in LARGE or pair[1].stem == "tiny"]


@pytest.mark.parametrize(("experiment", "model"), PAIRS, ids=lambda path: path.stem)
def test_every_experiment_expands_on_every_model(experiment, model):
    loaded, on = load_experiment(experiment), load_model(model)
    assert loaded.name == experiment.stem
    assert on.name == model.stem
    seeds = loaded.seeds[:1] if experiment.stem in LARGE else loaded.seeds
    runs = plan_runs([loaded], on, seeds=seeds)
    assert len(runs) * len(loaded.seeds) == RUNS[experiment.stem] * len(seeds)
    assert len(runs) == len({run.name for run in runs})
    for run in runs:
        settings = run.settings
        assert settings["model_name_or_path"] == on.arguments["model_name_or_path"]
        if (
            "task" in settings or settings["max_steps"] == 30
        ):  # no language model, or of another paper: own rounds and steps
            continue
        assert settings["num_rounds"] == 5
        assert settings["local_epochs"] == 2
        assert settings["prox_mu"] == 0.1
        assert settings["seed"] in (2023, 2024, 2025)


def test_the_small_world_s_two_models_are_trained_alike():
    tiny, six = (load_model(find_config("models", name, "--model")) for name in ("tiny", "tiny6"))
    assert {**six.arguments, "model_name_or_path": "tiny"} == tiny.arguments
    assert six.full_finetuning == tiny.full_finetuning


def test_each_product_of_alpha_and_lambda_is_run_once_and_that_of_table_3_is_among_them():
    tiny = load_model(find_config("models", "tiny", "--model"))
    runs = plan_runs([load_experiment(find_config("experiments", "lambda", "experiment"))], tiny, seeds=[1])
    products = [
        (run.settings["bama_weighting"], round(run.settings["bama_alpha"] * run.settings["bama_lambda"], 6))
        for run in runs
    ]
    assert len(set(products)) == len(products)
    assert sorted({product for _, product in products}) == [0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8]
    assert "fedavg_1B2C_bama_seed-1" in {run.name for run in runs}


def test_runs_that_several_experiments_share_are_run_once():
    tiny = load_model(find_config("models", "tiny", "--model"))
    both = [load_experiment(find_config("experiments", name, "experiment")) for name in ("table1", "table3")]
    runs = {run.name: run for run in plan_runs(both, tiny)}
    assert len(runs) == RUNS["table1"] + RUNS["table3"] - 3 * 3
    assert runs["fedadam_1B2C_plain_seed-2024"].experiments == ("table1", "table3")
    assert runs["fedadam_1B2C_bama_seed-2024"].experiments == ("table3",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("seeds", "seed"), r"unknown name 'seed'.*Did you mean 'seeds'"),
        (GOOD.replace("num_rounds", "num_round"), r"unknown name 'num_round'.*num_rounds"),
        (GOOD.replace("num_rounds", "seed"), "seed is set by the sweep; give seeds"),
        (GOOD.replace("num_rounds", "output_dir"), "output_dir is set by the sweep; give --output"),
        (GOOD.replace("num_rounds", "dataset_name"), "OpenFedLLM's --dataset_name is not a flag here"),
        (GOOD.replace("fed_alg:", "fed_algo:"), r"unknown name 'fed_algo'.*fed_alg"),
        (GOOD.replace("[1]", "[1, 1]"), "a seed stands twice"),
        (GOOD.replace("[1]", "[a]"), "seeds must be whole numbers"),
        (GOOD.replace("[1]", "[true]"), "seeds must be whole numbers"),
        (GOOD.replace("[1]", "[]"), "seeds must be whole numbers"),
        (GOOD.replace("{fed_alg: fedavg}", "{fed_alg: []}"), "fed_alg needs one value or more"),
        (GOOD.replace("fed_alg: fedavg", "centralised: no way"), "centralised is true or false"),
        (GOOD.replace("{fed_alg: fedavg}", "fedavg"), "grid must name what varies"),
        (GOOD.replace("{num_rounds: 2}", "{num_rounds: [2, 3]}"), "num_rounds takes one value"),
        (GOOD.replace("name: mine", "name: Mine/../x"), "name must be lower-case"),
        (GOOD.replace("name: mine\n", ""), "name is missing; add a line such as `name: mine`"),
        (
            GOOD.replace("fed_alg: fedavg", "biased_shares: [0.5, 0, 0]"),
            "biased_shares 0.5 is no text; write it in quotes",
        ),
        (GOOD.replace("fed_alg: fedavg", "num_clients: [3, 3]"), r"num_clients has a value twice in \[3, 3\]"),
        ("- a\n", "must hold names and values"),
        ("name: [", r"line \d+ cannot be read"),
    ],
)
def test_a_wrong_experiment_is_refused_by_name(text, said, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        load_experiment(path)


def test_an_experiment_has_what_it_extends_where_it_gives_nothing_of_its_own(tmp_path):
    (tmp_path / "mine.yaml").write_text(GOOD.replace("{num_rounds: 2}", "{num_rounds: 2, max_steps: 7}"))
    less = tmp_path / "less.yaml"
    less.write_text("name: less\nextends: mine\narguments: {num_rounds: 1}\n")
    found = load_experiment(less)
    assert (found.name, found.title, found.seeds) == ("less", "less", (1,))
    assert found.arguments == {"num_rounds": 1, "max_steps": 7}
    assert found.grid == ({"fed_alg": ("fedavg",)},)
    less.write_text("name: less\nextends: mien\n")
    with pytest.raises(UserError, match=r"extends 'mien', and there is no .*mien.yaml. Did you mean 'mine'"):
        load_experiment(less)
    less.write_text("name: less\nextends: less\n")
    with pytest.raises(UserError, match="extends 'less', which extends another; name that one"):
        load_experiment(less)


def test_the_small_paradox_has_the_arguments_of_the_whole_one_but_for_two():
    whole, small = (
        load_experiment(configs_folder() / f"experiments/{name}.yaml") for name in ("fm_paradox", "fm_paradox_small")
    )
    assert small.arguments == {**whole.arguments, "dirichlet_min": 100, "num_rounds": 10}


def test_a_wrong_model_is_refused_by_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nargument: {}\n")
    with pytest.raises(UserError, match=r"unknown name 'argument'.*arguments"):
        load_model(path)
    path.write_text("name: mine\nmemory_gib: {load: much}\n")
    with pytest.raises(UserError, match="memory_gib must be numbers"):
        load_model(path)


def test_a_name_of_ours_or_a_path_is_found_and_anything_else_gets_a_suggestion(tmp_path):
    assert find_config("experiments", "table1", "experiment").name == "table1.yaml"
    own = tmp_path / "own.yaml"
    own.write_text(GOOD)
    assert find_config("experiments", str(own), "experiment") == own
    with pytest.raises(UserError, match=r"none of ours is called so.*table1"):
        find_config("experiments", "tabel1", "experiment")
