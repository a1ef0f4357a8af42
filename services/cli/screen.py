"""The demo's screen: books and their health, gaps open now, verdicts with reasons, decisions with every answer."""

import datetime
import io
import re
from decimal import Decimal
from pathlib import Path

from rich import box
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from services.cli.board import Board
from shared.messages import Decision, Leg, Opportunity, Rejection, RoleRecord

MS = 1_000_000
STATE_STYLE = {"live": "green", "syncing": "yellow", "stale": "yellow"}
OUTCOME_STYLE = {"execute": "bold green", "hold": "yellow", "reject": "red"}
PLACES = {"binance": "Bin", "coinbase": "Coi", "kraken": "Kra", "bybit": "Byb", "okx": "OKX"}


WIDE = 140
"""Below so many columns the books take a line for each exchange, and all tables stand below each other."""


def render(board: Board, header: str, now_ns: int, width: int, height: int) -> RenderableType:
    """The whole screen, for a terminal of `width` columns and `height` lines."""
    wide = width >= WIDE
    exchanges = len({line.exchange for line in board.books.values()})
    used = max(len(board.books), 12) + 8 if wide else exchanges + 20
    rows = max(3, height - used)
    listed = 6 if wide else 3
    books = _panel(_books(board, now_ns) if wide else _exchanges(board, now_ns), "books")
    gaps = _panel(_gaps(board, now_ns, listed), f"gaps open now: {len(board.open)}")
    verdicts = _panel(_verdicts(board, listed + 1), "last verdicts")
    decisions = _panel(_decisions(board, rows, wide), "last decisions")
    if not wide:
        return Group(Text(header, style="bold", no_wrap=True, overflow="ellipsis"), books, gaps, verdicts, decisions)
    upper = Table.grid(expand=True)
    upper.add_column(ratio=2)
    upper.add_column(ratio=3)
    upper.add_row(books, Group(gaps, verdicts))
    return Group(Text(header, style="bold", no_wrap=True, overflow="ellipsis"), upper, decisions)


def _panel(content: RenderableType, title: str) -> Panel:
    return Panel(content, title=title, box=box.ROUNDED, padding=(0, 1))


def save_picture(picture: RenderableType, file: Path) -> None:
    """Write a screen as SVG, without the web fonts that Rich would name."""
    console = Console(record=True, width=170, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(picture)
    text = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    console.save_svg(str(file), title="arb demo", code_format=text)


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), expand=True, header_style="dim")
    for name in columns:
        numeric = name in ("bid", "ask", "net bps", "USD", "age", "naive", "net")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True, overflow="ellipsis")
    return table


def _books(board: Board, now_ns: int) -> Table:
    table = _table("exchange", "symbol", "state", "bid", "ask", "age")
    for _, line in sorted(board.books.items()):
        style = STATE_STYLE.get(line.state, "red")
        state = Text(line.state if line.state == "live" or not line.reason else f"{line.state}: {line.reason}", style)
        age = f"{max(0, now_ns - line.alive_ns) // MS} ms" if line.alive_ns else "-"
        table.add_row(line.exchange, line.symbol, state, _price(line.bid), _price(line.ask), age)
    return table


def _exchanges(board: Board, now_ns: int) -> Table:
    """One line an exchange: how many books are live, and what is wrong with the others."""
    table = _table("exchange", "live", "oldest", "not live")
    for name in sorted({line.exchange for line in board.books.values()}):
        lines = [line for _, line in sorted(board.books.items()) if line.exchange == name]
        live = [line for line in lines if line.state == "live"]
        oldest = f"{max((now_ns - line.alive_ns) // MS for line in live)} ms" if live else "-"
        troubles = ", ".join(f"{line.symbol} {line.state}" for line in lines if line.state != "live")
        count = Text(f"{len(live)} of {len(lines)}", "green" if len(live) == len(lines) else "yellow")
        table.add_row(name, count, oldest, Text(troubles, "red"))
    return table


def _gaps(board: Board, now_ns: int, rows: int) -> RenderableType:
    if not board.open:
        return Text("none", style="dim")
    table = _table("coin", "buy", "sell", "size", "net bps", "USD", "age")
    newest = sorted(board.open.values(), key=lambda o: -o.opened_ns)[:rows]
    for o in newest:
        age = f"{(now_ns - o.opened_ns) / 1e9:.1f} s"
        cells = (_leg(o.buy), _leg(o.sell), _short(o.size), f"{o.net_bps:.1f}", f"{o.profit_usd:.2f}", age)
        table.add_row(Text(o.base, style="bold"), *cells)
    return table


def _verdicts(board: Board, rows: int) -> RenderableType:
    if not board.verdicts:
        return Text("no crossing yet", style="dim")
    table = _table("coin", "buy", "sell", "naive", "net", "verdict")
    for item in list(board.verdicts)[-rows:][::-1]:
        net = "-" if item.net_bps is None else f"{item.net_bps:.1f}"
        table.add_row(item.base, _leg(item.buy), _leg(item.sell), f"{item.naive_bps:.1f}", net, _verdict(item))
    return table


def _verdict(item: Opportunity | Rejection) -> Text:
    if isinstance(item, Rejection):
        return Text(f"rejected: {', '.join(reason.value for reason in item.reasons)}", style="red")
    if item.phase == "closed":
        return Text(f"closed: {item.close_reason}", style="dim")
    return Text(f"opened: {item.profit_usd:.2f} USD", style="green")


def _decisions(board: Board, rows: int, wide: bool) -> RenderableType:
    if not board.decided:
        return Text("none yet", style="dim")
    columns = ("coin", "outcome", "reason", "score", "sentiment", "risk", "volatility", "cost USD")
    table = _table(*(("time", *columns[:-1], "ms", columns[-1]) if wide else columns))
    for decision in list(board.decided)[-rows:][::-1]:
        roles = {record.role: record for record in decision.roles}
        cells: list[RenderableType] = [
            decision.base,
            Text(decision.outcome, style=OUTCOME_STYLE[decision.outcome]),
            decision.reason,
            score(decision),
            *(_role(roles.get(role)) for role in ("sentiment", "risk", "volatility")),
            f"{decision.panel.cost_usd:.6f}",
        ]
        if wide:
            cells.insert(0, f"{datetime.datetime.fromtimestamp(decision.decided_ns / 1e9):%H:%M:%S}")
            cells.insert(-1, str(decision.panel.elapsed_ms))
        table.add_row(*cells)
    return table


def score(decision: Decision) -> str:
    """The score interval and what was needed, in hundredths: `0.80/0.60`, `0.20..0.70/0.60`."""
    low, high, needed = (value / 1000 for value in (decision.score.low, decision.score.high, decision.score.threshold))
    span = f"{low:.2f}" if low == high else f"{low:.2f}..{high:.2f}"
    return f"{span}/{needed:.2f}"


def _role(record: RoleRecord | None) -> Text:
    if record is None:
        return Text("not asked", style="dim")
    return Text(role_words(record), style="" if record.answer is not None else "magenta")


def role_words(record: RoleRecord) -> str:
    """A role's answer in a few words, or why there is none."""
    answer = record.answer
    if answer is None:
        return record.outcome
    if record.role == "sentiment":
        return f"{answer.view} p={answer.p_edge:.2f}"
    if record.role == "risk":
        return f"{'VETO' if answer.veto else 'ok'} p={answer.p_edge:.2f}"
    return f"vol={answer.volatility:.2f}"


def _leg(leg: Leg) -> str:
    return f"{PLACES.get(leg.exchange, leg.exchange)} {leg.symbol}"


def _short(number: Decimal) -> str:
    return f"{number:.4f}".rstrip("0").rstrip(".")


def _price(price: float | None) -> str:
    return "-" if not price else f"{price:,.2f}" if price >= 100 else f"{price:.5f}"
