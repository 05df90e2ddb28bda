"""Exact LoRA averaging: the mean of the clients' products ``B_i A_i``, where A and B are usually averaged apart.

It is a stage and not a rule, so that it follows whatever weighs the clients: ``--aggregation bama --exact_lora fold``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from fedbias_plugin.aggregation.base import ClientReports, Rule, Weighting
from fedbias_plugin.errors import UserError
from fedbias_plugin.fed_algs import is_known, local_client
from fedbias_plugin.options import option
from fedbias_plugin.registry import build
from fedbias_plugin.training.trainables import LORA, OTHERS
from fedbias_plugin.updates.base import Stage, Update

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from fedbias_plugin.arguments import BiasArguments
    from fedbias_plugin.federation.run_description import HostRun
    from fedbias_plugin.state import State

ERROR, LEFT_OUT = "lora_mean_error", "lora_left_out"
"""Numbers of a round: ``||E|| / ||U||`` of :mod:`fedbias_plugin.aggregation.lora_products`, and what ``truncate``
leaves out of the mean of products, likewise over ``||U||``."""
MEANS = ("fedavg", "fedprox")
"""The server algorithms whose new global state is the mean of the clients' states."""
FOLDS = (
    "--exact_lora fold adds to the frozen weights after every round: an adapter alone is not the model, and the run "
    "saves the whole one (model/)"
)


@dataclass
class ExactLora(Stage):
    """Measures in every run with LoRA how wrong the mean of A and B apart is; ``--exact_lora`` mends it.

    ``truncate``: the global A and B are the best product of rank r. ``fold``: they are the means, as usual, and the
    rest, of a rank of up to (C + 1) r, goes into the frozen weights, so that nothing is lost (FedEx-LoRA: Singhal et
    al. 2024, arXiv:2410.09432). Both with the weights of the run's rule.

    Attributes:
        rests: name of A -> what the frozen weight beside it is still to be given, before alpha / r.
        frozen: name of A -> frozen weight, as the live model has it; with ``fold``, once the model is known.
        saved: name of A -> frozen weight of the run that is resumed.
        given: bytes of all rests so far, which every client must be sent beside the adapter: the factors in float32.
        had: client id -> how much of ``given`` it has been sent.
    """

    order: ClassVar[int] = 300

    exact_lora: str | None = option(
        None,
        "average the LoRA products B A instead of A and B apart, which is another mean: truncate (the best product of "
        "rank r) or fold (the rest goes into the frozen weights). Every LoRA run records how far the usual mean is off",
        choices=("truncate", "fold"),
        read_when=LORA,
    )
    rests: dict[str, Any] = field(default_factory=dict)
    frozen: dict[str, Any] = field(default_factory=dict)
    saved: dict[str, Any] = field(default_factory=dict)
    given: int = 0
    had: dict[int, int] = field(default_factory=dict)

    @property
    def changes_base(self) -> bool:
        """With ``fold``."""
        return self.exact_lora == "fold"

    @property
    def warnings(self) -> list[str]:
        """That an adapter alone is not the model."""
        return [FOLDS] if self.changes_base else []

    def prepare(self, arguments: BiasArguments, run: HostRun, shares: Mapping[int, float]) -> None:
        """Refuse what has no mean of products, or frozen weights that cannot be changed.

        Raises:
            UserError: naming it.
        """
        if self.exact_lora is None:
            return
        flag = f"--exact_lora {self.exact_lora}"
        if run.config.get("use_peft") is False or arguments.trainable in OTHERS["trainable"]:
            raise UserError(f"{flag} averages the products of LoRA, and this run trains none: drop it.")
        if run.fed_alg not in MEANS and local_client(run.fed_alg) is None:
            raise UserError(
                f"{flag} makes the mean of the clients' products the global one; --fed_alg {run.fed_alg} makes another "
                f"step of A and B. Give --fed_alg {' or '.join(MEANS)}."
            )
        if not build("rule", arguments.aggregation, arguments).is_sum:
            raise UserError(
                f"{flag} needs clients' weights, and --aggregation {arguments.aggregation} has none that hold for "
                "every tensor."
            )
        if build("stage", "client_dp", arguments).is_on:
            raise UserError(f"{flag} averages what --dp_unit client has neither clipped nor covered with noise.")
        if not self.changes_base:
            return
        if not run.trains_here:
            raise UserError(
                f"{flag} changes the frozen weights, which every client must have alike, and only fedbias run trains "
                "all of them in one model: use it, or --exact_lora truncate."
            )
        quantised = [name for name in ("load_in_8bit", "load_in_4bit") if run.config.get(name)]
        if quantised or run.config.get("dtype") == "bfloat16":
            coarse = f"--{quantised[0]}" if quantised else "--dtype bfloat16"
            raise UserError(f"{flag} adds little to the frozen weights, which {coarse} would round away; drop one.")

    def at_client(self, update: Update, theta: State, number: int, clients: int) -> Update:
        """The update; what the client was sent for its frozen weights is counted.

        All rests since it took part last, or the weights themselves where those are less.
        """
        owed = min(self.given - self.had.get(update.client, 0), sum(one.nbytes for one in self.frozen.values()))
        if owed:
            update.received["frozen"] = owed
        self.had[update.client] = self.given
        return update

    def on_weights(self, weighting: Weighting, rule: Rule, reports: ClientReports, number: int) -> Weighting:
        """Record the error; with ``truncate`` the state, with ``fold`` the same weighting, and the rest remembered.

        Raises:
            UserError: the rule gives no weights, where they are needed.
        """
        from fedbias_plugin.aggregation import lora_products as products

        theta, local = reports.global_state, reports.local_states
        self.rests = {}
        if weighting.state is not None and self.exact_lora is not None:
            raise UserError(f"--exact_lora needs clients' weights, and --aggregation {rule.name} gives a state.")
        factors = _factors(weighting, reports)
        pairs = products.lora_pairs(theta) if factors else []
        if not pairs:
            return weighting
        missed, moved = products.norms(theta, local, factors, pairs) or (0.0, 0.0)
        if moved > 0:
            found = {ERROR: _rounded(missed / moved)}
            weighting = dataclasses.replace(weighting, of_round=weighting.of_round | found)
        if self.exact_lora == "truncate":
            state, left_out = _truncated(theta, local, factors, pairs)
            found = {LEFT_OUT: _rounded(left_out / moved)} if moved > 0 else {}
            weighting = dataclasses.replace(weighting, factors=None, state=state, of_round=weighting.of_round | found)
        if self.changes_base:
            self.rests = {pair[0]: products.residual(theta, local, factors, pair) for pair in pairs}
            self.given += sum(4 * part.numel() for rest in self.rests.values() for part in rest)
        return weighting

    def on_model(self, model: PreTrainedModel) -> None:
        """Add what is remembered to the frozen weights; of a resumed run, put them back first.

        Raises:
            UserError: a weight beside an adapter cannot be changed.
        """
        import torch

        if not self.changes_base:
            return
        layers = lora_layers(model)
        if not self.frozen:
            self.frozen = _frozen_weights(model, layers)
        with torch.no_grad():
            for name, weight in self.saved.items():
                self.frozen[name].copy_(weight)
            for name, (left, right) in self.rests.items():
                layer, adapter = layers[name]
                if getattr(layer, "fan_in_fan_out", False):
                    left, right = right.T, left.T
                weight = self.frozen[name]
                weight.addmm_(left.to(weight), right.to(weight), alpha=layer.scaling[adapter])
        self.rests, self.saved = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """The frozen weights as they are now, and what was sent of them."""
        if not self.frozen:
            return {}
        frozen = {name: weight.cpu() for name, weight in self.frozen.items()}
        return {"frozen": frozen, "given": self.given, "had": {str(client): had for client, had in self.had.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them up, for the model to come."""
        self.saved = {name: weight.clone() for name, weight in state.get("frozen", {}).items()}
        self.given = state.get("given", 0)
        self.had = {int(client): had for client, had in state.get("had", {}).items()}


def lora_layers(model: Any) -> dict[str, tuple[Any, str]]:
    """Name of A in a state -> peft's layer, and the name of its adapter there."""
    found = {}
    for name, module in model.named_modules():
        for adapter in getattr(module, "lora_A", {}):
            if adapter in getattr(module, "active_adapters", ()):
                found[f"{name}.lora_A.weight"] = module, adapter
    return found


def _frozen_weights(model: PreTrainedModel, layers: Mapping[str, tuple[Any, str]]) -> dict[str, torch.Tensor]:
    """Name of A -> live frozen weight beside it, not copied.

    Raises:
        UserError: one cannot be changed, or is no linear layer's.
    """
    import torch

    from fedbias_plugin.aggregation.lora_products import lora_pairs
    from fedbias_plugin.training.parameters import live_parameters

    found = {}
    for name, _ in lora_pairs(dict(live_parameters(model))):
        weight = layers[name][0].get_base_layer().weight if name in layers else None
        if type(weight) is not torch.nn.Parameter or weight.dtype not in (torch.float32, torch.float64):
            raise UserError(
                f"--exact_lora fold adds little to the frozen weights, and that beside {name} is "
                f"{'no linear layer of its own' if weight is None else weight.dtype}; load the model with --dtype "
                "float32 and adapters on linear layers, or give --exact_lora truncate."
            )
        found[name] = weight.detach()
    if not found:
        raise UserError("--exact_lora fold averages the products of LoRA, and this run trains none: drop it.")
    return found


def _factors(weighting: Weighting, reports: ClientReports) -> dict[int, float]:
    """The factors that the server algorithm will average by; none where they are not known, or nobody has any."""
    from fedbias_plugin.aggregation.server_optimizer import host_factors

    if weighting.state is not None or not reports.local_states or not is_known(reports.fed_alg):
        return {}
    factors = weighting.factors
    if factors is None:
        factors = host_factors(
            reports.fed_alg, {client: reports.sample_counts[client] for client in reports.local_states}
        )
    return factors if any(factors.values()) else {}


def _truncated(
    theta: State, local: Mapping[int, State], factors: Mapping[int, float], pairs: Sequence[tuple[str, str]]
) -> tuple[State, float]:
    """The state in which every product is the best of its rank, and the norm of what that leaves out."""
    from fedbias_plugin.aggregation import lora_products as products
    from fedbias_plugin.aggregation.substitution import weighted_state

    state = weighted_state(theta, local, factors)
    squares = 0.0
    for a, b in pairs:
        product = products.mean_of_products(theta, local, factors, (a, b))
        new_a, new_b, left_out = products.truncated(product, theta[a].shape[0], state[a])
        state[a], state[b] = new_a.to(theta[a]).contiguous(), new_b.to(theta[b]).contiguous()
        squares += left_out**2
    return state, math.sqrt(squares)


def _rounded(value: float) -> float:
    """Six digits: the last ones follow the number of threads."""
    return float(f"{value:.6g}")
