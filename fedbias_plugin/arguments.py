"""Every flag the plugin adds to a host, in one dataclass that checks itself.

The fields are plain strings and numbers so that any parser of dataclasses (the plugin's own, ``HfArgumentParser`` in
OpenFedLLM) can read them; :meth:`BiasArguments.__post_init__` refuses a wrong value with a sentence that says what to
write instead. Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Any

from fedbias_plugin.errors import UserError, did_you_mean

AGGREGATIONS = ("host", "bama", "median", "trimmed_mean", "krum", "multi_krum", "norm_clip")
USE_BYZANTINE_CLIENTS = ("trimmed_mean", "krum", "multi_krum")
ATTACKS = ("none", "sign_flip", "model_replacement", "gaussian_noise", "probe_gaming")
ON_BAD_UPDATE = ("stop", "drop")
WEIGHTINGS = ("normalized", "paper")
BENCHMARKS = ("crows_pairs", "stereoset")
TRACKERS = ("jsonl", "wandb", "tensorboard")
WANDB_MODES = ("online", "offline", "disabled")


def check_choice(flag: str, value: str, choices: Iterable[str]) -> None:
    """Raise :class:`UserError` with the nearest match when ``value`` is not one of ``choices``."""
    choices = list(choices)
    if value in choices:
        return
    raise UserError(f"--{flag} {value!r} is unknown; choose one of {', '.join(choices)}.{did_you_mean(value, choices)}")


def check_range(flag: str, value: float, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Raise :class:`UserError` when ``value`` is not a number in [low, high] (or (low, high] with ``open_low``)."""
    too_low = value <= low if open_low else value < low
    if math.isfinite(value) and not too_low and value <= high:
        return
    bound = f"{'greater than' if open_low else 'at least'} {low:g}"
    if math.isfinite(high):
        bound += f" and at most {high:g}"
    raise UserError(f"--{flag} must be {bound}, got {value}.")


def split_list(text: str) -> list[str]:
    """``"a, b"`` -> ``["a", "b"]``; an empty string or ``none`` is the empty list."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [] if parts == ["none"] else parts


def option(default: Any, help_text: str) -> Any:
    """A dataclass field with its ``--help`` text, in the form ``HfArgumentParser`` reads too."""
    return field(default=default, metadata={"help": help_text})


@dataclass
class BiasArguments:
    """What to poison, how to measure, how to weigh, where to write.

    Symbols refer to Zhao et al., "Investigating Social Bias Propagation in Federated Fine-tuning of Large Language
    Models": ``bama_alpha`` is alpha of eq. 1, ``bama_lambda`` is lambda of eq. 2 in 1/percentage point.

    Raises:
        UserError: a value is out of range, a name is unknown, or two flags contradict each other.
    """

    # Aggregation
    aggregation: str = option(
        "host",
        "how clients are weighted: host (the server algorithm's own way) or bama; or one of the robust baselines "
        "median, trimmed_mean, krum, multi_krum and norm_clip",
    )
    bama_alpha: float = option(0.5, "alpha of eq. 1: scale of the bias score b_i, in [0, 1]")
    bama_lambda: float = option(0.2, "lambda of eq. 2 per percentage point: a client 1/lambda points worse weighs 1/e")
    bama_weighting: str = option("normalized", "eq. 3 to the letter (paper) or with factors that sum to 1 (normalized)")
    bama_crows_fraction: float = option(0.25, "share of CrowS-Pairs used as probe items for the weights")
    bama_stereoset_fraction: float = option(0.25, "share of StereoSet used as probe items for the weights")
    byzantine_clients: int = option(
        1,
        "f, the attackers a round that trimmed_mean, krum and multi_krum are to withstand; Krum is proved for 2f + 3 "
        "clients and more",
    )
    clip_norm: float | None = option(
        None, "with --aggregation norm_clip: longest update; without it the median of the round's update norms"
    )
    max_update_norm: float | None = option(
        None,
        "an update with a larger L2 norm is a bad update; no limit when absent. Every round shows its update norms",
    )
    on_bad_update: str = option(
        "stop",
        "what to do with an update that has NaN or Inf, other tensors than the model, too large a norm, or a loss or "
        "scores that are no numbers: stop the run, or drop that client for the round; a resumed run may change it",
    )

    # Attacks
    attack: str = option(
        "none",
        "what attackers do besides holding biased rows: none, sign_flip, model_replacement, gaussian_noise or "
        "probe_gaming",
    )
    attackers: str | None = option(
        None, "client ids that attack, such as 0,2; without it the clients that hold biased rows"
    )
    attack_strength: float | None = option(
        None,
        "factor of the update (sign_flip: 1, model_replacement: the number of clients of the round), noise per size of "
        "the update (gaussian_noise: 1), or extra rows per row (probe_gaming: 1)",
    )

    # Data
    scenario: str = option("1B2C", "who holds biased rows: 3B, 3C, 1B2C, 2B1C, mix-1B2C, mix-2B1C, custom")
    biased_shares: str | None = option(None, "with --scenario custom: biased share of each client, such as 1,0,0,0.5")
    client_samples: int = option(300, "training rows of every client")
    heldout_samples: int = option(100, "clean rows no client holds, for the held-out loss; fewer when fewer are left")
    rouge_samples: int = option(
        0,
        "held-out rows to which the global model writes responses for ROUGE-L in every measured round (greedy, up to "
        "128 tokens each); 0 writes none. Needs rouge-score",
    )
    clean_dataset: str = option(
        "auto",
        "clean rows: a known name (fedbias data list), a hub name, or a json/jsonl/parquet/csv file; auto takes "
        "Alpaca-GPT4 if it is on this machine, else the bundled mini data",
    )
    biased_dataset: str = option(
        "auto",
        "biased rows, likewise; auto takes BiasDPO if it is on this machine, else the bundled mini data",
    )
    data_dir: str | None = option(None, "folder with the data sets; 'mini' uses the bundled mini data for everything")
    local_epochs: int | None = option(None, "epochs of a client over all its rows in a round; replaces --max_steps")
    schedule_seed: int | None = option(
        None,
        "seed of which clients and rows a round takes, and of row order and dropout; without it they are the same for "
        "every --seed, as in OpenFedLLM",
    )
    deterministic: bool = option(
        False, "deterministic kernels only, slower: for equal bits on a GPU, and on CPUs with models beyond 4M weights"
    )

    # Measuring
    bias_benchmarks: str = option("crows_pairs,stereoset", "bias benchmarks, comma separated, or none")
    bias_eval_every: int = option(
        1,
        "measure bias every so many rounds; round 0 and the last are always measured, and BAMA weighs in every round",
    )
    crows_reduction: str = option(
        "sum", "sentence score of CrowS-Pairs: sum, mean, shared, or matched (sum, only pairs of equal token count)"
    )
    stereoset_reduction: str = option("mean", "sentence score of StereoSet: mean or sum")
    bias_batch_tokens: int = option(4096, "tokens in one scoring batch, padding included")

    # Tracking
    track: str = option("jsonl", "where the numbers go: jsonl (always), wandb, tensorboard")
    wandb_project: str = option("fedbias", "Weights & Biases project")
    wandb_mode: str | None = option(
        None,
        "Weights & Biases mode: online, offline or disabled; without it WANDB_MODE, else online. Offline is "
        "also the fallback without login or network",
    )

    def __post_init__(self) -> None:
        check_choice("aggregation", self.aggregation, AGGREGATIONS)
        check_choice("bama_weighting", self.bama_weighting, WEIGHTINGS)
        if self.wandb_mode is not None:
            check_choice("wandb_mode", self.wandb_mode, WANDB_MODES)
        check_choice("crows_reduction", self.crows_reduction, ("sum", "mean", "shared", "matched"))
        check_choice("stereoset_reduction", self.stereoset_reduction, ("mean", "sum"))
        for name in self.benchmark_names:
            check_choice("bias_benchmarks", name, BENCHMARKS)
        for name in split_list(self.track):
            check_choice("track", name, TRACKERS)
        check_range("bama_alpha", self.bama_alpha, 0, 1)
        check_range("bama_lambda", self.bama_lambda, 0, open_low=True)
        check_range("bama_crows_fraction", self.bama_crows_fraction, 0, 1)
        check_range("bama_stereoset_fraction", self.bama_stereoset_fraction, 0, 1)
        check_range("client_samples", self.client_samples, 1)
        check_range("heldout_samples", self.heldout_samples, 0)
        check_range("rouge_samples", self.rouge_samples, 0)
        check_range("bias_eval_every", self.bias_eval_every, 1)
        check_range("bias_batch_tokens", self.bias_batch_tokens, 1)
        if self.local_epochs is not None:
            check_range("local_epochs", self.local_epochs, 1)
        check_choice("attack", self.attack, ATTACKS)
        check_choice("on_bad_update", self.on_bad_update, ON_BAD_UPDATE)
        check_range("byzantine_clients", self.byzantine_clients, 0)
        for name in ("clip_norm", "max_update_norm", "attack_strength"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 0, open_low=True)
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.scenario == "custom" and not self.biased_shares:
            raise UserError("--scenario custom needs --biased_shares, one share per client, such as 1,0,0,0.5.")
        if self.scenario != "custom" and self.biased_shares:
            raise UserError(f"--biased_shares belongs to --scenario custom, not to {self.scenario!r}.")
        if self.biased_shares:
            self.custom_shares  # noqa: B018  # a malformed list must fail here, before any data is read
        if self.aggregation == "bama" and not any(self.probe_fractions.values()):
            raise UserError(
                "--aggregation bama weighs clients by their bias, but no probe item is left: give --bias_benchmarks "
                "crows_pairs,stereoset and at least one of --bama_crows_fraction, --bama_stereoset_fraction above 0."
            )
        if self.rouge_samples > self.heldout_samples:
            raise UserError(
                f"--rouge_samples {self.rouge_samples} takes held-out rows, and --heldout_samples is "
                f"{self.heldout_samples}; raise that, or ask for fewer."
            )
        self._check_attack()

    def _check_attack(self) -> None:
        if self.attack == "none" and self.attackers:
            raise UserError(f"--attackers {self.attackers} belongs to an --attack: {', '.join(ATTACKS[1:])}.")
        if self.attack == "probe_gaming" and (self.scenario == "none" or not self.benchmark_names):
            raise UserError(
                "--attack probe_gaming adds rows from the bias benchmarks to those that --scenario deals: give "
                "--scenario 1B2C or another, and --bias_benchmarks crows_pairs,stereoset."
            )
        self.attacker_ids  # noqa: B018  # likewise a malformed list

    def idle_flags(self, written: Container[str]) -> list[tuple[str, str]]:
        """Which of the flags ``written`` by the user change nothing in this run, each with the flags they need."""
        needs = []
        if self.aggregation != "bama":
            needs.append(("--aggregation bama", ["bama_lambda", "bama_weighting"]))
        if self.aggregation not in USE_BYZANTINE_CLIENTS:
            needs.append((f"--aggregation {' or '.join(USE_BYZANTINE_CLIENTS)}", ["byzantine_clients"]))
        if self.aggregation != "norm_clip":
            needs.append(("--aggregation norm_clip", ["clip_norm"]))
        if self.attack == "none":
            needs.append((f"--attack {' or '.join(ATTACKS[1:])}", ["attack_strength"]))
        if "wandb" not in split_list(self.track):
            needs.append(("--track jsonl,wandb", ["wandb_project", "wandb_mode"]))
        if self.scenario == "none":
            dealt = ["clean_dataset", "biased_dataset", "client_samples", "heldout_samples", "rouge_samples"]
            dealt.append("preference_dataset")
            needs.append(("--scenario 1B2C or another", dealt))
        return [(name, needed) for needed, names in needs for name in names if name in written]

    @property
    def benchmark_names(self) -> list[str]:
        """The bias benchmarks asked for, without repeats, in the order given."""
        return list(dict.fromkeys(split_list(self.bias_benchmarks)))

    @property
    def probe_fractions(self) -> dict[str, float]:
        """Share of each benchmark's items that are probe items."""
        fractions = {"crows_pairs": self.bama_crows_fraction, "stereoset": self.bama_stereoset_fraction}
        return {name: fractions[name] for name in self.benchmark_names}

    @property
    def reductions(self) -> dict[str, str]:
        """Sentence-score reduction of each benchmark."""
        return {"crows_pairs": self.crows_reduction, "stereoset": self.stereoset_reduction}

    @property
    def custom_shares(self) -> list[float] | None:
        """``biased_shares`` as numbers in [0, 1], or None when it is not given."""
        if not self.biased_shares:
            return None
        try:
            shares = [float(part) for part in split_list(self.biased_shares)]
        except ValueError:
            raise UserError(f"--biased_shares {self.biased_shares!r} must be numbers such as 1,0,0,0.5.") from None
        for share in shares:
            check_range("biased_shares", share, 0, 1)
        return shares

    @property
    def attacker_ids(self) -> frozenset[int] | None:
        """``attackers`` as client ids, or None when it is not given."""
        if not self.attackers:
            return None
        ids = split_list(self.attackers)
        if not ids or not all(client.isdecimal() for client in ids):
            raise UserError(f"--attackers {self.attackers!r} must be client ids such as 0,2.")
        return frozenset(int(client) for client in ids)
