"""Weights near the host's under which the predicted bias of the average is within its noise (docs/predictive.md).

The program, over w on the simplex: ``KL(w || h) + lambda sum_b max(0, |B_b(w)| - c_b) + kappa sum_i w_i e_i``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from fedbias_plugin.metrics.statistics import standard_error

Array = NDArray[np.float64]

FULL = 50.0
"""Points from the ideal of a model that prefers the stereotype in every item, clearly."""
WIDER = (64.0, 8.0)
"""By how much tau is wider in the programs that are solved first: in the widest B is nearly linear, which is convex."""
STARTS = 3
"""Clients from whose nearness the descent starts too, those whose starting value is the smallest."""
STEPS, SWEEPS = 50, 50
GAIN, EXACT = 1e-10, 1e-12


@dataclass(frozen=True)
class Lean:
    """What the probe items of one benchmark say of a round of C clients.

    Attributes:
        before: m_k(theta) of K items, nats, above 0 for the stereotype.
        moves: m_k(theta_i) - m_k(theta), shape (C, K).
        shares: of each item in the mean, shape (K,); items of a group have the group's share together.
        tau: nats; a margin well beyond it counts as one.
        noise: standard error over items (over groups) of B at theta, points.
    """

    before: Array
    moves: Array
    shares: Array
    tau: float
    noise: float

    @classmethod
    def of(cls, before: Array, after: Array, groups: NDArray[np.str_] | None = None) -> Lean:
        """From margins of theta (K,) and of the clients (C, K), and the group of each item where they have one.

        Tau is the median of theta's absolute margins, which no client moves; the clients', or 1, where that is 0.
        """
        count = len(before)
        names, group = (range(count), np.arange(count)) if groups is None else np.unique(groups, return_inverse=True)
        shares = 1.0 / (len(names) * np.bincount(group)[group])
        tau = next((found for one in (before, after) if (found := float(np.median(np.abs(one)))) > 0), 1.0)
        of_groups = np.bincount(group, len(names) * shares * FULL * np.tanh(before / tau))
        error = standard_error(of_groups)
        return cls(before, after - before, shares, tau, FULL if error is None else error)

    def of_margins(self, margins: Array) -> float:
        """B of a model with these margins (K,), points."""
        return float(FULL * np.tanh(margins / self.tau) @ self.shares)

    def bias(self, weights: Array) -> Array:
        """B(w) in points, between -50 and 50, of weights (..., C)."""
        return FULL * np.tanh((self.before + weights @ self.moves) / self.tau) @ self.shares

    def gradient(self, weights: Array) -> Array:
        """dB/dw (C,) at one w."""
        slope = 1 - np.tanh((self.before + weights @ self.moves) / self.tau) ** 2
        return FULL / self.tau * self.moves @ (self.shares * slope)

    def widened(self, times: float) -> _Wide:
        """B with tau ``times`` as wide, and as steep at 0."""
        return _Wide(self.before, self.moves, self.shares, self.tau * times, self.noise, times)


@dataclass(frozen=True)
class _Wide(Lean):
    times: float = 1.0

    def bias(self, weights: Array) -> Array:
        return self.times * super().bias(weights)

    def gradient(self, weights: Array) -> Array:
        return self.times * super().gradient(weights)


@dataclass(frozen=True)
class BiasProgram:
    """The program of one round.

    Attributes:
        host: h_i, above 0, sum 1, shape (C,).
        leans: one a benchmark, b.
        excess: e_i, at least 0, finite, nats.
        lambda_, z, kappa: of the objective; c_b = z times the noise of b.
    """

    host: Array
    leans: Sequence[Lean]
    excess: Array
    lambda_: float = 0.2
    z: float = 1.0
    kappa: float = 20.0

    def value(self, weights: Array) -> Array:
        """The objective at weights (..., C)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(weights > 0, weights * np.log(weights / self.host), 0.0)
        total = terms.sum(axis=-1) + self.kappa * (weights @ self.excess)
        for lean in self.leans:
            beyond = np.abs(lean.bias(weights)) - self.z * lean.noise
            total = total + self.lambda_ * np.maximum(0.0, beyond)
        return np.asarray(total)

    def solve(self) -> Array:
        """w (C,): no start of :meth:`_starts`, the host's weights among them, has a smaller value.

        Deterministic. Where B is linear over the simplex the program is convex, and this its minimum; in general it is
        a point that no step to the minimum of the convex model around it improves.
        """
        if len(self.host) == 1:
            return np.ones(1)
        found = [self._descend(start) for start in self._starts()]
        return min(found, key=lambda weights: float(self.value(weights)))  # the first of equals: the host's side

    def _starts(self) -> list[Array]:
        gated = _normal(np.log(self.host) - self.kappa * self.excess)
        wide = gated
        for times in WIDER:
            wide = replace(self, leans=[lean.widened(times) for lean in self.leans])._descend(wide)
        near = 0.9 * np.eye(len(self.host)) + 0.1 * gated
        best = np.argsort(self.value(near), kind="stable")[:STARTS]
        return [self.host, gated, wide, *near[best]]

    def _descend(self, weights: Array) -> Array:
        """Go to the minimum of the convex model around ``weights``, as far as the program gets smaller; repeat."""
        value = float(self.value(weights))
        prices = np.zeros(len(self.leans))
        for _ in range(STEPS):
            target = self._model_minimum(weights, prices)
            for halvings in range(30):
                step = 0.5**halvings
                new = (1 - step) * weights + step * target
                lower = float(self.value(new))
                if lower < value - GAIN:
                    break
            else:
                return weights
            weights, value = new, lower
        return weights

    def _model_minimum(self, around: Array, prices: Array) -> Array:
        """The minimum over the simplex where B_b is ``B_b(v) + g_b (w - v)``; ``prices`` y_b start it and are changed.

        Of the dual, ``max over |y_b| <= lambda``: ``w_i(y) ~ h_i exp(-kappa e_i - sum_b y_b g_bi)``. Its derivative in
        y_b is the model's B_b(w(y)), less c_b in the direction of y_b: falling, so that a root is found in each
        benchmark in turn; the kink at 0 is of one y_b alone, and such ascent cannot stop short.
        """
        base = np.log(self.host) - self.kappa * self.excess
        slopes = [lean.gradient(around) for lean in self.leans]
        starts = [float(lean.bias(around) - slope @ around) for lean, slope in zip(self.leans, slopes, strict=True)]

        def weights() -> Array:
            return _normal(
                base - sum((y * slope for y, slope in zip(prices, slopes, strict=True)), np.zeros(len(base)))
            )

        def beyond(price: float, b: int, sign: float) -> float:
            prices[b] = sign * price
            return sign * (starts[b] + float(slopes[b] @ weights())) - self.z * self.leans[b].noise

        for _ in range(SWEEPS):
            last = prices.copy()
            for b in range(len(prices)):
                sign = next((s for s in (1.0, -1.0) if beyond(0.0, b, s) > 0), 0.0)
                if not sign:
                    price = 0.0
                elif beyond(self.lambda_, b, sign) >= 0:
                    price = self.lambda_
                else:
                    price = brentq(beyond, 0.0, self.lambda_, args=(b, sign), xtol=EXACT)
                prices[b] = sign * price
            if np.abs(prices - last).max(initial=0.0) <= EXACT:
                break
        return weights()


def excess_losses(losses: Sequence[float]) -> Array:
    """``max(0, L_i - median L)``; infinite where a loss is not finite, the median is of the others.

    >>> excess_losses([1.0, 1.5, 0.8, math.inf]).tolist()
    [0.0, 0.5, 0.0, inf]
    """
    found = np.asarray(losses, dtype=np.float64)
    finite = found[np.isfinite(found)]
    if not len(finite):
        return np.zeros(len(found))
    return np.where(np.isfinite(found), np.maximum(0.0, found - np.median(finite)), math.inf)


def _normal(logs: Array) -> Array:
    raised = np.exp(logs - logs.max())
    return np.asarray(raised / raised.sum())
