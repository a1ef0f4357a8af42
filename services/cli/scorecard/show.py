"""A scorecard on the terminal: the answer, a table, the reliability diagram, the panel."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.cli.report import COLORS, LINES, MARKERS, PLAIN_MARKERS, counted, money
from services.cli.scorecard import words
from services.cli.scorecard.sums import Card, Scorecard

WIDTH, HEIGHT = 61, 21

SCORES = ("", "n", "base", "mean p", "Brier (95 %)", "BSS (95 %)", "weight")
CALLS = ("", "calls", "valid", "p50 ms", "p95 ms", "USD/answer", "USD/useful", "cal. error", "chance")
"""The models are numbered, so that both fit into 80 columns."""


def show(console: Console, found: Scorecard, unreadable: int, span: str) -> None:
    """For people."""
    style = {"better": "bold green", "worse": "bold red"}.get(found.reason, "bold yellow")
    console.print(Text(words.headline(found, span), style=style))
    if found.cards:
        console.print()
        for number, card in enumerate(found.cards, 1):
            missing = f"; no answer: {words.reasons(card)}" if card.abstained else ""
            console.print(Text(f"{number:>2}  {words.name_of(card)}: {words.verdict(card)}{missing}"))
        for table in (_scores(found.cards), _calls(found.cards)):
            console.print()
            console.print(table)
    if lines := plotted(found.cards):
        console.print()
        console.print(plot(lines, ascii_only=console.options.ascii_only))
    if found.panel.decisions:
        console.print()
        _panel(console, found)
    if (apart := words.apart(found, unreadable)) is not None:
        console.print(Text(apart, style="dim"))


def _table(columns: Sequence[str], left: Sequence[str] = ()) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    return table


def _scores(cards: Sequence[Card]) -> Table:
    table = _table(SCORES)
    for number, card in enumerate(cards, 1):
        sign = 0 if card.bss is None or not card.followed else card.bss.sign
        weight = words.number(card.weight)
        table.add_row(
            f"{number}",
            f"{card.n:,}",
            words.share(card.base_rate),
            words.number(card.mean_p, 2),
            words.scored(card.brier),
            Text(words.scored(card.bss, 2), style={1: "green", -1: "red"}.get(sign, "yellow")),
            weight if card.followed or card.weight is None else f"({weight})",
        )
    return table


def _calls(cards: Sequence[Card]) -> Table:
    table = _table(CALLS)
    for number, card in enumerate(cards, 1):
        table.add_row(
            f"{number}",
            f"{card.calls:,}",
            words.share(card.valid),
            "-" if card.p50_ms is None else f"{card.p50_ms:,}",
            "-" if card.p95_ms is None else f"{card.p95_ms:,}",
            "-" if card.cost_per_answer is None else f"{card.cost_per_answer:.6f}",
            "-" if card.cost_per_useful is None else f"{card.cost_per_useful:.6f}",
            words.number(card.ece),
            words.number(card.chance),
        )
    return table


def _panel(console: Console, found: Scorecard) -> None:
    panel = found.panel
    console.print(Text(f"The panel ({counted(panel.decisions, 'decision')})", style="bold"))
    table = _table(("outcome", "decisions", "known", "still paid", "share"), ("outcome",))
    for fate in panel.fates:
        paid = words.share(fate.paid / fate.known if fate.known else None)
        table.add_row(fate.outcome, f"{fate.n:,}", f"{fate.known:,}", f"{fate.paid:,}", paid)
    console.print(table)
    if panel.pool is not None:
        pool = panel.pool
        said = f"Brier {words.scored(pool.brier)}, BSS {words.scored(pool.bss, 2)}"
        console.print(Text(f"Its pooled probability, {counted(pool.n, 'time')}: {said}."))
    for line in words.beside(found):
        console.print(Text(line))
    console.print(Text(f"All calls together cost {money(panel.cost_usd)} USD.", style="dim"))


def plotted(cards: Sequence[Card]) -> list[Card]:
    """Those with outcomes, the most first, as many as can be told apart."""
    return sorted((card for card in cards if card.bins), key=lambda card: (-card.n, card.key))[:LINES]


def plot(cards: Sequence[Card], *, ascii_only: bool = False) -> Text:
    """Reliability: what came (up) against what was said (right), a point a bin; on the diagonal p means p.

    Where points meet, the earlier model's is on top.
    """
    cells: dict[tuple[int, int], tuple[str, str]] = {}
    styled = list(zip(cards, PLAIN_MARKERS if ascii_only else MARKERS, COLORS, strict=False))
    for card, marker, color in styled:
        for one in card.bins:
            cells.setdefault((_row(one.share), _column(one.mean_p)), (marker, color))
    for column in range(0, WIDTH, 2):
        cells.setdefault((_row(column / (WIDTH - 1)), column), ("." if ascii_only else "·", "dim"))
    text = Text("what came\n", style="dim")
    for row in range(HEIGHT):
        text.append(f"{1 - row / (HEIGHT - 1):>6.2f} |" if row % 5 == 0 else "       |", style="dim")
        for column in range(WIDTH):
            text.append(*cells.get((row, column), (" ", "")))
        text.append("\n")
    ticks = "".join("+" if column % 15 == 0 else "-" for column in range(WIDTH))
    labels = "".join(f"{column / (WIDTH - 1):<15.2f}" for column in range(0, WIDTH, 15)).rstrip()
    text.append(f"       +{ticks}\n        {labels}  what was said", style="dim")
    for card, marker, color in styled:
        text.append(f"\n  {marker} {words.name_of(card)} ({card.n:,})", style=color)
    return text


def _row(value: float) -> int:
    return round((1 - value) * (HEIGHT - 1))


def _column(value: float) -> int:
    return round(value * (WIDTH - 1))
