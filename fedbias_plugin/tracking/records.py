"""What a run writes down, as typed records; ``docs/metrics-file.md`` defines every number.

``to_json`` gives strict JSON: a NaN or an infinity becomes null and a sentence in ``warnings``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedbias_plugin.files import plain_json
from fedbias_plugin.known_flags import flags_for
from fedbias_plugin.registry import todays_name
from fedbias_plugin.tracking.payload import read_payload, read_sides
from fedbias_plugin.tracking.read_json import (
    read_integer,
    read_metrics,
    read_number,
    read_numbers,
    read_object,
    read_optional_text,
    read_text,
    read_texts,
)

MISSING = "missing"
"""In ``extra`` of a client of the round from which no update came; why is in ``refused``."""


@dataclass
class ClientRecord:
    """One client in one round.

    Attributes:
        poisoned_share: share of the client's rows that are biased, 0 to 1; None for a host's own rows.
        rows: training rows the client holds.
        train_loss: mean training loss of the round, nats per token.
        update_norm: L2 norm of local minus global state.
        metrics: name -> block on the probe items, of the metrics that are measured of clients; in JSON each under its
            own name.
        bias_score: b_i of eq. 1, percentage points.
        weight: w_i of eq. 2, or the client's share of the samples where the host weights by samples; None for a
            refused update, and for rules that give none (``median``, ``trimmed_mean``).
        attack: name of the attack that the client makes, None for an honest client.
        refused: why the server left the update out, None for one that it used.
        extra: further numbers that a stage gave the update, by name.
        payload: ``sent`` and ``received`` -> what -> bytes, by definition (docs/metrics.md); empty where nothing
            travels, and in files of older versions, which lack the key.
    """

    poisoned_share: float | None
    rows: int
    train_loss: float | None = None
    update_norm: float | None = None
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    bias_score: float | None = None
    weight: float | None = None
    attack: str | None = None
    refused: str | None = None
    extra: dict[str, float] = field(default_factory=dict)
    payload: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def has_answered(self) -> bool:
        """Whether an update of it came, one to use or to refuse."""
        return MISSING not in self.extra

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ClientRecord:
        """Read a client's object; unknown keys are ignored, a wrong type raises ValueError."""
        return cls(
            poisoned_share=read_number(data, "poisoned_share"),
            rows=read_integer(data, "rows"),
            train_loss=read_number(data, "train_loss"),
            update_norm=read_number(data, "update_norm"),
            metrics=read_metrics(data, besides=("extra", "payload")),
            bias_score=read_number(data, "bias_score"),
            weight=read_number(data, "weight"),
            attack=read_optional_text(data, "attack"),
            refused=read_optional_text(data, "refused"),
            extra=read_numbers(read_object(data, "extra") or {}),
            payload=read_sides(read_object(data, "payload") or {}),
        )


@dataclass
class GlobalRecord:
    """The global model after a round.

    Attributes:
        metrics: name -> block (``Metric.block``): ``value``, ``ideal``, ``n``, ``ci95``, ``noise_floor`` and the
            metric's own keys; of a metric with probe items the headline, with ``items`` ("report" or "full": which
            items it is of) and the shorter objects ``full``, ``report`` and ``probe``. In JSON each stands under its
            own name.
        bias_score: b of eq. 1 of the headline scores, percentage points.
    """

    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    bias_score: float | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GlobalRecord:
        """Read the ``global`` object; unknown keys are ignored, a wrong type raises ValueError."""
        return cls(metrics=read_metrics(data), bias_score=read_number(data, "bias_score"))


@dataclass
class Seconds:
    """Wall-clock seconds of a round's parts."""

    train: float = 0.0
    assess: float = 0.0
    aggregate: float = 0.0
    evaluate: float = 0.0

    @property
    def total(self) -> float:
        """Sum of the four parts."""
        return self.train + self.assess + self.aggregate + self.evaluate

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Seconds:
        """Read the ``seconds`` object; missing parts are 0."""
        return cls(**{part: read_number(data, part) or 0.0 for part in ("train", "assess", "aggregate", "evaluate")})


@dataclass
class RoundRecord:
    """One line of ``metrics.jsonl``. Round 0 is the untouched model and has no clients.

    Attributes:
        round: 0 before training, 1 for the first trained round.
        global_: the global model after the round; JSON key ``global``.
        clients: client id -> record, for the clients of this round; JSON keys are strings.
        aggregation: rule that weighted the clients (``plain``, ``bama``, ``median``, ...).
        aggregation_mass: sum of w_i n_i/n (docs/metrics.md); None before training.
        effective_clients: 1 / sum w_i^2.
        weight_on_poisoned: sum of w_i over clients that hold biased rows.
        learning_rate: with which all clients began the round; None in round 0, where it is not known or not the same,
            and in files of older versions.
        payload: ``sent`` and ``received`` of all clients by what, bytes, with ``sent_total`` and ``received_total``
            since the run began; empty, and without its key, where nothing travelled.
        seconds: wall-clock seconds.
        peak_memory_bytes: peak memory of the process, or of the accelerator where there is one.
        warnings: what a reader of these numbers must know.
        extra: further numbers that a stage gave the round, by name.
        settings: in round 0 the run's arguments, from :func:`recorded_settings`; None in later rounds, which lack the
            key, and in files of older versions.
    """

    round: int
    global_: GlobalRecord
    clients: dict[int, ClientRecord] = field(default_factory=dict)
    aggregation: str = "plain"
    aggregation_mass: float | None = None
    effective_clients: float | None = None
    weight_on_poisoned: float | None = None
    learning_rate: float | None = None
    payload: dict[str, Any] = field(default_factory=dict)
    seconds: Seconds = field(default_factory=Seconds)
    peak_memory_bytes: int = 0
    warnings: list[str] = field(default_factory=list)
    extra: dict[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Strict JSON, keys in the order of the attributes; numbers that are not finite become null and a warning."""
        data = {("global" if name == "global_" else name): value for name, value in vars(self).items()}
        data["global"] = _flat(self.global_)
        data["clients"] = {client: _flat(record) for client, record in self.clients.items()}
        if self.settings is None:
            del data["settings"]
        if not self.payload:
            del data["payload"]
        plain, lost = plain_json(data)
        plain["warnings"] = [*plain["warnings"], *(f"{path} was not finite and is written as null" for path in lost)]
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RoundRecord:
        """Read a line of ``metrics.jsonl``; unknown keys are ignored.

        Raises:
            ValueError: a key is missing or of the wrong type; the message names it.
        """
        return cls(
            round=read_integer(data, "round"),
            global_=GlobalRecord.from_json(read_object(data, "global", required=True) or {}),
            clients=_clients(read_object(data, "clients") or {}),
            aggregation=todays_name("rule", read_text(data, "aggregation", "plain")),
            aggregation_mass=read_number(data, "aggregation_mass"),
            effective_clients=read_number(data, "effective_clients"),
            weight_on_poisoned=read_number(data, "weight_on_poisoned"),
            learning_rate=read_number(data, "learning_rate"),
            payload=read_payload(read_object(data, "payload") or {}),
            seconds=Seconds.from_json(read_object(data, "seconds") or {}),
            peak_memory_bytes=int(read_number(data, "peak_memory_bytes") or 0),
            warnings=read_texts(data, "warnings"),
            extra=read_numbers(read_object(data, "extra") or {}),
            settings=_todays(read_object(data, "settings")),
        )


def _todays(settings: dict[str, Any] | None) -> dict[str, Any] | None:
    """Settings of any version, with today's names of rules."""
    if settings and isinstance(settings.get("aggregation"), str):
        return {**settings, "aggregation": todays_name("rule", settings["aggregation"])}
    return settings


@dataclass(kw_only=True)
class RunInfo:
    """What a tracker must know of a run before its first round.

    Attributes:
        run_name: name of the run, shown to people.
        output_dir: the run's folder.
        config: every resolved argument.
        group: the same for runs that differ in their seed only.
        job_type: ``federated``, ``centralised`` or ``local``.
        tags: one a property, such as ``scenario:1B2C``, and the names of experiments.
        wandb_project: W&B project.
        wandb_mode: ``online``, ``offline`` or ``disabled``.
        num_clients: clients in the federation.
        num_rounds: rounds to train; None takes ``config["num_rounds"]`` where there is one.
        poisoned_shares: client id -> share of biased rows.
    """

    run_name: str
    output_dir: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    group: str | None = None
    job_type: str | None = None
    tags: Sequence[str] = ()
    wandb_project: str = "fedbias"
    wandb_mode: str = "online"
    num_clients: int = 0
    num_rounds: int | None = None
    poisoned_shares: Mapping[int, float] = field(default_factory=dict)

    @property
    def last_round(self) -> int | None:
        """Number of the last round, if it is known."""
        rounds = self.num_rounds if self.num_rounds is not None else self.config.get("num_rounds")
        return int(rounds) if rounds is not None else None


def recorded_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What round 0 says of a run's resolved arguments: all but those that say where and how it works.

    >>> recorded_settings({"fed_alg": "fedavg", "seed": 2023, "output_dir": "runs/a"})
    {'fed_alg': 'fedavg', 'seed': 2023}
    """
    return {name: value for name, value in config.items() if name not in flags_for("machine")}


def _clients(data: Mapping[str, Any]) -> dict[int, ClientRecord]:
    clients = {}
    for key in data:
        try:
            client = int(key)
            clients[client] = ClientRecord.from_json(read_object(data, key, required=True) or {})
        except ValueError as error:
            raise ValueError(f"clients/{key}: {error}") from None
    return clients


def _flat(record: GlobalRecord | ClientRecord) -> dict[str, Any]:
    """The attributes by name, and in the place of ``metrics`` each under its own name, where it was measured."""
    flat: dict[str, Any] = {}
    for name, part in vars(record).items():
        if name != "payload" or part:
            flat.update(part if name == "metrics" else {name: part})
    return flat
