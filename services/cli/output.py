"""What single commands read and print: cases, reports, tables."""

import json
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.table import Table

from shared.errors import InputError, SettingsError


def name_and_port(text: str) -> tuple[str, int]:
    """`kraken=9001` as a pair.

    Raises:
        SettingsError: it is not NAME=PORT.
    """
    name, _, port = text.partition("=")
    if not name or not port.isdigit() or not 0 < int(port) < 65536:
        raise SettingsError(f"--port {text!r}: must be NAME=PORT, such as kraken=9001")
    return name, int(port)


def read_case(text: bytes) -> dict[str, Any]:
    """A case of `arb evaluate`, numbers as exact decimals.

    Raises:
        InputError: not a JSON object; says where.
    """
    if not text.strip():
        raise InputError("standard input", "empty; give a case: arb evaluate < case.json")
    try:
        case = json.loads(text, parse_float=Decimal, parse_int=Decimal, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise InputError("standard input", f"not UTF-8: {error.reason}") from None
    except json.JSONDecodeError as error:
        raise InputError("standard input", f"not JSON: {error.msg}", error.lineno) from None
    if not isinstance(case, dict):
        raise InputError("standard input", "must be a JSON object")
    return case


def _refuse_constant(name: str) -> None:
    raise InputError("standard input", f"{name} is not a number that a case may hold")


def print_verification(console: Console, report: dict[str, Any]) -> None:
    """A verification for people: counts, then a line for each book."""
    counts = [f"{report[name]} {name.replace('_', ' ')}" for name in report if name not in ("exchange", "books")]
    console.print(f"{report['exchange']}: {', '.join(counts)}")
    if not report["books"]:
        console.print("no book in this recording")
        return
    table = Table("book", "state", "bids", "asks", "best bid", "best ask", box=None)
    for symbol, book in report["books"].items():
        cells = (book["state"], book["bids"], book["asks"], book["best_bid"], book["best_ask"])
        table.add_row(symbol, *(str(cell) for cell in cells))
    console.print(table)


def print_evaluation(console: Console, result: dict[str, Any]) -> None:
    """An evaluation for people."""
    if result["verdict"] == "open":
        console.print(f"open: {result['size']} for {result['profit']} USD net")
    else:
        console.print(f"reject: {', '.join(result['reasons'])}")
    table = Table(box=None, show_header=False)
    for name, value in result.items():
        if name in ("verdict", "reasons"):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key} {number}" for key, number in value.items())
        table.add_row(name.replace("_", " "), "-" if value is None else str(value))
    console.print(table)
