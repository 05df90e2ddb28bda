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
from fedbias_plugin.known_flags import with_extensions
from fedbias_plugin.options import check_options, option, split_list
from fedbias_plugin.registry import active, build, load, nameable, names, todays_name

if TYPE_CHECKING:
    from fedbias_plugin.data.base import Split

ON_BAD_UPDATE = ("stop", "drop")
BENCHMARKS = "crows_pairs,stereoset"
BAMA = {"aggregation": ("bama",)}
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
        "how clients are weighted: plain (the server algorithm's own way), bama, or a baseline that is robust or fair",
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

    # Training
    task: str = option("sft", "what a client learns from a row", choices=functools.partial(names, "task"))
    trainable: str | None = option(
        None,
        "what is trained; without it lora with --use_peft, else full",
        choices=functools.partial(names, "trainable"),
    )

    # Data
    scenario: str = option(
        "1B2C",
        "who holds biased rows; none (a patched OpenFedLLM only) keeps the host's own data and split",
        choices=lambda: (*names("split"), "none"),
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
        BENCHMARKS,
        "bias benchmarks, comma separated, or none",
        choices=functools.partial(nameable, "metric"),
        many=True,
    )
    bias_eval_every: int = option(
        1,
        "measure bias every so many rounds; round 0 and the last are always measured, and BAMA weighs in every round",
        at_least=1,
        matters="measuring",
    )
    bias_batch_tokens: int = option(4096, "tokens in one scoring batch, padding included", at_least=1, matters="speed")
    scoring_dtype: str = option(
        "float32",
        "what a float32 model is scored in; auto takes bfloat16 where the machine has units for it and a trial on the "
        "probe items changes next to nothing",
        choices=("auto", "float32", "bfloat16"),
        matters="measuring",
    )

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
        if self.split is not None:
            self.split.check()
        for partitioner in active("partitioner", self):
            partitioner.check_flags(vars(self))
        load("task", self.task).check_flags(vars(self))
        metrics = active("metric", self)
        biased = [metric for metric in metrics if metric.in_bias_score]
        if "bias" in load("rule", self.aggregation).needs and not any(metric.probe_fraction for metric in biased):
            fractions = [f"--{flag}" for name in split_list(BENCHMARKS) for flag in load("metric", name).of_runs]
            raise UserError(
                f"--aggregation {self.aggregation} weighs clients by their bias, but no probe item is left: give "
                f"--bias_benchmarks {BENCHMARKS}, and a {' or '.join(fractions)} > 0."
            )
        for metric in metrics:
            metric.check_flags(vars(self))
        if build("rule", self.aggregation, self).reads_own and not vars(self).get("client_test_fraction"):
            raise UserError(
                f"--aggregation {self.aggregation} reads how the global model does on each client's own test rows, and "
                "no client keeps any: give --client_test_fraction 0.2."
            )
        if self.attack != "none":
            build("attack", self.attack, self).check(self)
        elif self.attackers:
            raise UserError(f"--attackers {self.attackers} belongs to an --attack: {', '.join(names('attack'))}.")

    @property
    def benchmark_names(self) -> list[str]:
        """The bias benchmarks asked for, without repeats, in the order given."""
        return list(dict.fromkeys(split_list(self.bias_benchmarks)))

    def measures_in(self, round_number: int, num_rounds: int) -> bool:
        """Whether the models of a round are measured; those of the last round always are."""
        return round_number % self.bias_eval_every == 0 or round_number == num_rounds

    @property
    def split(self) -> Split | None:
        """What deals the rows to the clients; None where a host does it itself (``--scenario none``)."""
        return None if self.scenario == "none" else build("split", self.scenario, self)

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
