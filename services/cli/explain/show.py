"""An explanation as a person and as a program read it."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from services.cli.explain.steps import Explanation, identity
from services.cli.explain.sums import Verdict
from services.cli.explain.words import CONTRADICTION, bps, moment
from shared.messages import Rejection


def as_value(
    explained: Explanation, ways: Sequence[list[Verdict]], timeline: Sequence[Verdict], opportunity: str | None
) -> dict[str, Any]:
    """As JSON; bps are decimal strings, as in the messages. Arguments as of `show`."""
    message, top = explained.message, explained.sums.top
    return {
        "id": identity(message),
        "kind": message.kind,
        "base": message.base,
        "phase": message.phase,
        "headline": explained.headline,
        "steps": [
            {"name": step.name, "title": step.title, "bps": _four(step.bps), "lines": list(step.lines)}
            for step in explained.steps
        ],
        "break_even_bps": None if top is None else _four(top.break_even),
        "disagreements": list(explained.sums.disagreements),
        "became": opportunity,
        "message": explained.basis.model_dump(mode="json"),
        "directions": [
            {"buy": way[0].buy.exchange, "sell": way[0].sell.exchange, "newest_id": identity(way[0])} for way in ways
        ],
        "timeline": [one.model_dump(mode="json") for one in timeline],
    }


def show(
    console: Console,
    explained: Explanation,
    ways: Sequence[list[Verdict]] = (),
    timeline: Sequence[Verdict] = (),
    opportunity: str | None = None,
) -> None:
    """For people.

    Args:
        ways: Verdicts by direction, the newest first, if a pair was asked for.
        timeline: All of its id, if they are to be shown.
        opportunity: What a rejection became.
    """
    for way in ways:
        buy, sell = way[0].buy, way[0].sell
        count = len({identity(one) for one in way})
        line = f"{way[0].base}: buy {buy.exchange} {buy.symbol}, sell {sell.exchange} {sell.symbol}: {count} "
        line += f"verdict{'' if count == 1 else 's'}, newest {moment(way[0].detected_ns)} ({identity(way[0])})"
        console.print(Text(line, style="dim"))
    if ways:
        console.print(Text("the newest:\n", style="dim"))
    console.print(Text(explained.headline, style="bold"))
    for problem in explained.sums.disagreements:
        console.print(Text(f"THIS MESSAGE CONTRADICTS ITSELF: {problem}.", style="bold red"))
    if explained.sums.disagreements:
        console.print(Text(CONTRADICTION, style="red"))
    console.print()
    for number, step in enumerate(explained.steps, 1):
        heading = Text(f"{number}. {step.title}", style="bold")
        if step.bps is not None:
            heading += Text(f": {bps(step.bps)} bps", style="green" if step.bps > 0 else "red")
        console.print(heading)
        for line in step.lines:
            _indented(console, line)
    if opportunity is not None:
        _indented(console, f"it became opportunity {opportunity}: arb explain {opportunity}")
    console.print(Text(f"\n{'timeline of ' if timeline else ''}{identity(explained.message)}", style="dim"))
    for one in timeline:
        why = [reason.value for reason in one.reasons] if isinstance(one, Rejection) else []
        why += [] if one.close_reason is None else [f"closed: {one.close_reason}"]
        line = f"{moment(one.detected_ns)}  {one.phase:7}  {bps(one.net_bps):>8} bps net  {', '.join(why)}"
        console.print(Text(line.rstrip()))


def _four(bps: Decimal | None) -> str | None:
    return None if bps is None else f"{bps:.4f}"


def _indented(console: Console, line: str) -> None:
    if console.is_terminal:
        console.print(Padding(Text(line), (0, 0, 0, 3)), soft_wrap=False)
    else:
        console.print(Text(f"   {line}"))
