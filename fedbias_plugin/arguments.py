"""Every flag the plugin adds to a host, in one dataclass that checks itself.

The fields are plain strings and numbers so that any parser of dataclasses (the plugin's own, ``HfArgumentParser`` in
OpenFedLLM) can read them; :meth:`BiasArguments.__post_init__` refuses a wrong value with a sentence that says what to
write instead. Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.options import check_options, check_range, option, split_list
from fedbias_plugin.registry import load, names, todays_name, with_extensions

ON_BAD_UPDATE = ("stop", "drop")
BENCHMARKS = ("crows_pairs", "stereoset")
SCENARIOS = ("1B2C", "2B1C", "3B", "3C", "mix-1B2C", "mix-2B1C", "custom")
BAMA = {"aggregation": ("bama",)}
DEALT = {"scenario": SCENARIOS}
"""Where the plugin deals the rows, and not a patched host its own."""
WANDB = {"track": ("wandb",)}
WANDB_MODES = ("online", "offline", "disabled")


@dataclass
class CoreArguments:
    """What to poison, how to measure, how to weigh, where to write.

    Symbols refer to Zhao et al., "Investigating Social Bias Propagation in Federated Fine-tuning of Large Language
    Models": ``bama_alpha`` is alpha of eq. 1, ``bama_lambda`` is lambda of eq. 2 in 1/percentage point.

    Raises:
        UserError: a value is out of range, a name is unknown, or two flags contradict each other.
    """

    # Aggregation
    aggregation: str = option(
        "plain",
        "how clients are weighted: plain (the server algorithm's own way), bama, or one of the robust baselines",
        choices=functools.partial(names, "rule"),
    )
    bama_alpha: float = option(
        0.5,
        "alpha of eq. 1: scale of the bias score b_i, in [0, 1]",
        at_least=0,
        at_most=1,
        read_when=BAMA,
        warns=False,  # it scales the recorded b_i of every run
    )
    bama_crows_fraction: float = option(
        0.25, "share of CrowS-Pairs used as probe items for the weights", at_least=0, at_most=1
    )
    bama_stereoset_fraction: float = option(
        0.25, "share of StereoSet used as probe items for the weights", at_least=0, at_most=1
    )
    on_bad_update: str = option(
        "stop",
        "what to do with an update that has NaN or Inf, other tensors than the model, too large a norm, or a loss or "
        "scores that are no numbers: stop the run, or drop that client for the round; a resumed run may change it",
        choices=ON_BAD_UPDATE,
        matters="speed",
        may_change=True,
    )

    # Attacks
    attack: str = option(
        "none",
        "what attackers do besides holding biased rows",
        choices=lambda: ("none", *names("attack")),
    )
    attackers: str | None = option(
        None, "client ids that attack, such as 0,2; without it the clients that hold biased rows"
    )

    # Data
    scenario: str = option(
        "1B2C",
        "who holds biased rows; none leaves a host's own data and split alone, which fedbias run has not",
        choices=(*SCENARIOS, "none"),
    )
    biased_shares: str | None = option(
        None,
        "with --scenario custom: biased share of each client, such as 1,0,0,0.5",
        read_when={"scenario": ("custom",)},
    )
    client_samples: int = option(300, "training rows of every client", at_least=1, read_when=DEALT)
    heldout_samples: int = option(
        100,
        "clean rows no client holds, for the held-out loss; fewer when fewer are left",
        at_least=0,
        read_when=DEALT,
    )
    rouge_samples: int = option(
        0,
        "held-out rows to which the global model writes responses for ROUGE-L in every measured round (greedy, up to "
        "128 tokens each); 0 writes none. Needs rouge-score",
        at_least=0,
        read_when=DEALT,
        matters="measuring",
    )
    clean_dataset: str = option(
        "auto",
        "clean rows: a known name (fedbias data list), a hub name, or a json/jsonl/parquet/csv file; auto takes "
        "Alpaca-GPT4 if it is on this machine, else the bundled mini data",
        read_when=DEALT,
    )
    biased_dataset: str = option(
        "auto",
        "biased rows, likewise; auto takes BiasDPO if it is on this machine, else the bundled mini data",
        read_when=DEALT,
    )
    data_dir: str | None = option(
        None,
        "folder with the data sets; 'mini' uses the bundled mini data for everything",
        matters="machine",
        may_change=True,
    )
    local_epochs: int | None = option(
        None, "epochs of a client over all its rows in a round; replaces --max_steps", at_least=1
    )
    schedule_seed: int | None = option(
        None,
        "seed of which clients and rows a round takes, and of row order and dropout; without it they are the same for "
        "every --seed, as in OpenFedLLM",
        matters="seed",
    )
    deterministic: bool = option(
        False, "deterministic kernels only, slower: for equal bits on a GPU, and on CPUs with models beyond 4M weights"
    )

    # Measuring
    bias_benchmarks: str = option(
        "crows_pairs,stereoset", "bias benchmarks, comma separated, or none", choices=BENCHMARKS, many=True
    )
    bias_eval_every: int = option(
        1,
        "measure bias every so many rounds; round 0 and the last are always measured, and BAMA weighs in every round",
        at_least=1,
        matters="measuring",
    )
    crows_reduction: str = option(
        "sum",
        "sentence score of CrowS-Pairs; matched is sum over the pairs of equal token count",
        choices=("sum", "mean", "shared", "matched"),
    )
    stereoset_reduction: str = option("mean", "sentence score of StereoSet", choices=("mean", "sum"))
    bias_batch_tokens: int = option(4096, "tokens in one scoring batch, padding included", at_least=1, matters="speed")

    # Tracking
    track: str = option(
        "jsonl",
        "where the numbers go; jsonl always",
        choices=functools.partial(names, "tracker"),
        many=True,
        matters="tracking",
    )
    wandb_project: str = option("fedbias", "Weights & Biases project", read_when=WANDB, matters="tracking")
    wandb_mode: str | None = option(
        None,
        "Weights & Biases mode; without it WANDB_MODE, else online. Offline is also the fallback without login or "
        "network",
        choices=WANDB_MODES,
        read_when=WANDB,
        matters="machine",
        may_change=True,
    )

    def __post_init__(self) -> None:
        self.aggregation = todays_name("rule", self.aggregation)
        check_options(self)
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.scenario == "custom" and not self.biased_shares:
            raise UserError("--scenario custom needs --biased_shares, one share per client, such as 1,0,0,0.5.")
        if self.scenario != "custom" and self.biased_shares:
            raise UserError(f"--biased_shares belongs to --scenario custom, not to {self.scenario!r}.")
        if self.biased_shares:
            self.custom_shares  # noqa: B018  # a malformed list must fail here, before any data is read
        if "bias" in load("rule", self.aggregation).needs and not any(self.probe_fractions.values()):
            raise UserError(
                f"--aggregation {self.aggregation} weighs clients by their bias, but no probe item is left: give "
                "--bias_benchmarks crows_pairs,stereoset, and a --bama_crows_fraction or --bama_stereoset_fraction > 0."
            )
        if self.rouge_samples > self.heldout_samples:
            raise UserError(
                f"--rouge_samples {self.rouge_samples} takes held-out rows, and --heldout_samples is "
                f"{self.heldout_samples}; raise that, or ask for fewer."
            )
        self._check_attack()

    def _check_attack(self) -> None:
        if self.attack == "none" and self.attackers:
            raise UserError(f"--attackers {self.attackers} belongs to an --attack: {', '.join(names('attack'))}.")
        if self.attack == "probe_gaming" and (self.scenario == "none" or not self.benchmark_names):
            raise UserError(
                "--attack probe_gaming adds rows from the bias benchmarks to those that --scenario deals: give "
                "--scenario 1B2C or another, and --bias_benchmarks crows_pairs,stereoset."
            )
        self.attacker_ids  # noqa: B018  # likewise a malformed list

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


if TYPE_CHECKING:

    class BiasArguments(CoreArguments):
        """Every flag of the plugin: its own, and those of its extensions."""

        def __init__(self, **flags: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

else:
    BiasArguments = with_extensions(CoreArguments, "BiasArguments")
