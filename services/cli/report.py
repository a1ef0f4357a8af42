"""`arb report`: is there an edge today, and for how long does it survive?

`chosen`, `summarise` and all they call are pure: outcomes in, a `Report` out, no clock and no Kafka. An outcome that
was missed says nothing: it is counted, and left out of every share, median and mean.
"""

import datetime
import gzip
import io
import itertools
import math
import re
import statistics
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from services.cli.explain import duration_s
from shared import cluster, kafka, topics
from shared.errors import DependencyMissing, InputError, UndecodableRecord, UsageError
from shared.messages import AnyMessage, DelayedEdge, decode
from shared.settings import KafkaSettings

MS = 1_000_000

NEED_MS = 100
"""How long after publishing orders are at both exchanges, unless you say otherwise."""

NEED_SHARE = 0.5
"""An edge is there where at least so many still pay at that moment, even at the lower end of the interval."""

CONFIDENCE = 0.95
Z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)

SINCE = "24h"
"""How far back in Kafka, unless told. Files are read whole."""

SLACK_MS = 10_000
"""A record's timestamp is of another clock than its message: we look so much further back."""

READ_S = 100.0
"""How long reading back the topic may take."""

LINES = 6
"""Lines of a plot at most: more cannot be told apart."""

BPS_STEP, USD_STEP = Decimal("0.0001"), Decimal("0.000001")


class By(StrEnum):
    """What `arb report` groups by."""

    PAIR = "pair"
    BASE = "base"
    EXCHANGE = "exchange"
    ROUTE = "route"


Kind = Literal["all", "pair", "base", "buy", "sell", "route"]
Reason = Literal["survives", "pairs", "none", "unseen", "gone", "few"]


# ---------------------------------------------------------------- what survives


class Held(NamedTuple):
    """An outcome and its place among all: of two about the same moment the higher rank is the newer."""

    rank: tuple[int, ...]
    outcome: DelayedEdge


@dataclass(frozen=True, slots=True)
class Survival:
    """What was left of a group after one delay.

    Attributes:
        count: Outcomes; `missed` of them say nothing.
        paid: Those seen that were executable with a profit.
        median_net_bps: Of those seen; of the top of the books where nothing was executable.
        mean_profit_usd: Over those seen, 0 where nothing was executable: what one opportunity was worth by then.
    """

    delay_ms: int
    count: int
    missed: int
    paid: int
    median_net_bps: Decimal | None
    mean_profit_usd: Decimal | None

    @property
    def seen(self) -> int:
        return self.count - self.missed

    @property
    def share(self) -> float | None:
        return self.paid / self.seen if self.seen else None

    @property
    def interval(self) -> tuple[float, float] | None:
        return wilson(self.paid, self.seen) if self.seen else None

    @property
    def passes(self) -> bool:
        """The rule: even the lower end of the interval is enough."""
        return self.interval is not None and self.interval[0] >= NEED_SHARE


@dataclass(frozen=True, slots=True)
class Series:
    """One group, delay by delay."""

    kind: Kind
    name: str
    opportunities: int
    delays: tuple[Survival, ...]

    @property
    def label(self) -> str:
        return f"{self.kind} {self.name}" if self.kind in ("buy", "sell") else self.name

    def seen_from(self, delay_ms: int) -> Survival | None:
        """At the first delay from there on at which anything was seen: later is never better for us."""
        return next((one for one in self.delays if one.delay_ms >= delay_ms and one.seen), None)

    @property
    def lived_ms(self) -> int | None:
        """The delay up to which, from the first one on, at least half still paid; None: not even then."""
        lived = None
        for one in self.delays:
            if one.share is not None:
                if one.share < NEED_SHARE:
                    break
                lived = one.delay_ms
        return lived


@dataclass(frozen=True, slots=True)
class Report:
    """All numbers of a report. `groups` are those asked for, `pairs` those that the rule looks at.

    Attributes:
        first_ns, last_ns: Of the openings; None if there are none.
        duplicates: Records about a moment that a newer record is about, too.
    """

    by: By
    need_ms: int
    outcomes: int
    missed: int
    duplicates: int
    first_ns: int | None
    last_ns: int | None
    total: Series
    groups: tuple[Series, ...]
    pairs: tuple[Series, ...]

    @property
    def judged(self) -> Survival | None:
        """The one that the rule looks at, of all opportunities together."""
        return self.total.seen_from(self.need_ms)

    @property
    def passing(self) -> tuple[tuple[Series, Survival], ...]:
        """Pairs that pass by themselves, most opportunities first."""
        found = ((pair, pair.seen_from(self.need_ms)) for pair in self.pairs)
        return tuple((pair, judged) for pair, judged in found if judged is not None and judged.passes)

    @property
    def reason(self) -> Reason:
        """Why there is an edge, or none."""
        judged = self.judged
        if not self.total.opportunities:
            return "none"
        if judged is None or judged.share is None:
            return "unseen"
        if judged.passes:
            return "survives"
        if self.passing:
            return "pairs"
        return "few" if judged.share >= NEED_SHARE else "gone"

    @property
    def edge(self) -> bool:
        return self.reason in ("survives", "pairs")


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Interval of a share at `CONFIDENCE`: Wilson's, because it holds for few and for extreme ones.

    https://en.wikipedia.org/wiki/Binomial_proportion_confidence_interval#Wilson_score_interval
    """
    share, z2 = hits / of, Z * Z
    middle = share + z2 / (2 * of)
    reach = Z * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of))
    low, high = ((middle + sign * reach) / (1 + z2 / of) for sign in (-1, 1))
    return (0.0 if hits == 0 else low, 1.0 if hits == of else high)  # exactly, where rounding leaves 1e-17


def opened_ns(outcome: DelayedEdge) -> int:
    """When its opportunity was published."""
    return outcome.evaluated_ns - outcome.delay_ms * MS


def chosen(held: Iterable[Held], bases: Sequence[str], since_ns: int | None, until_ns: int | None) -> list[Held]:
    """Those of the coins (none: all) whose opportunity opened from `since_ns` up to, without, `until_ns`."""
    return [
        one
        for one in held
        if (not bases or one.outcome.base in bases)
        and (since_ns is None or opened_ns(one.outcome) >= since_ns)
        and (until_ns is None or opened_ns(one.outcome) < until_ns)
    ]


def summarise(held: Iterable[Held], by: By = By.PAIR, need_ms: int = NEED_MS) -> Report:
    """Count. The order of `held` does not matter; each moment of an opportunity counts once."""
    newest: dict[tuple[str, int], Held] = {}
    records = 0
    for one in held:
        records += 1
        key = (one.outcome.opportunity_id, one.outcome.delay_ms)
        before = newest.get(key)
        if before is None or _age(one) > _age(before):
            newest[key] = one
    outcomes = [one.outcome for one in newest.values()]
    openings = [opened_ns(outcome) for outcome in outcomes]
    return Report(
        by=by,
        need_ms=need_ms,
        outcomes=len(outcomes),
        missed=sum(outcome.missed for outcome in outcomes),
        duplicates=records - len(outcomes),
        first_ns=min(openings, default=None),
        last_ns=max(openings, default=None),
        total=_series("all", "all", outcomes),
        groups=_grouped(outcomes, by),
        pairs=_grouped(outcomes, By.PAIR),
    )


def _age(held: Held) -> tuple[tuple[int, ...], bytes]:
    return held.rank, held.outcome.encode()  # the same rank twice: any fixed choice, so that order does not matter


def names_of(outcome: DelayedEdge, by: By) -> list[tuple[Kind, str]]:
    """The groups that an outcome belongs to: one, or one for each of its two exchanges."""
    match by:
        case By.PAIR:
            buy = f"{outcome.buy_exchange} {outcome.buy_symbol}"
            return [("pair", f"{buy} -> {outcome.sell_exchange} {outcome.sell_symbol}")]
        case By.BASE:
            return [("base", outcome.base)]
        case By.EXCHANGE:
            return [("buy", outcome.buy_exchange), ("sell", outcome.sell_exchange)]
        case By.ROUTE:
            return [("route", outcome.route)]


def _grouped(outcomes: Iterable[DelayedEdge], by: By) -> tuple[Series, ...]:
    members: dict[tuple[Kind, str], list[DelayedEdge]] = defaultdict(list)
    for outcome in outcomes:
        for key in names_of(outcome, by):
            members[key].append(outcome)
    found = [_series(kind, name, those) for (kind, name), those in members.items()]
    return tuple(sorted(found, key=lambda series: (-series.opportunities, series.kind, series.name)))


def _series(kind: Kind, name: str, outcomes: Sequence[DelayedEdge]) -> Series:
    by_delay: dict[int, list[DelayedEdge]] = defaultdict(list)
    for outcome in outcomes:
        by_delay[outcome.delay_ms].append(outcome)
    opportunities = len({outcome.opportunity_id for outcome in outcomes})
    return Series(kind, name, opportunities, tuple(_survival(*item) for item in sorted(by_delay.items())))


def _survival(delay_ms: int, outcomes: Sequence[DelayedEdge]) -> Survival:
    seen = [outcome for outcome in outcomes if not outcome.missed]
    profits = sorted(_profit(outcome) for outcome in seen)
    nets = [outcome.net_bps for outcome in seen if outcome.net_bps is not None]
    with localcontext(prec=60):  # and sorted: the same digits in whatever order they came
        return Survival(
            delay_ms=delay_ms,
            count=len(outcomes),
            missed=len(outcomes) - len(seen),
            paid=sum(profit > 0 for profit in profits),
            median_net_bps=statistics.median(nets) if nets else None,
            mean_profit_usd=sum(profits, Decimal(0)) / len(profits) if profits else None,
        )


def _profit(outcome: DelayedEdge) -> Decimal:
    """0 where nothing was executable: nobody would have traded then."""
    if not outcome.executable or outcome.profit_usd is None:
        return Decimal(0)
    return max(outcome.profit_usd, Decimal(0))


# ---------------------------------------------------------------- in words


def headline(report: Report, span: str) -> str:
    """The answer. `span` is such as "in the last 24 h"."""
    total, judged = report.total, report.judged
    if not total.opportunities:
        return f"no edge today: no opportunity {span}"
    found = f"{counted(total.opportunities, 'opportunity')} {span}"
    if judged is None or judged.share is None:
        return f"no edge today: {found}, but nobody saw what any was worth after {delay(report.need_ms)} or later"
    said = f"{found}; after {delay(judged.delay_ms)} {percent(judged.share)} still paid"
    match report.reason:
        case "survives":
            return said
        case "pairs":
            best, there = report.passing[0]
            assert there.share is not None
            later = "" if there.delay_ms == judged.delay_ms else f" after {delay(there.delay_ms)}"
            others = len(report.passing) - 1
            more = f", and {counted(others, 'more pair')} like it" if others else ""
            return f"{said}, but {percent(there.share)} on {best.name}{later}{more}"
        case "few":
            return f"no edge today: {said}, and so few prove nothing"
    return f"no edge today: {said}"


def lifetime(report: Report) -> str | None:
    """How long they last, and what they were worth; None if nothing was seen."""
    first = report.total.seen_from(0)
    if first is None:
        return None
    lived = report.total.lived_ms
    if lived is None:
        text = f"Fewer than half paid already after {delay(first.delay_ms)}."
    elif lived == report.total.delays[-1].delay_ms:
        text = f"At least half still paid after {delay(lived)}, the longest delay there is."
    else:
        text = f"At least half still paid up to {delay(lived)} after publishing, fewer later."
    judged = report.judged
    if judged is not None and judged.median_net_bps is not None and judged.mean_profit_usd is not None:
        text += (
            f" After {delay(judged.delay_ms)}: median {judged.median_net_bps:.2f} bps net, mean profit "
            f"{money(judged.mean_profit_usd)} USD."
        )
    return text


def rule(report: Report) -> str:
    """The rule, and the numbers that it was applied to."""
    text = (
        f"Rule: there is an edge if, {delay(report.need_ms)} after publishing (--need-ms), at least "
        f"{percent(NEED_SHARE)} still pay, even at the lower end of the {percent(CONFIDENCE)} interval: of all "
        "opportunities, or of those of one pair. "
    )
    judged = report.judged
    if judged is None or judged.share is None:
        return text + "Here: nothing to apply it to."
    at = "" if judged.delay_ms == report.need_ms else f"at {delay(judged.delay_ms)}, the first delay from there on, "
    text += (
        f"Here: {at}{percent(judged.share)} of all ({interval(judged)}; {judged.paid:,} of {judged.seen:,} seen): "
        f"{'yes' if judged.passes else 'no'}; "
    )
    return text + f"{len(report.passing)} of {counted(len(report.pairs), 'pair')} by themselves."


def left_out(report: Report, no_outcomes: int) -> str | None:
    """What was counted apart."""
    parts = []
    if report.missed:
        parts.append(
            f"{report.missed:,} of {counted(report.outcomes, 'outcome')} missed (nobody could see the books then): in "
            "no share"
        )
    if report.duplicates:
        parts.append(f"{counted(report.duplicates, 'duplicate')} counted once")
    if no_outcomes:
        parts.append(f"{counted(no_outcomes, 'record')} could not be read as an outcome")
    return "; ".join(parts) + "." if parts else None


def delay(ms: int) -> str:
    """`250 ms`, `1 s`, `2.5 s`."""
    return f"{ms} ms" if ms < 1000 else f"{ms / 1000:g} s"


def percent(share: float) -> str:
    """Whole per cent, but 0, 50 and 100 only where it is exactly that: what decides is not rounded over the line."""
    value = round(share * 100, 9)
    whole = round(value)
    if whole in (0, 50, 100) and value != whole:
        return f"{(math.floor(value * 10) if value < whole else math.ceil(value * 10)) / 10:.1f} %"
    return f"{whole} %"


def interval(survival: Survival) -> str:
    """`77-85 %`."""
    if survival.interval is None:
        return "-"
    low, high = (percent(end) for end in survival.interval)
    return f"{low.removesuffix(' %')}-{high}"


def money(usd: Decimal) -> str:
    return f"{usd:,.2f}" if usd == 0 or abs(usd) >= Decimal("0.1") else f"{usd:.4f}"


def counted(count: int, what: str) -> str:
    if count == 1:
        return f"1 {what}"
    return f"{count:,} {what[:-1]}ies" if what.endswith("y") else f"{count:,} {what}s"


def moment_words(at_ns: int) -> str:
    return f"{datetime.datetime.fromtimestamp(at_ns / 1e9, datetime.UTC):%Y-%m-%d %H:%M}"


# ---------------------------------------------------------------- as JSON


def as_value(report: Report, no_outcomes: int, span: str) -> dict[str, Any]:
    """A report as JSON; bps and money are decimal strings, as in the messages."""
    judged = report.judged
    return {
        "edge": report.edge,
        "reason": report.reason,
        "headline": headline(report, span),
        "rule": {
            "need_ms": report.need_ms,
            "need_share": NEED_SHARE,
            "confidence": CONFIDENCE,
            "all": None if judged is None else _survival_value(judged),
            "pairs": [{"name": pair.name, **_survival_value(one)} for pair, one in report.passing],
        },
        "by": report.by.value,
        "first_ns": report.first_ns,
        "last_ns": report.last_ns,
        "opportunities": report.total.opportunities,
        "outcomes": report.outcomes,
        "missed": report.missed,
        "duplicates": report.duplicates,
        "no_outcomes": no_outcomes,
        "all": _series_value(report.total),
        "groups": [_series_value(series) for series in report.groups],
    }


def _series_value(series: Series) -> dict[str, Any]:
    return {
        "kind": series.kind,
        "name": series.name,
        "opportunities": series.opportunities,
        "lived_ms": series.lived_ms,
        "delays": [_survival_value(one) for one in series.delays],
    }


def _survival_value(one: Survival) -> dict[str, Any]:
    low, high = one.interval or (None, None)
    bps, usd = one.median_net_bps, one.mean_profit_usd
    return {
        "delay_ms": one.delay_ms,
        "count": one.count,
        "missed": one.missed,
        "seen": one.seen,
        "paid": one.paid,
        "share": one.share,
        "low": low,
        "high": high,
        "median_net_bps": None if bps is None else format(bps.quantize(BPS_STEP), "f"),
        "mean_profit_usd": None if usd is None else format(usd.quantize(USD_STEP), "f"),
    }


# ---------------------------------------------------------------- on the terminal


def show(console: Console, report: Report, no_outcomes: int, span: str, most: int) -> None:
    """For people: the answer, the tables of at most `most` groups (0: all), the plot, the rule."""
    console.print(Text(headline(report, span), style="bold green" if report.edge else "bold yellow"))
    if (lived := lifetime(report)) is not None:
        console.print(Text(lived))
    if report.total.opportunities:
        tables = report.groups[: most or None]
        for series in tables if len(report.groups) == 1 else (report.total, *tables):
            console.print()
            console.print(_table(series))
        if len(tables) < len(report.groups):
            left = len(report.groups) - len(tables)
            console.print(Text(f"\n... and {counted(left, 'more group')} (--top 0 shows all)", style="dim"))
    if lines := plotted(report):
        console.print()
        console.print(plot(lines, ascii_only=console.options.ascii_only))
    console.print()
    console.print(Text(rule(report), style="dim"))
    if (apart := left_out(report, no_outcomes)) is not None:
        console.print(Text(apart, style="dim"))


COLUMNS = (("delay", 8), ("seen", 7), ("missed", 7), ("still pays", 10), ("95 % interval", 13))
MONEY_COLUMNS = (("median net bps", 14), ("mean USD", 9))


def _table(series: Series) -> Group:
    """The widths are fixed, so that the tables of all groups stand below each other."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name, width in (*COLUMNS, *MONEY_COLUMNS):
        table.add_column(name, justify="right", min_width=width, no_wrap=True)
    for one in series.delays:
        style = "" if one.share is None else "green" if one.passes else "yellow" if one.share >= NEED_SHARE else "red"
        table.add_row(
            delay(one.delay_ms),
            f"{one.seen:,}",
            f"{one.missed:,}",
            Text("-" if one.share is None else percent(one.share), style=style),
            interval(one),
            "-" if one.median_net_bps is None else f"{one.median_net_bps:,.2f}",
            "-" if one.mean_profit_usd is None else money(one.mean_profit_usd),
        )
    name = "all opportunities" if series.kind == "all" else series.label
    return Group(Text(f"{name} ({series.opportunities:,})", style="bold"), table)


def plotted(report: Report) -> list[Series]:
    """The lines of a plot: all together and the groups with the most opportunities, where anything was seen."""
    lines = [*report.groups] if len(report.groups) == 1 else [report.total, *report.groups]
    return [series for series in lines if series.seen_from(0) is not None][:LINES]


COLORS = ("white", "cyan", "yellow", "magenta", "green", "blue")
MARKERS = ("●", "■", "▲", "◆", "○", "□")
PLAIN_MARKERS = ("o", "#", "^", "+", "x", "%")
WIDTH, HEIGHT = 61, 13
BRAILLE = 0x2800
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of the dots of a braille character, row by row."""

Cell = tuple[int, int]
"""Row and column of a character."""


def plot(lines: Sequence[Series], *, ascii_only: bool = False) -> Text:
    """Survival against the delay (a logarithmic axis). Where lines meet, the earlier one is on top."""
    delays = sorted({one.delay_ms for series in lines for one in series.delays})
    columns = dict(zip(delays, _columns(delays), strict=True))
    cells: dict[Cell, tuple[str, str]] = {}
    dots: dict[Cell, tuple[int, str]] = {}
    markers = PLAIN_MARKERS if ascii_only else MARKERS
    styled = list(zip(lines, markers, COLORS, strict=False))
    for series, marker, color in styled:
        points = [(columns[one.delay_ms], _row(one.share)) for one in series.delays if one.share is not None]
        for column, row in points:
            cells.setdefault((row, column), (marker, color))
        for one, other in itertools.pairwise(points):
            draw(dots, one, other, color)
    text = Text()
    for row in range(HEIGHT):
        text.append(f"{percent(1 - row / (HEIGHT - 1)):>6} |" if row % 3 == 0 else "       |", style="dim")
        for column in range(WIDTH):
            text.append(*_cell(row, column, cells, dots, ascii_only=ascii_only))
        text.append("\n")
    text.append(_axis(columns), style="dim")
    for series, marker, color in styled:
        name = "all opportunities" if series.kind == "all" else series.label
        text.append(f"\n  {marker} {name} ({series.opportunities:,})", style=color)
    return text


def _columns(delays: Sequence[int]) -> list[int]:
    logs = [math.log(max(1, one)) for one in delays]
    span = logs[-1] - logs[0]
    return [2 + round((one - logs[0]) / span * (WIDTH - 5)) if span else WIDTH // 2 for one in logs]


def _row(share: float) -> int:
    return round((1 - share) * (HEIGHT - 1))


def draw(dots: dict[Cell, tuple[int, str]], one: tuple[int, int], other: tuple[int, int], color: str) -> None:
    """A straight line of braille dots between two characters: 2 by 4 dots each."""
    (x0, y0), (x1, y1) = ((column * 2 + 0.5, row * 4 + 1.5) for column, row in (one, other))
    steps = max(1, math.ceil(max(abs(x1 - x0), abs(y1 - y0))))
    for step in range(steps + 1):
        x, y = (int(start + (end - start) * step / steps) for start, end in ((x0, x1), (y0, y1)))
        cell = (y // 4, x // 2)
        bits, owner = dots.get(cell, (0, color))
        if owner == color:
            dots[cell] = (bits | DOTS[y % 4][x % 2], color)


def _cell(
    row: int,
    column: int,
    cells: dict[Cell, tuple[str, str]],
    dots: dict[Cell, tuple[int, str]],
    *,
    ascii_only: bool,
) -> tuple[str, str]:
    """Character and style: a measured point, a line between two, the line of the rule, or nothing."""
    if (row, column) in cells:
        return cells[row, column]
    if (row, column) in dots:
        bits, color = dots[row, column]
        return "." if ascii_only else chr(BRAILLE | bits), color
    return ("-", "dim") if row == _row(NEED_SHARE) and column % 2 else (" ", "")


def _axis(columns: dict[int, int]) -> str:
    """The delays below their points; one that would touch the one before is left out."""
    marks, line = [" "] * WIDTH, ""
    for ms, column in columns.items():
        marks[column] = "+"
        label = delay(ms)
        at = max(0, column - len(label) // 2)
        if not line or at > len(line):
            line = line.ljust(at) + label
    return f"       +{''.join(marks).replace(' ', '-')}\n        {line}"


# ---------------------------------------------------------------- as a picture

PNG_COLORS = ("#222222", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
"""Okabe and Ito's, which colour-blind people can tell apart."""

PNG_MARKERS = ("o", "s", "^", "D", "v", "P")


def require_plots(option: str = "--png") -> None:
    """Fail before any work is done. `option`: what asks for a picture.

    Raises:
        DependencyMissing: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401  # heavy, and an extra: only --png needs it
    except ImportError:
        raise DependencyMissing(f"{option} needs matplotlib: pip install matplotlib") from None


def png(report: Report, span: str) -> bytes:
    """The plot as a picture, the intervals as bands. Needs matplotlib and no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, PercentFormatter

    lines = plotted(report)
    figure = Figure(figsize=(9, 5.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for series, color, marker in zip(lines, PNG_COLORS, PNG_MARKERS, strict=False):
        seen = [one for one in series.delays if one.seen]
        at = [one.delay_ms for one in seen]
        bands = [one.interval or (0.0, 0.0) for one in seen]
        name = "all opportunities" if series.kind == "all" else series.label.replace("->", "→")
        axes.fill_between(at, [low for low, _ in bands], [high for _, high in bands], color=color, alpha=0.13, lw=0)
        axes.plot(
            at,
            [one.share or 0.0 for one in seen],
            color=color,
            marker=marker,
            markersize=5,
            linewidth=2.4 if series.kind == "all" else 1.5,
            label=f"{name} ({series.opportunities:,})",
            zorder=3,
            clip_on=False,
        )
    delays = sorted({one.delay_ms for series in lines for one in series.delays})
    axes.set_xscale("log")
    axes.set_xticks(delays, [delay(one) for one in delays])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(delays[0] / 1.15, delays[-1] * 1.15)
    axes.set_xlabel("delay after the opportunity was published")
    axes.set_ylim(0, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_ylabel("share that still pays")
    axes.axhline(NEED_SHARE, color="#777777", linewidth=0.9, linestyle="--", zorder=1)
    if (judged := report.judged) is not None:
        axes.axvline(judged.delay_ms, color="#777777", linewidth=0.9, linestyle="--", zorder=1)
    axes.annotate(
        f"needed: {percent(NEED_SHARE)} after {delay(report.need_ms if judged is None else judged.delay_ms)}",
        (1, NEED_SHARE),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 4),
        textcoords="offset points",
        ha="right",
        color="#555555",
        fontsize=8.5,
    )
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    under = f"{counted(report.total.opportunities, 'opportunity')} {span}; bands: {percent(CONFIDENCE)} intervals"
    axes.set_title("How long do opportunities keep paying?", loc="left", fontsize=13, fontweight="bold", pad=24)
    axes.annotate(under, (0, 1), xycoords="axes fraction", xytext=(0, 9), textcoords="offset points", color="#444444")
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


# ---------------------------------------------------------------- reading


class Read(NamedTuple):
    """Outcomes as read, and how many records were none."""

    held: list[Held]
    no_outcomes: int


def read_files(files: Sequence[Path]) -> Read:
    """Outcomes out of files, one message a line; `-` is standard input, `.gz` is unpacked. Other kinds are passed over.

    Raises:
        InputError: names the file, and the line that is no message.
    """
    found = messages_in(files)
    return Read([Held(rank, message) for rank, message in found if isinstance(message, DelayedEdge)], 0)


def messages_in(files: Sequence[Path]) -> Iterator[tuple[tuple[int, int], AnyMessage]]:
    """Every message of the files, and its place: file and line.

    Raises:
        InputError: names the file, and the line that is no message.
    """
    for order, file in enumerate(files):
        name, number = ("standard input" if str(file) == "-" else str(file)), 0
        try:
            for line in bytes_of(file).splitlines():
                number += 1
                if line.strip():
                    yield (order, number), decode(line)
        except UndecodableRecord as error:
            raise InputError(name, str(error), number) from None
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(name, getattr(error, "strerror", None) or str(error)) from None


def bytes_of(file: Path) -> bytes:
    if str(file) == "-":
        return sys.stdin.buffer.read()
    content = file.read_bytes()
    return gzip.decompress(content) if file.suffix == ".gz" else content


def of_records(records: Iterable[kafka.Record]) -> Read:
    """Outcomes of the topic; what is none is counted."""
    held, no_outcomes = [], 0
    for record in records:
        try:
            message = decode(record.value)
        except UndecodableRecord:
            message = None
        if isinstance(message, DelayedEdge):
            held.append(Held((record.timestamp_ms, record.offset), message))
        else:
            no_outcomes += 1
    return Read(held, no_outcomes)


def read_kafka(settings: KafkaSettings, since_ns: int) -> Read:
    """Outcomes of the topic from a moment on, and a little before.

    Raises:
        BrokerUnavailable, TopicMismatch: as for any reader.
    """
    cluster.wait_for_brokers(settings)
    since_ms = max(0, since_ns // MS - SLACK_MS)
    return of_records(kafka.read_range(kafka.reader(settings, "report"), [topics.OUTCOMES], since_ms, READ_S))


# ---------------------------------------------------------------- the command


class Asked(NamedTuple):
    """What the command line asks for. `since` and `until` are as typed."""

    by: By = By.PAIR
    bases: tuple[str, ...] = ()
    since: str | None = None
    until: str | None = None
    need_ms: int = NEED_MS
    most: int = 10


def is_duration(text: str) -> bool:
    """What `duration_s` takes, and does not look like a moment."""
    return re.fullmatch(r"\d+(\.\d+)?[smhd]?", text.strip()) is not None


def moment_ns(option: str, text: str, now_ns: int) -> int:
    """`24h` and `90m` (so long ago) or `2026-11-21T10:00:00Z`, in ns.

    Raises:
        UsageError: it is neither, or a moment without its time zone.
    """
    if is_duration(text):
        return max(0, now_ns - int(duration_s(text) * 1e9))
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise UsageError(f"{option} {text!r}: must be a time such as 24h or 90m, or a moment 2026-11-21T10:00:00Z")
    since_epoch = at - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return since_epoch // datetime.timedelta(microseconds=1) * 1000


def span_words(
    since: str | None, since_ns: int | None, until_ns: int | None, first_ns: int | None, last_ns: int | None
) -> str:
    """`in the last 24 h`, or from when to when. `since` is as typed, `first_ns` and `last_ns` are of what was found."""
    if since_ns is not None and until_ns is None and since is not None and is_duration(since):
        number, unit = re.findall(r"[\d.]+|[smhd]", since + "s")[:2]
        return f"in the last {number} {'min' if unit == 'm' else unit}"
    begin = first_ns if since_ns is None else since_ns
    end = last_ns if until_ns is None else until_ns
    if begin is None and end is None:
        return "in these files"
    words = [f"from {moment_words(begin)}"] if begin is not None else []
    words += [f"to {moment_words(end)}"] if end is not None else []
    return " ".join(words) + " UTC"


def run(
    settings: KafkaSettings,
    asked: Asked,
    files: Sequence[Path],
    picture: Path | None,
    as_json: bool,
    stdout: Console,
    stderr: Console,
    clock: Callable[[], int] = time.time_ns,
) -> bool:
    """Print the report; whether there is an edge.

    Raises:
        UsageError: a time is none, or the range is empty.
        InputError: a file or a line of it cannot be read, or the picture cannot be written.
        DependencyMissing: there is no matplotlib for the picture.
        BrokerUnavailable, TopicMismatch: as for any reader.
    """
    if picture is not None:
        require_plots()
    if not files and asked.since is None:
        asked = asked._replace(since=SINCE)
    now_ns = clock()
    since_ns = None if asked.since is None else moment_ns("--since", asked.since, now_ns)
    until_ns = None if asked.until is None else moment_ns("--until", asked.until, now_ns)
    if since_ns is not None and since_ns >= (now_ns if until_ns is None else until_ns):
        raise UsageError("--since must be before --until (default: now)")
    read = read_files(files) if files else read_kafka(settings, since_ns or 0)
    bases = tuple(base.upper() for base in asked.bases)
    report = summarise(chosen(read.held, bases, since_ns, until_ns), asked.by, asked.need_ms)
    span = span_words(asked.since, since_ns, until_ns, report.first_ns, report.last_ns)
    if picture is not None:
        _write(picture, report, span, stderr)
    if as_json:
        print(orjson.dumps(as_value(report, read.no_outcomes, span), option=orjson.OPT_INDENT_2).decode())  # noqa: T201
    else:
        show(stdout, report, read.no_outcomes, span, asked.most)
    return report.edge


def _write(picture: Path, report: Report, span: str, stderr: Console) -> None:
    if not plotted(report):
        stderr.print(f"{picture} is not written: there is nothing to plot", markup=False)
        return
    try:
        picture.write_bytes(png(report, span))
    except OSError as error:
        raise InputError(str(picture), error.strerror or str(error)) from None
