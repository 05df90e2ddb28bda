"""What must agree before two runs are one arm or a pair: rows, starting weights, items, versions (docs/metrics.md).

What is not known of one of them is no difference. Everything that differs is named; a pair that differs is not tested.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from fedbias_plugin.data.client_tests import rows_tested
from fedbias_plugin.errors import printable
from fedbias_plugin.hosts.builtin.resolve import defaults
from fedbias_plugin.metrics.base import metric_class
from fedbias_plugin.options import Option, options
from fedbias_plugin.registry import load, names
from fedbias_plugin.study.runs import Run, mapping
from fedbias_plugin.study.settings import carried, differences, expected_shares, listed, value_text
from fedbias_plugin.tasks.templates import CHAT

SAME_START = 0.01
"""Relative: other devices decide a few items otherwise; another base model is further away than that."""
SAME_WEIGHT = 1e-3
SAME_SHARE = 0.02
SKEWS = ("partitioner", "label_field", "dirichlet_alpha", "dirichlet_min", "client_field")
DEALS_ROWS = frozenset(
    ("scenario", "biased_shares", "num_clients", "client_samples", "heldout_samples", "client_test_fraction", *SKEWS)
)
ATTACKS = frozenset(("attack", "attackers", "attack_strength"))
ENCODES = frozenset(("task", "template", "seq_length", "text_field"))
NAMES_DATA = frozenset(("clean_dataset", "biased_dataset", "preference_dataset", "columns"))
LOADS = frozenset(("model_name_or_path", "dtype", "load_in_8bit", "load_in_4bit", "classifier", "random_weights"))
"""Settings after which two runs hold other rows (or only attackers do), read them otherwise, read other data, or start
from other weights."""
MOST_NAMED = 4


@dataclass(frozen=True)
class Conflict:
    """Why two runs cannot be compared as they stand.

    Attributes:
        text: what differs, with both values.
        metric: whose values alone it concerns; None for all.
    """

    text: str
    metric: str | None = None

    def __str__(self) -> str:
        return self.text


def faults(run: Run) -> list[str]:
    """Where the records of a run are not of the run that its settings describe."""
    asked = run.settings.get("aggregation")
    rules = dict.fromkeys(record.aggregation for record in run.rounds if record.clients and isinstance(asked, str))
    other = (f"its settings say --aggregation {asked}, its records {rule}" for rule in rules if rule != asked)
    return [printable(text) for text in (*other, *_other_weights(run), *_other_rows(run))]


def _other_weights(run: Run) -> Iterator[str]:
    """Weights that are not those of eq. 2; under ``plain`` neither the shares of the rows nor equal, as in FedOpt."""
    strength = run.settings.get("bama_lambda")
    for record in run.rounds:
        clients = [row for row in record.clients.values() if row.weight is not None]
        scores = [row.bias_score for row in clients if row.bias_score is not None]
        rules: list[list[float]] = []
        if record.aggregation == "bama" and isinstance(strength, float | int) and len(scores) == len(clients):
            rules = [[math.exp(-strength * (score - min(scores))) for score in scores]]
        elif record.aggregation == "plain":
            rules = [[float(row.rows) for row in clients], [1.0] * len(clients)]
        wrong = [
            any(
                abs((row.weight or 0.0) - one / sum(rule)) > SAME_WEIGHT for row, one in zip(clients, rule, strict=True)
            )
            for rule in rules
            if sum(rule)
        ]
        if wrong and all(wrong):
            yield f"the weights of round {record.round} are not those of --aggregation {record.aggregation}"
            return


def _other_rows(run: Run) -> Iterator[str]:
    """Clients that hold fewer or other rows than the scenario, the settings and ``run.json`` say."""
    stated = run.part("poisoned_shares")
    shares = {str(client): row.poisoned_share for client, row in run.clients.items()}
    if stated:
        if wrong := [client for client, share in shares.items() if share is not None and stated.get(client) != share]:
            yield f"its records and run.json disagree on the biased rows of client {wrong[0]}"
        shares = dict(stated)
    expected = expected_shares(run.settings)
    known = sorted(share for share in shares.values() if isinstance(share, float | int))
    is_whole = expected is not None and len(known) == len(expected)
    if is_whole and any(abs(one - other) > SAME_SHARE for one, other in zip(known, expected or (), strict=True)):
        yield f"its clients hold biased shares of {_listed(known)}, not the {_listed(expected or ())} of its scenario"
    planned, tested = run.settings.get("client_samples"), run.settings.get("client_test_fraction")
    if isinstance(planned, int) and isinstance(tested, float | int):
        planned -= rows_tested(planned, tested) if tested and planned > 1 else 0
    # An attack may add rows, and a transform change all of them.
    is_changed = any(
        about.is_read(run.settings) and run.settings.get(name) not in (None, about.default)
        for name, about in _transform_flags().items()
    )
    is_skewed = run.settings.get("partitioner", "iid") != "iid"  # where --client_samples is the most
    is_dealt = expected is not None and not is_changed and not is_skewed
    wrong_rows = {row.rows for row in run.clients.values() if is_dealt and row.attack is None} - {planned}
    if isinstance(planned, int) and wrong_rows:
        yield f"its clients hold {min(wrong_rows)} rows, not the {planned} of --client_samples"
    if run.first is not None and run.first.clients:
        yield "its round 0 has clients, so that it is not of the untouched model"


def conflicts(one: Run, other: Run, varied: Collection[str] | None = ()) -> list[Conflict]:
    """What differs between two runs although it must not.

    Args:
        one: a run.
        other: another one.
        varied: the settings that are looked at: what follows from them (other rows of another scenario, other weights
            of another model) is no conflict. None for whichever differ, those that name data or a model aside.
    """
    found = [] if varied is None else setting_conflicts(one, other, varied)
    changed = set(differences(one, other, ()))
    allowed = changed - NAMES_DATA - LOADS if varied is None else changed & carried(varied)
    same_seed = one.seed_key == other.seed_key
    deals, reads, loads = (bool(allowed & flags) for flags in (DEALS_ROWS | NAMES_DATA, NAMES_DATA, LOADS))
    excused = {"rows": deals or bool(allowed & (ATTACKS | _transform_flags().keys())), "source": reads, "model": loads}
    excused["scoring"] = loads or "scoring_dtype" in (varied or ())
    # Another deal leaves other rows for the held-out loss, known or not; another template makes other texts of them.
    other_texts = deals or bool(changed & ENCODES)
    other_items = {name for name in one.rounds[0].global_.metrics if other_texts and metric_class(name).ideal is None}
    first, second = _evidence(one), _evidence(other)
    for proof in [proof for proof in first if proof in second and (same_seed or not proof.is_drawn)]:
        if first[proof] != second[proof]:
            other_items |= {proof.metric} if proof.metric else set()
            if not excused.get(proof.kind, False):
                values = f"{_short(first[proof])} and {_short(second[proof])}"
                found.append(Conflict(f"{proof.what} ({values})", proof.metric))
    if not loads:
        found += _other_start(one, other, same_seed, other_items)
    return found


def setting_conflicts(one: Run, other: Run, varied: Collection[str]) -> list[Conflict]:
    """The settings beside ``varied`` in which two runs differ, with both values."""
    values = [{**defaults(), **run.settings} for run in (one, other)]
    return [
        Conflict(f"setting {name} ({' and '.join(value_text(known.get(name)) for known in values)})")
        for name in differences(one, other, varied)
    ]


def named(found: Sequence[Conflict | str]) -> str:
    """The first few of ``found``, with commas."""
    return printable(listed(found, MOST_NAMED))


def agreeing(runs: Sequence[Run]) -> tuple[list[Run], dict[str, list[Conflict]]]:
    """Of runs with the settings of one arm the most that agree with each other; name -> why not, of the others.

    Of several groups of one size the one with the earlier runs.
    """
    groups = []
    for start in runs:
        group = [start]
        for run in runs:
            if run is not start and not any(conflicts(member, run) for member in group):
                group.append(run)
        groups.append(group)
    kept = max(groups, key=len)
    others = [run for run in runs if run not in kept]
    apart = {run.name: next(filter(None, (conflicts(member, run) for member in kept))) for run in others}
    return [run for run in runs if run in kept], apart


@lru_cache(maxsize=1)
def _transform_flags() -> dict[str, Option]:
    return options(*(load("transform", name) for name in names("transform")))


class Proof(NamedTuple):
    """What must agree: its kind, in words, the metric whose values alone it concerns, whether the seed draws it."""

    kind: str
    what: str
    metric: str | None = None
    is_drawn: bool = False


@lru_cache(maxsize=4096)
def _evidence(run: Run) -> dict[Proof, Any]:
    """What is known of a run -> value."""
    found: dict[Proof, Any] = {}
    measured = run.last_measured.global_.metrics
    for name, block in measured.items():
        title, whole = metric_class(name).title, mapping(block.get("full")).get("n")
        of, items = f" of {whole}" if whole else "", f"{block.get('items') or ''} items".strip()
        count = None if block.get("n") is None else f"{block['n']} {items}{of}"
        is_own = "clients" in block  # of rows that the seed deals
        if metric_class(name).n_is_of_items:
            is_half = bool(whole) and block["n"] != whole  # whose size differs between seeds where terms stay whole
            is_dealt = name not in run.part("data")  # held-out rows, of which as many count as fit --seq_length
            of_seed = is_own or is_half or is_dealt
            found[Proof("rows" if is_own else "items", f"items of {title}", name, of_seed)] = count
            found[Proof("items", f"items of {title} in all", name)] = whole
        found[Proof("items", f"reduction of {title}", name)] = block.get("reduction")
        found[Proof("items", f"chosen items of {title}", name, True)] = block.get("ids_hash")
    for name, source in run.part("data").items():
        if name in measured:
            proof = Proof("items", f"file of {metric_class(name).title}", name)
        else:
            proof = Proof("source", f"training data ({name})")
        found[proof] = mapping(source).get("sha256")
    for package, version in run.part("versions").items():
        found[Proof("version", f"version of {package}")] = version
    found[Proof("items", "prefix token")] = run.details.get("prefix_token")
    model = run.part("model")
    # What auto chose, not what was asked for; older runs were scored in the model's own type.
    found[Proof("scoring", "scoring dtype")] = mapping(run.details.get("scoring")).get("dtype") or model.get("dtype")
    is_drawn = model.get("drawn_by_seed", run.settings.get("task", "sft") != "sft")  # older runs do not say it
    found[Proof("model", "base model", None, bool(is_drawn))] = model.get("fingerprint")
    found[Proof("model", "tokenizer")] = run.part("tokenizer").get("fingerprint")
    if run.settings.get("template", CHAT) == CHAT:
        found[Proof("model", "chat template")] = run.part("tokenizer").get("chat_template")
    for client in map(mapping, run.manifest.get("clients") or ()):
        found[Proof("rows", f"rows of client {client.get('client')}", None, True)] = client.get("row_ids_sha256")
    heldout = mapping(run.manifest.get("heldout")).get("row_ids_sha256")
    found[Proof("rows", "held-out rows", "heldout_loss", True)] = heldout
    for number, row in sorted(run.clients.items()):
        found[Proof("rows", f"number of rows of client {number}", None, True)] = row.rows
        found[Proof("rows", f"biased share of client {number}", None, True)] = row.poisoned_share
    return {proof: value for proof, value in found.items() if value is not None and value != ""}


def _other_start(one: Run, other: Run, same_seed: bool, other_items: Collection[str]) -> Iterator[Conflict]:
    """Metrics of round 0 that are not equal on equal items; of other seeds on all items."""
    if one.first is None or other.first is None:
        return
    first, second = one.first.global_.metrics, other.first.global_.metrics
    for name in [name for name in first if name in second and name not in other_items]:
        if metric_class(name).of_model != "global":
            continue
        pair: list[Mapping[str, Any]] = [first[name], second[name]]
        if not same_seed:
            pair = [mapping(block.get("full")) for block in pair]
        values = [block["value"] for block in pair if isinstance(block.get("value"), float | int)]
        hashes = {block.get("ids_hash") for block in pair} - {None}
        if len(hashes) > 1 or len(values) < 2 or pair[0].get("n") != pair[1].get("n"):
            continue
        if abs(values[0] - values[1]) > SAME_START * max(map(abs, values)):
            shown = " and ".join(f"{value:.{metric_class(name).digits}f}" for value in values)
            yield Conflict(f"starting weights (round 0, {metric_class(name).title}: {shown})")


def _short(value: Any) -> str:
    """A hash by its first eight letters, anything else as it is."""
    text = str(value)
    return text[:8] if len(text) == 64 and text.isalnum() else text[:60]


def _listed(shares: Sequence[float]) -> str:
    return ", ".join(f"{share:.2g}" for share in shares)
