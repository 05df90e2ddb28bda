"""Every extension by kind and name, as the text ``"module:Class"``: nobody imports a room to name what is in it.

An extension of somebody else's comes through an entry point of the group ``fedbias_plugin.KIND``, in their setup.py:
``entry_points={"fedbias_plugin.rule": ["mine = my_package.mine:Mine"]}``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Iterable
from typing import Any

from fedbias_plugin.errors import UserError, did_you_mean
from fedbias_plugin.options import options, split_list

EXTENSIONS: dict[str, dict[str, str]] = {
    "flags": {
        "plugin": "fedbias_plugin.arguments:BiasArguments",
        "builtin": "fedbias_plugin.hosts.builtin.arguments:HostArguments",
        "flower": "fedbias_plugin.hosts.flower.arguments:FlowerArguments",
        "openfedllm": "fedbias_plugin.hosts.openfedllm.arguments:AttachedArguments",
    },
    "rule": {
        "plain": "fedbias_plugin.aggregation.plain:Plain",
        "bama": "fedbias_plugin.aggregation.bama:Bama",
        "median": "fedbias_plugin.aggregation.median:Median",
        "trimmed_mean": "fedbias_plugin.aggregation.trimmed_mean:TrimmedMean",
        "krum": "fedbias_plugin.aggregation.krum:Krum",
        "multi_krum": "fedbias_plugin.aggregation.krum:MultiKrum",
        "norm_clip": "fedbias_plugin.aggregation.norm_clip:NormClip",
        "fedavgw": "fedbias_plugin.aggregation.fedavgw:FedAvgW",
        "qfedavg": "fedbias_plugin.aggregation.qfedavg:QFedAvg",
        "agnostic": "fedbias_plugin.aggregation.agnostic:Agnostic",
        "fedpsf": "fedbias_plugin.aggregation.fedpsf:FedPsf",
        "predictive": "fedbias_plugin.aggregation.predictive:Predictive",
    },
    "attack": {
        "sign_flip": "fedbias_plugin.updates.attacks:SignFlip",
        "model_replacement": "fedbias_plugin.updates.attacks:ModelReplacement",
        "gaussian_noise": "fedbias_plugin.updates.attacks:GaussianNoise",
        "probe_gaming": "fedbias_plugin.updates.probe_gaming:ProbeGaming",
        "adaptive": "fedbias_plugin.updates.adaptive:Adaptive",
        "insider": "fedbias_plugin.updates.insider:Insider",
    },
    "stage": {
        "checks": "fedbias_plugin.updates.checks:Checks",
        "client_dp": "fedbias_plugin.updates.client_dp:ClientDp",
        "exact_lora": "fedbias_plugin.updates.exact_lora:ExactLora",
        "dp_maximum": "fedbias_plugin.updates.dp_maximum:DpMaximum",
        "psm": "fedbias_plugin.updates.psm:Psm",
        "pair_step": "fedbias_plugin.updates.pair_step:PairStep",
        "layer_mean": "fedbias_plugin.updates.layer_mean:LayerMean",
    },
    "metric": {
        "crows_pairs": "fedbias_plugin.metrics.crows_pairs:CrowsPairs",
        "stereoset": "fedbias_plugin.metrics.stereoset:StereoSet",
        "heldout_loss": "fedbias_plugin.metrics.heldout_loss:HeldoutLoss",
        "client_loss": "fedbias_plugin.metrics.client_loss:ClientLoss",
        "client_accuracy": "fedbias_plugin.metrics.client_loss:ClientAccuracy",
        "heldout_accuracy": "fedbias_plugin.metrics.heldout_accuracy:HeldoutAccuracy",
        "preference_accuracy": "fedbias_plugin.metrics.preference_accuracy:PreferenceAccuracy",
        "local_only": "fedbias_plugin.metrics.local_only:LocalOnly",
        "emulator": "fedbias_plugin.metrics.emulator:Emulator",
        "rouge_l": "fedbias_plugin.metrics.rouge_l:RougeL",
        "occupation_bias": "fedbias_plugin.metrics.occupation_bias:OccupationBias",
        "gender_count": "fedbias_plugin.metrics.gender_count:GenderCount",
        "swapped_prompts": "fedbias_plugin.metrics.swapped_prompts:SwappedPrompts",
        "winobias": "fedbias_plugin.metrics.winobias:WinoBias",
        "gender_perplexity": "fedbias_plugin.metrics.gender_perplexity:GenderPerplexity",
        "toxicity": "fedbias_plugin.metrics.text_scores:Toxicity",
        "sentiment": "fedbias_plugin.metrics.text_scores:Sentiment",
        "regard": "fedbias_plugin.metrics.text_scores:Regard",
        "harness": "fedbias_plugin.metrics.harness:Harness",
    },
    "split": {
        "1B2C": "fedbias_plugin.data.scenarios:Scenario",
        "2B1C": "fedbias_plugin.data.scenarios:Scenario",
        "3B": "fedbias_plugin.data.scenarios:Scenario",
        "3C": "fedbias_plugin.data.scenarios:Scenario",
        "mix-1B2C": "fedbias_plugin.data.scenarios:Scenario",
        "mix-2B1C": "fedbias_plugin.data.scenarios:Scenario",
        "custom": "fedbias_plugin.data.scenarios:Scenario",
    },
    "partitioner": {
        "iid": "fedbias_plugin.data.iid:Iid",
        "dirichlet": "fedbias_plugin.data.dirichlet:Dirichlet",
        "by_field": "fedbias_plugin.data.by_field:ByField",
    },
    "transform": {
        "cda": "fedbias_plugin.data.cda:Cda",
    },
    "task": {
        "sft": "fedbias_plugin.tasks.sft:Sft",
        "classify": "fedbias_plugin.tasks.classify:Classify",
        "dpo": "fedbias_plugin.tasks.dpo:Dpo",
    },
    "trainable": {
        "lora": "fedbias_plugin.training.trainables:Lora",
        "full": "fedbias_plugin.training.trainables:Full",
        "soft_prompt": "fedbias_plugin.training.soft_prompt:SoftPrompt",
        "offsite": "fedbias_plugin.training.offsite:Offsite",
    },
    "term": {
        "prox": "fedbias_plugin.training.terms:Prox",
        "scaffold": "fedbias_plugin.training.terms:Scaffold",
        "dp": "fedbias_plugin.training.dp:Private",
    },
    "algorithm": {
        "fedavg": "fedbias_plugin.aggregation.algorithms:FedAvg",
        "fedprox": "fedbias_plugin.aggregation.algorithms:FedProx",
        "scaffold": "fedbias_plugin.aggregation.algorithms:Scaffold",
        "fedavgm": "fedbias_plugin.aggregation.algorithms:FedAvgM",
        "fedadagrad": "fedbias_plugin.aggregation.algorithms:FedAdagrad",
        "fedyogi": "fedbias_plugin.aggregation.algorithms:FedYogi",
        "fedadam": "fedbias_plugin.aggregation.algorithms:FedAdam",
    },
    "tracker": {
        "jsonl": "fedbias_plugin.tracking.jsonl:JsonlTracker",
        "wandb": "fedbias_plugin.tracking.wandb_tracker:WandbTracker",
        "tensorboard": "fedbias_plugin.tracking.tensorboard_tracker:TensorboardTracker",
    },
    "launcher": {
        "local": "fedbias_plugin.sweep.local:LocalLauncher",
        "slurm": "fedbias_plugin.sweep.slurm:SlurmLauncher",
    },
}
"""Kind -> name -> where the class is."""
CHOSEN_BY = {
    "rule": "aggregation",
    "attack": "attack",
    "stage": None,
    "metric": "bias_benchmarks",
    "split": "scenario",
    "partitioner": "partitioner",
    "transform": None,
    "task": "task",
    "trainable": "trainable",
    "term": None,
    "algorithm": "fed_alg",
    "tracker": "track",
}
"""Kind -> the flag that names its extensions; None: an extension's own flags switch it on."""
OLD_NAMES = {"rule": {"host": "plain"}}
"""Kind -> a name of earlier versions -> today's."""


def names(kind: str) -> tuple[str, ...]:
    """The names of a kind, the package's own first."""
    return (*EXTENSIONS[kind], *(name for name in _entry_points(kind) if name not in EXTENSIONS[kind]))


def in_order(kind: str, found: Iterable[str]) -> list[str]:
    """``found`` as :func:`names` has them, those that are not installed here last."""
    places = {name: place for place, name in enumerate(names(kind))}
    return sorted(found, key=lambda name: places.get(name.partition(":")[0], len(places)))


def todays_name(kind: str, name: str) -> str:
    """``plain`` for ``host``, the rule's name in earlier versions; other names as they are."""
    return OLD_NAMES.get(kind, {}).get(name, name)


def load(kind: str, name: str) -> Any:
    """The class of an extension; ``NAME:WHAT`` gives one that ``takes`` something its WHAT.

    Raises:
        UserError: no such name, with the nearest one; or an outsider's extension that cannot be imported.
    """
    first, _, given = name.partition(":")
    if given and first in names(kind) and (family := load(kind, first)).takes:
        return family.of(given)
    name = todays_name(kind, name)
    place = EXTENSIONS[kind].get(name) or _entry_points(kind).get(name)
    if place is None:
        raise UserError(
            f"{name!r} is no {kind}; choose one of {', '.join(names(kind))}.{did_you_mean(name, names(kind))}"
        )
    module, _, attribute = place.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        if name in EXTENSIONS[kind]:
            raise
        raise UserError(
            f"The {kind} {name!r} ({place}) of another package cannot be used: {error}. "
            "Mend that package or uninstall it."
        ) from error


def build(kind: str, name: str, *arguments: Any) -> Any:
    """The extension ``name`` with its flags from whichever of ``arguments`` has them, and its ``name``.

    Raises:
        UserError: as :func:`load`.
    """
    cls = load(kind, name)
    made = cls(**{flag: next(vars(one)[flag] for one in arguments if flag in vars(one)) for flag in options(cls)})
    made.name = cls.name if cls.takes else todays_name(kind, name)
    return made


def active(kind: str, *arguments: Any) -> list[Any]:
    """The extensions of ``kind`` that the flags in ``arguments`` ask for, in the order they were named.

    Those that need not be named (:attr:`Extension.is_named`) follow, where their own flags switch them on.

    Raises:
        UserError: as :func:`load`.
    """
    selector = CHOSEN_BY[kind]
    given = next((vars(one)[selector] for one in arguments if selector in vars(one)), None) if selector else None
    chosen = list(dict.fromkeys(split_list(given))) if given else []
    made = [build(kind, name, *arguments) for name in chosen]
    others = [name for name in names(kind) if name not in chosen and not (selector and load(kind, name).is_named)]
    return [*made, *(one for one in (build(kind, name, *arguments) for name in others) if one.is_on)]


def nameable(kind: str) -> tuple[str, ...]:
    """What the flag of a kind takes: names of extensions that must be named to be used, such as ``harness:TASK``."""
    found = ((name, load(kind, name)) for name in names(kind))
    return tuple(f"{name}:{cls.takes}" if cls.takes else name for name, cls in found if cls.is_named)


@functools.cache
def _entry_points(kind: str) -> dict[str, str]:
    return {point.name: point.value for point in _installed().select(group=f"fedbias_plugin.{kind}")}


# Reading the packages' metadata takes long: once for all kinds.
_installed = functools.cache(importlib.metadata.entry_points)
