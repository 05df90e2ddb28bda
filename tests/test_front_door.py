"""``from fedbias_plugin import measure, BiasSession, run``."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

import fedbias_plugin
from fedbias_plugin import UserError, measure, run
from fedbias_plugin.cli.main import main


@pytest.fixture
def loaded(random_model):
    from tests.models import load_model_and_tokenizer

    return load_model_and_tokenizer(str(random_model))


def test_the_package_shows_its_front_door_and_loads_it_at_the_first_touch():
    code = (
        "import sys, fedbias_plugin\n"
        "assert {'measure', 'BiasSession', 'run', 'UserError'} <= set(dir(fedbias_plugin))\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), 'heavy import'\n"
        "from fedbias_plugin import run, UserError\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'run checks its flags before it needs torch'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'mesure'"):
        fedbias_plugin.mesure  # noqa: B018


def test_help_loads_little():
    code = (
        "import contextlib, io, sys\n"
        "from fedbias_plugin.cli.main import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n    main(['--help'])\n"
        "print(len(sys.modules), *sorted({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    number, *others = done.stdout.split()
    assert not {"torch", "transformers", "numpy", "pandas", "datasets", "yaml"} & set(others)
    assert int(number) < 400  # about 300, in 0.1 s of a processor


def test_measure_gives_what_the_command_writes(loaded, random_model, small_data, tmp_path, capsys):
    result = measure(*loaded, data_dir=small_data)
    flags = ["--model_name_or_path", random_model, "--data_dir", small_data, "--output", tmp_path / "bias.json"]
    assert main(["evaluate", *map(str, flags)]) == 0
    assert capsys.readouterr().out.strip() == result.table()
    assert json.loads((tmp_path / "bias.json").read_text()) == json.loads(json.dumps(result.to_json()))
    assert json.loads(result.save(tmp_path / "again.json").read_text()) == json.loads(json.dumps(result.to_json()))


def test_what_is_printed_has_interval_n_length_alone_terms_and_definitions(loaded, small_data):
    result = measure(*loaded, data_dir=str(small_data))
    crows, stereoset, *notes = repr(result).splitlines()
    low, high = result["crows_pairs"].ci95
    assert f"score {result['crows_pairs'].score:.1f} [{low:.1f}, {high:.1f}]" in crows
    assert f"length alone: {result['crows_pairs'].length_only:.1f}, n=24 pairs" in crows
    assert f"SS    {result['stereoset'].ss:.1f}  at LMS {result['stereoset'].lms:.1f}" in stereoset
    assert "n=24 clusters, 4 terms, too few for an interval" in stereoset
    assert any(line.startswith("LMS: ") for line in notes)
    assert "mini data" not in repr(result)
    assert len(repr(result).splitlines()) <= 8
    assert max(map(len, repr(result).splitlines())) <= 150


def test_pairs_of_equal_length_are_said_to_be_that_and_nothing_is_said_of_length_alone(loaded, small_data):
    result = measure(*loaded, data_dir=small_data, benchmarks="crows_pairs", crows_reduction="matched")
    assert f"pairs of equal length, n={result['crows_pairs'].n} pairs" in repr(result)
    assert "length alone" not in repr(result)


def test_the_mini_data_are_called_what_they_are(loaded):
    result = measure(*loaded, data_dir="mini", benchmarks="crows_pairs")
    assert repr(result).endswith("not the real benchmark: crows_pairs")
    assert set(result.results) == {"crows_pairs"}


@pytest.mark.parametrize("with_adapter", [False, True])
def test_measuring_leaves_modes_cache_weights_and_random_states_as_they_were(loaded, small_data, with_adapter):
    model, tokenizer = loaded
    if with_adapter:
        from tests.models import add_lora

        model = add_lora(model, r=2, alpha=4, seed=0)
    model.train()
    model.model.eval() if not with_adapter else None
    model.config.use_cache = with_adapter
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    measure(model, tokenizer, data_dir=small_data)
    assert [module.training for module in model.modules()] == modes
    assert model.config.use_cache == with_adapter
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert all(p.requires_grad == (not with_adapter or "lora" in n) for n, p in model.named_parameters())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"benchmarks": ["crows_pair"]}, r"^benchmarks 'crows_pair' is unknown.* Did you mean 'crows_pairs'"),
        ({"benchmarks": []}, "nothing to measure"),
        ({"crows_reduction": "total"}, "^crows_reduction 'total' is unknown"),
        ({"batch_tokens": 0}, "^batch_tokens must be at least 1"),
        ({"seed": -1}, "^seed must be at least 0"),
        ({"data_dir": "no/such/folder"}, "no/such/folder"),
    ],
)
def test_measure_refuses_wrong_values_by_the_name_they_were_given_by(loaded, wrong, message):
    with pytest.raises(UserError, match=message):
        measure(*loaded, **wrong)


def test_run_is_the_command(random_model, small_data, tmp_path, capsys):
    flags = {
        "model_name_or_path": random_model,
        "data_dir": small_data,
        "num_rounds": 1,
        "max_steps": 1,
        "client_samples": 6,
        "heldout_samples": 2,
        "seq_length": 256,
        "aggregation": "bama",
        "bias_benchmarks": ("crows_pairs", "stereoset"),
    }
    output = run(output_dir=tmp_path / "python", **flags)
    assert output == tmp_path / "python"
    written = {**flags, "bias_benchmarks": "crows_pairs,stereoset", "output_dir": tmp_path / "command"}
    assert main(["run", *(part for name, value in written.items() for part in (f"--{name}", str(value)))]) == 0
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("python", "command")]
    assert weights[0] == weights[1]
    assert run(resume=output) == output  # it is finished: there is nothing to go on with
    with pytest.raises(UserError, match="is finished, and a finished run cannot be extended"):
        run(resume=output, num_rounds=3)
    with pytest.raises(UserError, match=r"holds .* already"):
        run(output_dir=output, **flags)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"aggregaton": "bama"}, r"run\(\): unknown name 'aggregaton'. Did you mean 'aggregation'"),
        ({"aggregation": "bamma"}, r"^aggregation 'bamma' is unknown.* Did you mean 'bama'"),
        ({"num_rounds": "many"}, r"^num_rounds 'many' \(run\(\)\) must be a whole number"),
        ({"use_peft": 3}, r"^use_peft 3 \(run\(\)\) must be true or false"),
        ({"num_train_epochs": 3}, "give local_epochs"),
        ({"config": "nowhere.yaml"}, "^config nowhere.yaml: there is no such file"),
        ({"resume": "nowhere"}, "there is no such folder"),
    ],
)
def test_run_refuses_what_the_command_refuses(wrong, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run(**{"output_dir": tmp_path / "out", **wrong} if "resume" not in wrong else wrong)
    assert not (tmp_path / "out").exists()
