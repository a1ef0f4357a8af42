"""The table of `arb decisions` and its sums. Pure."""

import datetime
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.cli.decisions.finding import Listing
from services.cli.decisions.show import clean
from services.cli.decisions.words import said, score_words, usd
from services.cli.explain.words import bps
from services.cli.screen import OUTCOME_STYLE
from services.decider.scoring import ROLES
from shared.messages import Decision

SHORT = 8
"""Characters of an id, or more where these do not tell two apart."""

WIDE = 160
"""From so many columns on a decision takes one line; below it is stacked."""


class Wanted(NamedTuple):
    """Which decisions. None and empty: any. Times in ns, the second exclusive."""

    since_ns: int | None = None
    until_ns: int | None = None
    outcomes: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    def holds(self, decision: Decision) -> bool:
        """Whether it is one of them."""
        return (
            (self.since_ns is None or decision.decided_ns >= self.since_ns)
            and (self.until_ns is None or decision.decided_ns < self.until_ns)
            and (not self.outcomes or decision.outcome in self.outcomes)
            and (not self.bases or decision.base in self.bases)
            and (not self.reasons or decision.reason in self.reasons)
        )

    def __str__(self) -> str:
        parts = [*self.outcomes, *self.bases, *self.reasons]
        return f" ({', '.join(parts)})" if parts else ""


def short_ids(ids: Sequence[str]) -> dict[str, str]:
    """The shortest beginnings, all of one length, that tell these ids apart."""
    each = sorted(set(ids))
    length = SHORT
    while length < max(map(len, each), default=0) and len({one[:length] for one in each}) < len(each):
        length += 1
    return {one: one[:length] for one in each}


def summary(listing: Listing) -> str:
    """Counts and costs of all that was found."""
    decisions = listing.decisions
    outcomes = Counter(str(one.outcome) for one in decisions)
    modes = Counter(str(one.mode) for one in decisions)
    cost = sum((one.panel.cost_usd for one in decisions), Decimal(0))
    words = f"{len(decisions):,} decision{'' if len(decisions) == 1 else 's'}: {_counts(outcomes)}; {_counts(modes)}; "
    words += f"{usd(cost)} for models"
    if listing.duplicates:
        words += f"; {listing.duplicates:,} duplicate{'' if listing.duplicates == 1 else 's'} left out"
    return words


def _counts(counted: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counted.items(), key=lambda one: (-one[1], one[0])))


def as_value(listing: Listing, most: int) -> dict[str, Any]:
    """As JSON: the newest `most` (0: all) decisions as published, and the sums of all."""
    decisions = listing.decisions
    return {
        "decisions": [one.model_dump(mode="json") for one in decisions[-most:]],
        "count": len(decisions),
        "duplicates": listing.duplicates,
        "outcomes": dict(sorted(Counter(one.outcome for one in decisions).items())),
        "modes": dict(sorted(Counter(one.mode for one in decisions).items())),
        "cost_usd": format(sum((one.panel.cost_usd for one in decisions), Decimal(0)), "f"),
    }


def show(console: Console, listing: Listing, most: int) -> None:
    """For people: the newest `most` (0: all), the newest last, and the sums of all."""
    shown = listing.decisions[-most:]
    ids = short_ids([one.decision_id for one in listing.decisions])
    days = {_moment(one).date() for one in shown}
    wide = console.width >= WIDE
    table = _wide() if wide else _stacked()
    for one in shown:
        at = f"{_moment(one):{'%m-%d ' if len(days) > 1 else ''}%H:%M:%S}"
        cells = _cells(one, at, ids[one.decision_id], wide=wide)
        table.add_row(*(Text(clean(cell)) if isinstance(cell, str) else cell for cell in cells))
    console.print(table, soft_wrap=False)
    console.print()
    if len(shown) < len(listing.decisions):
        words = f"the newest {len(shown):,} of {len(listing.decisions):,} are shown (--limit 0 shows all)"
        console.print(Text(words, style="dim"))
    console.print(Text(summary(listing)), soft_wrap=not console.is_terminal)
    console.print(Text("times are UTC, scores in thousandths; arb decision ID tells one step by step", style="dim"))


def _moment(decision: Decision) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(decision.decided_ns / 1e9, datetime.UTC)


def _wide() -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in (
        "time",
        "id",
        "coin",
        "exchanges",
        "net bps",
        "outcome",
        "mode",
        "reason",
        "score",
        *ROLES,
        "ms",
        "USD",
    ):
        table.add_column(name, justify="right" if name in ("net bps", "ms", "USD") else "left", overflow="fold")
    return table


def _stacked() -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    headers = ("time\nid", "coin, net bps\nexchanges", "outcome, mode\nreason\nscore", "roles", "ms\nUSD")
    for name in headers:
        table.add_column(name, justify="right" if name.startswith("ms") else "left", overflow="fold")
    return table


def _cells(one: Decision, at: str, short: str, *, wide: bool) -> list[str | Text]:
    records = {record.role: record for record in one.roles}
    roles = [said(records[role]) if role in records else "not asked" for role in ROLES]
    net, cost = bps(one.net_bps, 1), f"{one.panel.cost_usd:.6f}"
    outcome = Text(one.outcome, style=OUTCOME_STYLE[one.outcome])
    exchanges = f"{one.buy.exchange} → {one.sell.exchange}"
    if wide:
        cells: list[str | Text] = [
            at,
            short,
            one.base,
            exchanges,
            net,
            outcome,
            one.mode,
            one.reason,
            score_words(one),
            *roles,
        ]
        return [*cells, str(one.panel.elapsed_ms), cost]
    asked = "\n".join(f"{role}: {words}" for role, words in zip(ROLES, roles, strict=True)) if records else "not asked"
    verdict = outcome + Text(clean(f" {one.mode}\n{one.reason}\n{score_words(one)}"))
    coin = f"{one.base} {net}\n{one.buy.exchange}\n→ {one.sell.exchange}"
    return [f"{at}\n{short}", coin, verdict, asked, f"{one.panel.elapsed_ms}\n{cost}"]
