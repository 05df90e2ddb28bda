"""BiasArguments refuses what would waste a run."""

import subprocess
import sys

import pytest

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.builtin.arguments import HostArguments
from fedbias_plugin.options import check_range, idle_flags, options


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bama_lambda": 0.0}, "--bama_lambda must be greater than 0, got 0.0"),
        ({"bama_lambda": float("nan")}, "--bama_lambda must be greater than 0, got nan"),
        ({"bama_alpha": 1.5}, "--bama_alpha must be at least 0 and at most 1, got 1.5"),
        ({"bama_alpha": -0.1}, "--bama_alpha must be at least 0"),
        ({"aggregation": "bamma"}, "Did you mean 'bama'?"),
        ({"bias_benchmarks": "crows_pair"}, "Did you mean 'crows_pairs'?"),
        ({"track": "jsonl,wanb"}, "Did you mean 'wandb'?"),
        ({"scenario": "custom"}, "needs --biased_shares"),
        ({"scenario": "custom", "biased_shares": "none"}, "needs --biased_shares"),
        ({"biased_shares": "1,0,0"}, "belongs to --scenario custom"),
        ({"scenario": "custom", "biased_shares": "1,zero"}, "must be numbers such as 1,0,0,0.5"),
        ({"scenario": "custom", "biased_shares": "1,0,1.2"}, "at most 1, got 1.2"),
        ({"aggregation": "medain"}, "Did you mean 'median'?"),
        ({"byzantine_clients": -1}, "--byzantine_clients must be at least 0"),
        ({"clip_norm": 0.0}, "--clip_norm must be greater than 0"),
        ({"max_update_norm": float("nan")}, "--max_update_norm must be greater than 0"),
        ({"on_bad_update": "skip"}, "choose one of stop, drop"),
        ({"attack": "sign_flop"}, "Did you mean 'sign_flip'?"),
        ({"attack": "sign_flip", "attack_strength": 0}, "--attack_strength must be greater than 0"),
        ({"attack": "sign_flip", "attackers": "0;2"}, "--attackers '0;2' must be client ids such as 0,2."),
        ({"attack": "sign_flip", "attackers": "-1"}, "--attackers '-1' must be client ids such as 0,2."),
        ({"attackers": "0"}, "--attackers 0 belongs to an --attack: sign_flip, model_replacement"),
        ({"attack": "probe_gaming", "scenario": "none"}, "give --scenario 1B2C or another"),
        ({"attack": "probe_gaming", "bias_benchmarks": "none"}, "and --bias_benchmarks crows_pairs,stereoset"),
        ({"scenario": "custom", "biased_shares": "1,nan"}, "at most 1, got nan"),
        ({"client_samples": 0}, "--client_samples must be at least 1, got 0"),
        ({"heldout_samples": -1}, "--heldout_samples must be at least 0, got -1"),
        ({"rouge_samples": -1}, "--rouge_samples must be at least 0"),
        (
            {"rouge_samples": 9, "heldout_samples": 8},
            "--rouge_samples 9 takes held-out rows, and --heldout_samples is 8",
        ),
        ({"local_epochs": 0}, "--local_epochs must be at least 1"),
        ({"aggregation": "bama", "bias_benchmarks": "none"}, "no probe item is left"),
        ({"aggregation": "bama", "bama_crows_fraction": 0, "bama_stereoset_fraction": 0}, "no probe item is left"),
    ],
)
def test_a_wrong_value_is_refused_with_what_would_be_right(wrong, message):
    with pytest.raises(UserError) as error:
        BiasArguments(**wrong)
    assert message in str(error.value)


def test_defaults_are_those_of_the_metrics_document():
    arguments = BiasArguments()
    assert (arguments.bama_alpha, arguments.bama_lambda, arguments.bama_weighting) == (0.5, 0.2, "normalized")
    assert (arguments.bama_crows_fraction, arguments.bama_stereoset_fraction) == (0.25, 0.25)
    assert (arguments.crows_reduction, arguments.stereoset_reduction) == ("sum", "mean")


def test_none_means_no_benchmark_and_repeats_count_once():
    assert BiasArguments(bias_benchmarks="none").benchmark_names == []
    assert BiasArguments(bias_benchmarks="stereoset, stereoset").benchmark_names == ["stereoset"]


def test_attackers_are_client_ids_and_none_stands_for_the_clients_with_biased_rows():
    assert BiasArguments(attack="sign_flip", attackers="2, 0").attacker_ids == {0, 2}
    assert BiasArguments(attack="sign_flip").attacker_ids is None


def idle(written, **flags):
    known, values = options(HostArguments, BiasArguments), {**vars(HostArguments()), **vars(BiasArguments(**flags))}
    return dict(idle_flags(known, values, written))


def test_a_flag_of_another_extension_is_named_with_what_it_needs():
    written = [
        "byzantine_clients",
        "clip_norm",
        "attack_strength",
        "prox_mu",
        "fedopt_eta",
        "peft_lora_r",
        "bama_alpha",
    ]
    assert idle(written) == {
        "byzantine_clients": "without --aggregation trimmed_mean or krum or multi_krum",
        "clip_norm": "without --aggregation norm_clip",
        "attack_strength": "without --attack sign_flip or another",
        "prox_mu": "without --fed_alg fedprox",
        "fedopt_eta": "without --fed_alg fedadagrad or fedyogi or fedadam",
        "peft_lora_r": "without --use_peft",
    }
    used = idle(["byzantine_clients", "clip_norm", "attack_strength"], aggregation="krum", attack="sign_flip")
    assert list(used) == ["clip_norm"]
    assert idle(["max_steps"], local_epochs=2) == {"max_steps": "beside --local_epochs"}
    assert idle(["wandb_project"], track="jsonl,wandb") == {}
    assert idle(["wandb_project"]) == {"wandb_project": "without --track wandb"}


def test_the_closed_end_of_a_range_is_inside():
    check_range("x", 1.0, 0, 1)
    check_range("x", 0.0, 0, 1)


def test_help_and_the_package_import_neither_torch_nor_transformers():
    code = (
        "import sys, contextlib, fedbias_plugin\n"
        "from fedbias_plugin.cli.main import main\n"
        "with contextlib.suppress(SystemExit):\n    main(['run', '--help'])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--aggregation" in done.stdout
