"""How good probabilities were: scores, intervals, reliability, calibration. Pure; the order of the input is no matter.

A forecast is what was said (`p`), what came (`y`, 0 or 1) and its `cluster`: those of one cluster are not independent
of each other, and every interval here allows for it.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from services.cli.report import CONFIDENCE, Z, wilson

BINS = 10
"""Of equal count, at most."""

LEAST_IN_GROUP = 10
GROUPS = 20
"""For calibration, answers are put together until there are so many, and at most into so many groups."""

LEAST, MOST = 0.001, 0.999
"""A calibrated probability never leaves these: no number of outcomes proves that something cannot happen."""

STEP_DIGITS = 4
"""Calibration tells probabilities apart by so many digits."""


class Forecast(NamedTuple):
    p: float
    y: int
    cluster: int


class Estimate(NamedTuple):
    """A number and its interval at `CONFIDENCE`. Without one (None) there is only one cluster: nobody can tell."""

    value: float
    low: float | None
    high: float | None

    def within(self, least: float, most: float) -> "Estimate":
        """The interval cut to what is possible."""
        if self.low is None or self.high is None:
            return self
        return Estimate(self.value, max(least, self.low), min(most, self.high))

    @property
    def sign(self) -> int:
        """1 or -1 if the whole interval is on that side of 0, else 0: it cannot be told from chance."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


class Bin(NamedTuple):
    """Forecasts of about the same `p`: the mean of what was said, and how many came true."""

    n: int
    mean_p: float
    true: int

    @property
    def share(self) -> float:
        return self.true / self.n

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.true, self.n)


def student(freedom: int) -> float:
    """The two-sided quantile of Student's t at `CONFIDENCE`. Exact for 1 and 2 degrees of freedom.

    Above: Cornish and Fisher's expansion about the normal one, right to 0.3 % from 3 on.
    https://en.wikipedia.org/wiki/Student%27s_t-distribution#Quantile_function (1, 2); Abramowitz and Stegun 26.7.5.
    """
    tail = 1 - CONFIDENCE
    if freedom == 1:
        return 1 / math.tan(math.pi * tail / 2)
    if freedom == 2:
        return 2 * (0.5 - tail / 2) * math.sqrt(2 / (4 * (tail / 2) * (1 - tail / 2)))
    z, v = Z, freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def estimate(value: float, influences: Iterable[tuple[float, int]]) -> Estimate:
    """`value` with an interval by its influences: (how far one observation moves it, times their number; its cluster).

    The influences of a mean are the distances from it. Those of a cluster are summed first, so that forty observations
    of one minute that all went the same way count as about one. https://en.wikipedia.org/wiki/Clustered_standard_errors
    """
    members: dict[int, list[float]] = defaultdict(list)
    for influence, cluster in influences:
        members[cluster].append(influence)
    groups = len(members)
    if groups < 2:
        return Estimate(value, None, None)
    count = sum(map(len, members.values()))
    squares = math.fsum(math.fsum(those) ** 2 for those in members.values())
    reach = student(groups - 1) * math.sqrt(squares * groups / (groups - 1)) / count
    return Estimate(value, value - reach, value + reach)


def mean(values: Sequence[tuple[float, int]]) -> Estimate:
    """Of (value, cluster); at least one."""
    middle = math.fsum(value for value, _ in values) / len(values)
    return estimate(middle, ((value - middle, cluster) for value, cluster in values))


def base_rate(forecasts: Sequence[Forecast]) -> float:
    return sum(one.y for one in forecasts) / len(forecasts)


def brier(forecasts: Sequence[Forecast]) -> Estimate:
    """Mean of `(p - y)²`."""
    return mean([((one.p - one.y) ** 2, one.cluster) for one in forecasts]).within(0, 1)


def skill(forecasts: Sequence[Forecast]) -> Estimate:
    """Brier skill score: `1 - brier / brier of always saying the base rate`. 0, without interval, where that is 0."""
    rate = base_rate(forecasts)
    if rate in (0, 1):
        return Estimate(0.0, None, None)
    errors = [(one.p - one.y) ** 2 for one in forecasts]
    plain = [(rate - one.y) ** 2 for one in forecasts]
    reference = math.fsum(plain) / len(plain)
    ratio = math.fsum(errors) / math.fsum(plain)
    influences = [
        ((ratio * other - error) / reference, one.cluster)
        for error, other, one in zip(errors, plain, forecasts, strict=True)
    ]
    found = estimate(1 - ratio, influences)
    return found if found.high is None else found._replace(high=min(1.0, found.high))


def bins(forecasts: Iterable[Forecast]) -> tuple[Bin, ...]:
    """At most `BINS` of about equal count, from low to high `p`. Equal `p` are never parted."""
    by_p: dict[float, list[int]] = defaultdict(list)
    for one in forecasts:
        by_p[one.p].append(one.y)
    total = sum(map(len, by_p.values()))
    found: list[Bin] = []
    said: list[float] = []
    true = seen = 0
    for p, came in sorted(by_p.items()):
        said += [p] * len(came)
        true += sum(came)
        seen += len(came)
        if seen * BINS >= total * (len(found) + 1) or seen == total:
            found.append(Bin(len(said), math.fsum(said) / len(said), true))
            said, true = [], 0
    return tuple(found)


def calibration_error(found: Sequence[Bin]) -> float:
    """Mean distance between what was said and what came, over the bins, weighted by their counts."""
    total = sum(one.n for one in found)
    return math.fsum(one.n * abs(one.mean_p - one.share) for one in found) / total


def chance_error(found: Sequence[Bin]) -> float:
    """About the calibration error that somebody who is calibrated has by chance: it is above 0, the more the fewer."""
    total = sum(one.n for one in found)
    return math.fsum(math.sqrt(2 / math.pi * one.n * one.mean_p * (1 - one.mean_p)) for one in found) / total


def isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The sequence that never falls and is nearest to `values` (least weighted squares): pool adjacent violators.

    https://en.wikipedia.org/wiki/Isotonic_regression
    """
    blocks: list[tuple[float, float, int]] = []  # weight, weight times value, how many values
    for value, weight in zip(values, weights, strict=True):
        heavy, moment, length = weight, weight * value, 1
        while blocks and blocks[-1][1] / blocks[-1][0] >= moment / heavy:
            before = blocks.pop()
            heavy, moment, length = heavy + before[0], moment + before[1], length + before[2]
        blocks.append((heavy, moment, length))
    return [moment / heavy for heavy, moment, length in blocks for _ in range(length)]


def calibration(forecasts: Sequence[Forecast]) -> list[tuple[float, float]]:
    """(what was said, what it meant), for `shared.weights.Entry`. Never falls, and stays within `LEAST` and `MOST`.

    Forecasts of about the same `p` make groups of at least `LEAST_IN_GROUP`. The rate of each is drawn to the base rate
    as if two more had come with it (`(k + 2b) / (m + 2)`, b being `(k + 1) / (n + 2)` of all), so that ten of ten are
    no certainty; then the rates are made to rise. Of groups that were pooled the first and the last make a point.
    """
    by_p: dict[float, list[int]] = defaultdict(list)
    for one in forecasts:
        by_p[round(one.p, STEP_DIGITS)].append(one.y)
    total = len(forecasts)
    prior = (sum(one.y for one in forecasts) + 1) / (total + 2)
    least = max(LEAST_IN_GROUP, math.ceil(total / GROUPS))
    groups: list[list[tuple[float, int]]] = [[]]
    left = total
    for p, came in sorted(by_p.items()):
        if len(groups[-1]) >= least and left >= least:
            groups.append([])
        groups[-1] += [(p, y) for y in came]
        left -= len(came)
    rates = [(sum(y for _, y in group) + 2 * prior) / (len(group) + 2) for group in groups]
    risen = isotonic(rates, [len(group) + 2.0 for group in groups])
    points = [
        (round(math.fsum(p for p, _ in group) / len(group), 6), min(MOST, max(LEAST, round(rate, 6))))
        for group, rate in zip(groups, risen, strict=True)
    ]
    inner = range(1, len(points) - 1)
    flat = {at for at in inner if points[at - 1][1] == points[at][1] == points[at + 1][1]}
    return [point for at, point in enumerate(points) if at not in flat]


def quantile(values: Sequence[int], share: float) -> int:
    """The smallest value that at least `share` of all do not exceed; at least one value."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
