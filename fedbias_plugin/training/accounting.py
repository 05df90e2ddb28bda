"""How much privacy noise costs, and how much noise a budget asks for: of drawn rows by Opacus, of rounds exactly."""

from __future__ import annotations

import functools
import math
import warnings

from fedbias_plugin.errors import UserError

ACCOUNTANTS = ("prv", "rdp")
MOST_NOISE = 1e4
HOPELESS = 200.0
"""From this epsilon on the bound of Renyi divergences stands: the tighter one would need much memory."""
NEAR = 0.995
"""A search for sigma ends where it costs at least this share of the budget."""


@functools.cache
def epsilon_of(accountant: str, sigma: float, rate: float, steps: int, delta: float) -> float:
    """Epsilon at ``delta`` of so many ``steps`` of the Gaussian mechanism with noise ``sigma`` C on a Poisson sample.

    An upper bound, of adding or removing one row: by privacy loss random variables (``prv``: Gopi et al. 2021,
    arXiv:2106.02848, computed to 0.01) or by Renyi divergences (``rdp``: Mironov et al. 2019, arXiv:1908.10530), which
    is never below. Takes up to a second or two.

    >>> round(epsilon_of("rdp", 1.0, 0.01, 1000, 1e-5), 2)
    2.1
    """
    if steps == 0:
        return 0.0
    if sigma == 0:
        return math.inf
    from opacus.accountants import create_accountant

    least = math.inf
    for name in dict.fromkeys(("rdp", accountant)):
        counter = create_accountant(name)
        counter.history = [(sigma, rate, steps)]
        with warnings.catch_warnings():  # of a logarithm of 0 at rate 1, and of the ends of its list of orders
            warnings.simplefilter("ignore")
            least = min(least, float(counter.get_epsilon(delta)))
        if least > HOPELESS:
            break
    return least


@functools.cache
def sigma_for(accountant: str, epsilon: float, rate: float, steps: int, delta: float) -> float:
    """A noise multiplier, of 4 decimals, whose :func:`epsilon_of` is at most ``epsilon`` and not much less.

    Opacus' own search halves an interval, some 30 seconds long; epsilon is nearly a power of sigma, so that a line
    through logarithms needs a few trials.

    Raises:
        UserError: no noise is enough.
    """
    cost = functools.partial(epsilon_of, accountant, rate=rate, steps=steps, delta=delta)
    low: tuple[float, float] | None = None  # (sigma, its cost), too cheap in noise
    high: tuple[float, float] | None = None  # one that keeps the budget
    sigma, goal = 1.0, (1 + NEAR) / 2 * epsilon
    while True:
        sigma = math.ceil(sigma * 1e4) / 1e4
        found = sigma, cost(sigma)
        if found[1] > epsilon:
            low = found
        else:
            high = found
        if high and (high[1] >= NEAR * epsilon or (low and high[0] - low[0] < 1.5e-4) or high[0] <= 1e-4):
            return high[0]
        sigma = _next(low, high, goal)
        if sigma > MOST_NOISE:
            raise UserError(
                f"--dp_epsilon {epsilon:g} cannot be kept over {steps} steps at delta {delta:.3g}: give a larger one, "
                "or fewer rounds or steps."
            )


def _next(low: tuple[float, float] | None, high: tuple[float, float] | None, goal: float) -> float:
    """The next sigma to try: on the line through both ends (logarithms), or further out where one is missing."""
    if low is None or high is None:
        sigma, found = low or high or (1.0, goal)
        factor = (found / goal) ** 0.8 if math.isfinite(found) and found > 0 else (4.0 if low else 0.25)
        return sigma * min(max(factor, 0.25), 4.0) * (1.02 if low else 0.98)
    if math.isfinite(low[1]) and high[1] > 0:
        share = math.log(low[1] / goal) / math.log(low[1] / high[1])
        share = min(max(share, 0.05), 0.95)
    else:
        share = 0.5
    return math.exp(math.log(low[0]) + share * math.log(high[0] / low[0]))


def gaussian_epsilon(sigma: float, rounds: int, delta: float) -> float:
    """Epsilon at ``delta`` of so many ``rounds`` of the Gaussian mechanism with noise ``sigma`` x sensitivity.

    Nothing is drawn (q = 1), so that it is exact: together they are one mechanism with sigma / sqrt(rounds), whatever
    each may have seen of those before (Dong et al. 2022, arXiv:1905.02383, corollary 3.3; its curve is theorem 8 of
    Balle and Wang 2018, arXiv:1805.06530). Computed to 1e-9 from above.

    >>> round(gaussian_epsilon(1.0, 1, 1e-5), 4)
    4.3772
    """
    if rounds == 0:
        return 0.0
    if sigma == 0:
        return math.inf
    mu = math.sqrt(rounds) / sigma
    low, high = 0.0, 1.0
    while _gaussian_delta(high, mu) > delta:
        low, high = high, 2 * high
    while high - low > 1e-9 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (low, middle) if _gaussian_delta(middle, mu) <= delta else (middle, high)
    return 0.0 if _gaussian_delta(0.0, mu) <= delta else high


def gaussian_sigma(epsilon: float, rounds: int, delta: float) -> float:
    """The smallest sigma of 4 decimals, rounded up, whose :func:`gaussian_epsilon` is at most ``epsilon``."""
    low, high = 0.0, 1.0
    while gaussian_epsilon(high, rounds, delta) > epsilon:
        low, high = high, 2 * high
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if gaussian_epsilon(middle, rounds, delta) <= epsilon else (middle, high)
    return math.ceil(high * 1e4) / 1e4


def _gaussian_delta(epsilon: float, mu: float) -> float:
    """``Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)``; more where no float holds the second term."""
    first, second = (math.erfc((epsilon / mu + side * mu / 2) / math.sqrt(2)) / 2 for side in (-1, 1))
    return first - (math.exp(epsilon) * second if second > 0 and epsilon < 700 else 0.0)
