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
        group: number of each item's group, shape (K,); each item is one where they have none.
        tau: nats; a margin well beyond it counts as one.
        noise: standard error over items (over groups) of B at theta, points.
    """

    before: Array
    moves: Array
    shares: Array
    group: NDArray[np.int64]
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
        made = cls(before, after - before, shares, group, tau, FULL)
        return replace(made, noise=made._error(FULL * np.tanh(before / tau)))

    def _error(self, points: Array) -> float:
        """Standard error over groups of the mean of ``points`` (K,)."""
        error = standard_error(np.bincount(self.group, (self.group.max() + 1) * self.shares * points))
        return FULL if error is None else error

    def reliability(self, host: Array) -> float:
        """r: the share of the clients' differences that is not noise, between 0 and 1.

        With d_i the mean over items of client i's points less those of all clients (weighted by ``host``, (C,)), and
        SE_i the standard error of that mean over items (groups): ``max(0, 1 - sum_i h_i SE_i^2 / sum_i h_i d_i^2)``,
        the moment estimate of empirical Bayes (Efron and Morris 1975).
        """
        points = FULL * np.tanh((self.before + self.moves) / self.tau)
        apart = points - host @ points
        total = float(host @ (apart @ self.shares) ** 2)
        noise = float(host @ np.asarray([self._error(one) for one in apart]) ** 2)
        return max(0.0, 1 - noise / total) if total > 0 else 0.0

    def shrunk(self, host: Array, reliability: float) -> Lean:
        """With ``reliability`` times what tells the clients' moves from their mean.

        The mean is weighted by ``host``, so that the prediction at the host's weights is as it was.
        """
        mean = host @ self.moves
        return replace(self, moves=mean + reliability * (self.moves - mean))

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
        return _Wide(self.before, self.moves, self.shares, self.group, self.tau * times, self.noise, times)


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
    z: float = 2.0
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
        """The minimum over the simplex with B_b as ``B_b(v) + g_b (w - v)``; ``prices`` y_b start it, and change."""
        slopes = np.stack([lean.gradient(around) for lean in self.leans])
        starts = np.asarray([float(lean.bias(around)) for lean in self.leans]) - slopes @ around
        noise = self.z * np.asarray([lean.noise for lean in self.leans])
        model = _Model(np.log(self.host) - self.kappa * self.excess, slopes, starts, noise, self.lambda_)
        prices[:] = model.best_prices(prices)
        return model.weights(prices)


@dataclass(frozen=True)
class _Model:
    """The convex model of a step, by its dual: ``max over |y_b| <= lambda`` with ``w_i(y) ~ exp(base_i - y g_i)``.

    The derivative in y_b is the model's B_b(w(y)), less c_b in the direction of y_b.

    Attributes:
        base: log h_i - kappa e_i, shape (C,).
        slopes: g_bi, shape (benchmarks, C).
        starts: B_b where all g_b w_i are 0.
        noise: c_b.
        most: lambda.
    """

    base: Array
    slopes: Array
    starts: Array
    noise: Array
    most: float

    def weights(self, prices: Array) -> Array:
        """w(y)."""
        return _normal(self.base - prices @ self.slopes)

    def dual(self, prices: Array) -> float:
        """Its value at y."""
        logs = self.base - prices @ self.slopes
        total = logs.max() + np.log(np.exp(logs - logs.max()).sum())
        return float(prices @ self.starts - np.abs(prices) @ self.noise - total)

    def biases(self, prices: Array) -> Array:
        """B_b at w(y)."""
        return np.asarray(self.starts + self.slopes @ self.weights(prices))

    def best_prices(self, prices: Array) -> Array:
        """The maximum, from ``prices``: each y_b in turn, where its derivative, which falls, has its root.

        Such ascent cannot stop short, since the kink at 0 is of one y_b alone. It is slow where two benchmarks have
        nearly the same slopes: after every turn a Newton step is tried.
        """
        prices = prices.copy()
        for _ in range(SWEEPS):
            last = prices.copy()
            for b in range(len(prices)):
                prices[b] = self._best_price(prices, b)
            prices = self._newton(prices)
            if np.abs(prices - last).max(initial=0.0) <= EXACT:
                break
        return prices

    def _best_price(self, prices: Array, b: int) -> float:
        prices = prices.copy()

        def beyond(price: float, sign: float) -> float:
            prices[b] = sign * price
            return float(sign * self.biases(prices)[b] - self.noise[b])

        sign = next((s for s in (1.0, -1.0) if beyond(0.0, s) > 0), 0.0)
        if not sign:
            return 0.0
        if beyond(self.most, sign) >= 0:
            return sign * self.most
        return float(sign * brentq(beyond, 0.0, self.most, args=(sign,), xtol=EXACT))

    def _newton(self, prices: Array) -> Array:
        """A step of those y_b that are neither 0 nor at the end, if it is one upwards."""
        free = (prices != 0) & (np.abs(prices) < self.most)
        if free.sum() < 2:
            return prices
        weights = self.weights(prices)
        centred = self.slopes[free] - (self.slopes[free] @ weights)[:, None]
        curvature = (centred * weights) @ centred.T
        left = self.biases(prices)[free] - np.sign(prices[free]) * self.noise[free]
        step = np.linalg.lstsq(curvature, left, rcond=1e-12)[0]
        value = self.dual(prices)
        for halvings in range(10):
            new = prices.copy()
            new[free] = np.clip(prices[free] + 0.5**halvings * step, -self.most, self.most)
            new[new * prices < 0] = 0.0  # on the other side of 0 the derivative is another
            if self.dual(new) > value:
                return new
        return prices


def excess_losses(losses: Sequence[float], of_theta: float = math.inf) -> Array:
    """``max(0, L_i - min(median L, L(theta)))``; infinite where a loss is not finite, the median is of the others.

    >>> excess_losses([1.0, 1.5, 0.8, math.inf]).tolist()
    [0.0, 0.5, 0.0, inf]
    >>> excess_losses([1.5, 2.0, 1.0], of_theta=1.25).tolist()
    [0.25, 0.75, 0.0]
    """
    found = np.asarray(losses, dtype=np.float64)
    finite = found[np.isfinite(found)]
    if not len(finite):
        return np.zeros(len(found))
    free = min(float(np.median(finite)), of_theta if math.isfinite(of_theta) else math.inf)
    return np.where(np.isfinite(found), np.maximum(0.0, found - free), math.inf)


def _normal(logs: Array) -> Array:
    raised = np.exp(logs - logs.max())
    return np.asarray(raised / raised.sum())
