"""Flags of the built-in host: OpenFedLLM's names and meanings, checked.

Defaults are OpenFedLLM's where they make sense for a study of bias: 3 clients, all taking part, 5 rounds (the paper)
instead of 2, 2 and 500, and the bundled model instead of Llama-2-7B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.fed_algs import ALGORITHMS, check_fed_alg, local_client
from fedbias_plugin.known_flags import with_extensions
from fedbias_plugin.options import check_options, check_range, option
from fedbias_plugin.preflight import LARGEST_SEED, check_quantisation
from fedbias_plugin.training.trainables import LORA

DTYPES = ("float32", "bfloat16", "auto")
LOCAL_STATES = ("auto", "memory", "disk")
OF_THE_LOOP = ("num_clients", "num_rounds", "sample_clients", "fed_alg", "seed", "template", "seq_length")
"""What the session must know of any loop."""
# OpenFedLLM's flags that the built-in host does not have, and what to do instead.
NOT_HERE = {
    "dataset_name": "give --clean_dataset and --biased_dataset",
    "dataset_sample": "give --client_samples",
    "local_data_dir": "give --data_dir",
    "num_train_epochs": "give --local_epochs",
    "split_strategy": "give --partitioner",
    "log_with": "give --track",
    "logging_steps": "drop it: every client's loss of every round is in metrics.jsonl",
    "save_steps": "give --save_model_freq, in rounds",
    "save_total_limit": "drop it: one folder per saved round is kept",
    "push_to_hub": "drop it and upload the saved adapter yourself",
    "hub_model_id": "drop it and upload the saved adapter yourself",
    "use_auth_token": "drop it: a login with `hf auth login` is used by itself",
}


@dataclass
class ModelArguments:
    """Which model, and how it is loaded."""

    model_name_or_path: str = option(
        "tiny", "hub name or folder of a causal LM; tiny is the bundled model", may_change=True
    )
    dtype: str = option("float32", "dtype of the weights; auto is the checkpoint's", choices=DTYPES)
    load_in_8bit: bool = option(False, "load the model in 8 bits (bitsandbytes)", read_when=LORA)
    load_in_4bit: bool = option(False, "load the model in 4 bits (bitsandbytes, nf4)", read_when=LORA)
    trust_remote_code: bool = option(False, "run code that comes with the model")

    @property
    def how_to_load(self) -> dict[str, Any]:
        """What ``load_model`` takes beside the name."""
        return {name: getattr(self, name) for name in ("dtype", "load_in_8bit", "load_in_4bit", "trust_remote_code")}


@dataclass
class HostCore(ModelArguments):
    """The federated loop, the model and the local training.

    Raises:
        UserError: a value is out of range, a name is unknown, or two flags contradict each other.
    """

    # Adapter
    use_peft: bool = option(False, "train LoRA adapters (or another with --trainable); without it every weight")

    # Federation
    fed_alg: str = option("fedavg", f"server algorithm: {', '.join(ALGORITHMS)}, or localN (client N alone)")
    num_rounds: int = option(5, "rounds", at_least=1)
    num_clients: int = option(3, "clients", at_least=1)
    sample_clients: int | None = option(None, "clients that take part in a round; all when absent")

    # Local training
    learning_rate: float = option(
        2e-5,
        "learning rate of the first round; falls to 1e-6 by a cosine over the rounds",
        at_least=1e-6,  # the last round's, see training/schedule.py
    )
    batch_size: int = option(16, "rows in a batch", at_least=1)
    gradient_accumulation_steps: int = option(1, "batches in an optimizer step", at_least=1)
    max_steps: int = option(
        10,
        "optimizer steps of a client in a round, unless --local_epochs is given",
        at_least=1,
        read_when={"local_epochs": (None,)},
    )
    seq_length: int = option(512, "tokens of a training row; longer rows are cut", at_least=1)
    bf16: bool = option(False, "train in bfloat16 autocast on top of the weights' dtype")
    gradient_checkpointing: bool = option(True, "recompute activations to save memory", matters="speed")

    # Run
    seed: int = option(
        2023,
        "seed of roles, rows, adapter initialisation, probe items and bootstrap",
        at_least=0,
        at_most=LARGEST_SEED,
        matters="seed",
    )
    output_dir: str = option(
        "output", "folder of the run; must not hold another run", matters="machine", may_change=True
    )
    save_model_freq: int = option(
        50,
        "save the global model every so many rounds; the last one is always saved",
        at_least=1,
        matters="machine",
        may_change=True,
    )
    checkpoint_every: int = option(
        1,
        "write a checkpoint every so many rounds, from which --resume goes on; 0 writes none",
        at_least=0,
        matters="machine",
        may_change=True,
    )
    local_states: str = option(
        "auto",
        "where the clients' states wait to be scored and averaged: memory, disk (in --output_dir, for the round) or "
        "auto (disk when they would take more than half of the free memory)",
        choices=LOCAL_STATES,
        matters="machine",
        may_change=True,
    )

    def __post_init__(self) -> None:
        check_options(self)
        check_fed_alg(self.fed_alg)
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.sample_clients is None:
            self.sample_clients = self.num_clients
        check_range("sample_clients", self.sample_clients, 1)
        if self.sample_clients > self.num_clients:
            raise UserError(
                f"--sample_clients {self.sample_clients} is more than --num_clients {self.num_clients}; "
                f"at most {self.num_clients} can take part in a round."
            )
        alone = local_client(self.fed_alg)
        if alone is not None and alone >= self.num_clients:
            raise UserError(
                f"--fed_alg {self.fed_alg} names client {alone}, but the clients are 0 to {self.num_clients - 1}."
            )
        check_quantisation(self.load_in_8bit, self.load_in_4bit, self.use_peft)

    @property
    def of_the_loop(self) -> dict[str, Any]:
        """The flags :data:`OF_THE_LOOP`, by name."""
        return {name: getattr(self, name) for name in OF_THE_LOOP}

    def clients_of(self, round_idx: int, schedule_seed: int | None = None) -> list[int]:
        """The clients that take part in round ``round_idx`` (from 0)."""
        from fedbias_plugin.training.schedule import clients_this_round

        clients = self.sample_clients or self.num_clients
        return clients_this_round(self.fed_alg, self.num_clients, clients, round_idx, schedule_seed)


if TYPE_CHECKING:

    class HostArguments(HostCore):
        """Every flag of the built-in host: its own, and those of extensions that OpenFedLLM has too."""

        def __init__(self, **flags: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

else:
    HostArguments = with_extensions(HostCore, "HostArguments", of_host=True)
