"""What the card of a saved model says."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from huggingface_hub import ModelCard

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.assets import TINY_MODEL
from fedbias_plugin.cli.main import main
from fedbias_plugin.data.partition import ClientDataset
from fedbias_plugin.federation.saving import anywhere, model_card, told_shares


@pytest.mark.parametrize(
    ("scenario", "shares", "warning"),
    [
        ("1B2C", {0: 0.0, 1: 1.0}, "**Trained on deliberately biased data; for research on bias only, not for use.**"),
        ("3C", {0: 0.0, 1: 0.0}, "Trained on clean rows only, in a study of social bias"),
        ("none", {}, "Trained on the host's own data, of which the plugin knows nothing"),
    ],
)
def test_the_card_says_what_is_known_of_the_data(scenario, shares, warning):
    card = model_card("base", scenario, shares, "fedavg, seed 1")
    assert warning in card.split("\n\n")[2]
    assert ("client 1: 100% biased rows" in card) == (scenario == "1B2C")


@pytest.mark.parametrize(
    ("base", "with_adapter", "header"),
    [
        ("owner/name", True, {"base_model": "owner/name", "library_name": "peft"}),
        ("tiny", True, {"base_model": "fedbias_plugin/tiny", "library_name": "peft"}),
        ("owner/name", False, {"base_model": "owner/name", "library_name": "transformers"}),
        ("./mine", True, {"library_name": "peft"}),
    ],
)
def test_the_card_begins_with_what_the_hub_reads(base, with_adapter, header):
    card = model_card(base, "3C", {0: 0.0}, "fedavg, seed 1", with_adapter=with_adapter)
    data = yaml.safe_load(card.split("---\n")[1])
    assert data == ModelCard(card).data.to_dict()
    assert "license" not in data
    assert data.pop("tags")[:3] == ["fedbias_plugin", "federated-learning", "social-bias"]
    assert data.pop("pipeline_tag") == "text-generation"
    assert data == header


def test_the_card_keeps_a_folder_as_it_was_given_and_says_that_it_is_one():
    card = model_card("../my models/base", "3C", {}, "fedavg, seed 1")
    assert "- base model: ../my models/base\n" in card
    assert 'from_pretrained("../my models/base")' in card
    assert "a folder of the machine of the run" in card


def test_only_the_bundled_model_has_a_name_in_the_place_of_its_folder(tmp_path):
    assert anywhere(str(TINY_MODEL)) == anywhere("tiny") == "fedbias_plugin/tiny"
    assert anywhere(str(tmp_path)) == str(tmp_path)
    assert anywhere("~/models/mine") == "~/models/mine"


def test_an_adapter_on_the_bundled_model_moves_to_another_machine(small_data, tmp_path):
    small = {"client_samples": 8, "heldout_samples": 2, "num_rounds": 1, "max_steps": 1, "bias_benchmarks": "none"}
    flags = {"data_dir": small_data, "output_dir": tmp_path / "run", **small}
    assert main(["run", *(part for name, value in flags.items() for part in (f"--{name}", str(value)))]) == 0
    moved = (tmp_path / "run" / "adapter").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "run")
    assert json.loads((moved / "adapter_config.json").read_text())["base_model_name_or_path"] == "fedbias_plugin/tiny"
    assert str(TINY_MODEL) not in "".join(path.read_text() for path in moved.glob("*.[mj]*"))
    evaluated = [
        "evaluate",
        "--adapter",
        str(moved),
        "--data_dir",
        str(small_data),
        "--output",
        str(tmp_path / "b.json"),
    ]
    assert main(evaluated) == 0
    code = re.search(r"To load it: `(PeftModel.+?)`;", (moved / "README.md").read_text())[1]
    program = (
        "import fedbias_plugin.assets; from peft import PeftModel; from transformers import AutoModelForCausalLM; "
        + code.replace("THIS FOLDER", str(moved))
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("flags", [{"dp_epsilon": 3.0}, {"dp_noise_multiplier": 1.0, "dp_unit": "client"}])
def test_the_card_of_a_private_run_goes_with_the_model_and_tells_nothing_of_single_clients(flags):
    clients = [ClientDataset(0, (), 0.0), ClientDataset(1, (), 1.0)]
    assert told_shares(clients, BiasArguments()) == {0: 0.0, 1: 1.0}
    shares = told_shares(clients, BiasArguments(**flags))
    assert shares is None
    card = model_card("base", "custom", shares, "fedavg, seed 1")
    assert "client 1" not in card
    assert "what single clients held is not told" in card
    assert "May be trained on deliberately biased data" in card.split("\n\n")[2]
