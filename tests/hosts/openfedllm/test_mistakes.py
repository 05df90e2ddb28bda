"""Wrong input of every kind ends a patched script with one line and exit code 2, before any model is loaded."""

from __future__ import annotations

import pytest

from fedbias_plugin.hosts.openfedllm.patcher import plan_patch
from tests.hosts.openfedllm.runner import dpo_flags, run_script, sft_flags

LOADED = "LOADED A MODEL"
STAND_IN = "trl.DataCollatorForCompletionOnlyLM = trl.SFTTrainer\n"  # today's trl has none


@pytest.fixture
def refused(double, host_model, host_data, tmp_path):
    """``refused("main_sft.py", "--batch_size", "0")`` -> the one line of the error; no model was loaded."""
    plan_patch(double).write()
    (tmp_path / "out").mkdir()
    watch = "import transformers\nreal = transformers.PreTrainedModel.from_pretrained\n"
    watch += "def loaded(cls, *args, **kwargs):\n"
    watch += f"    print({LOADED!r})\n    return real.__func__(cls, *args, **kwargs)\n"
    watch += "transformers.PreTrainedModel.from_pretrained = classmethod(loaded)\n"
    (double / "watch.py").write_text(watch)
    for name in ("main_sft.py", "main_dpo.py"):
        script = double / name
        script.write_text(script.read_text().replace("\nimport ", "\nimport watch\nimport ", 1))

    def run(script: str, *flags: str) -> str:
        basis = dpo_flags if script == "main_dpo.py" else sft_flags
        given = [*basis(host_model, host_data, tmp_path / "out"), *flags]
        ended = run_script(double, script, *given, log=tmp_path / "log")
        assert ended.code == 2, ended.text[-2000:]
        assert "Traceback" not in ended.text
        assert LOADED not in ended.text
        lines = ended.text.splitlines()
        assert lines[-1].startswith("fedbias: error: "), lines[-3:]
        return lines[-1].removeprefix("fedbias: error: ")

    return run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--scenario 3C --clean_dataset nowhere.json", "nowhere.json: there is no such file."),
        ("--scenario 3C --data_dir nowhere", "--data_dir names the folder nowhere, which does not exist."),
        (
            "--scenario 3C --clean_dataset {folder}/config.py",
            "config.py: the format is told by the suffix, which must",
        ),
        ("--scenario 3C --data_dir mini --client_samples 100000", "the largest --client_samples that fits is 768."),
        ("--scenario 3C --data_dir mini --client_samples 6 --seq_length 8", "Client 0 has no token to train on"),
        ("--seq_length 8", "Client 0 has no token to train on: --seq_length 8 cuts the response off in all 1"),
        ("--batch_size 0", "--batch_size must be at least 1, got 0."),
        ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps must be at least 1, got 0."),
        ("--load_in_8bit --load_in_4bit", "--load_in_8bit and --load_in_4bit exclude each other"),
        ("--load_in_4bit", "--load_in_4bit needs a GPU here, and torch finds none"),
        ("--peft_lora_r 0", "--peft_lora_r must be at least 1, got 0."),
        ("--template llama3", "--template 'llama3' is unknown to this host; choose one of alpaca, vicuna."),
        ("--template chat", "alpaca, vicuna. The tokenizer's own chat template is for fedbias run alone."),
        ("--model_name_or_path no/such/model", "--model_name_or_path 'no/such/model': there is no such folder."),
        ("--model_name_or_path nobody/nothing", "--model_name_or_path 'nobody/nothing' is no folder here"),
        ("--dataset_name vicgalle/other", "--dataset_name 'vicgalle/other': there is no "),
        ("--save_model_freq 0", "--save_model_freq must be at least 1, got 0."),
        ("--bama_lambda abc", "--bama_lambda: invalid float value: 'abc'. See --help."),
    ],
)
def test_a_mistake_in_sft_is_one_line_before_a_model_loads(refused, double, flags, message):
    assert message in refused("main_sft.py", *flags.format(folder=double).split())


@pytest.mark.parametrize(
    "early", ["from federated_learning import *", "from trl import DataCollatorForCompletionOnlyLM"]
)
def test_a_line_that_a_sorter_has_moved_below_the_host_s_imports_is_refused(refused, double, early):
    script = double / "main_sft.py"
    script.write_text(script.read_text().replace("import fedbias", f"import trl\n{STAND_IN}{early}\nimport fedbias", 1))
    assert "before the plugin's line, which has to be its first statement" in refused("main_sft.py")


def test_a_renamed_copy_of_the_dpo_script_trains_on_preferences(double, host_model, host_data, tmp_path):
    plan_patch(double).write()
    (double / "main_dpo.py").rename(double / "experiment.py")
    (tmp_path / "out").mkdir()
    flags = [*dpo_flags(host_model, host_data, tmp_path / "out"), "--bias_benchmarks", "none"]
    ended = run_script(double, "experiment.py", *flags, log=tmp_path / "log")
    assert ended.code == 0, ended.text[-2000:]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--template llama3", "--template 'llama3' is no conversation template of this host"),
        ("--template chat", "The tokenizer's own chat template is for fedbias run alone."),
        ("--template vicuna_v1.1 --scenario 3C --preference_dataset nowhere.json", "nowhere.json"),
        (
            "--template vicuna_v1.1 --scenario 3C --data_dir mini --columns prompt=q",
            "--columns prompt=q: no data set of this run has these columns",
        ),
        ("--template vicuna_v1.1 --batch_size 0", "--batch_size must be at least 1, got 0."),
        ("--template vicuna_v1.1 --dataset_name HuggingFaceH4/other", "--dataset_name 'HuggingFaceH4/other'"),
    ],
)
def test_a_mistake_in_dpo_is_one_line_before_a_model_loads(refused, flags, message):
    assert message in refused("main_dpo.py", *flags.split())
