"""What single commands read and print: cases, reports, tables."""

import json
from decimal import Context, Decimal
from typing import Any

from rich.console import Console
from rich.table import Table

from shared.errors import InputError, SettingsError, UsageError


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
    always = ("frames", "snapshots", "deltas", "trades", "gaps", "checksum_ok", "checksum_failed", "crossed", "errors")
    names = [n for n in report if n not in ("exchange", "books", "samples") and (n in always or report[n])]
    counts = [f"{report[name]} {name.replace('_', ' ')}" for name in names]
    console.print(f"{report['exchange']}: {', '.join(counts)}")
    if not report["books"]:
        console.print("no book in this recording")
        return
    if report["samples"]:
        console.print("frames of several sessions: they can be read, their books mean nothing")
    table = Table("book", "state", "bids", "asks", "best bid", "best ask", box=None)
    for symbol, book in report["books"].items():
        cells = (book["state"], book["bids"], book["asks"], book["best_bid"], book["best_ask"])
        table.add_row(symbol, *(str(cell) for cell in cells))
    console.print(table)


def print_verifications(console: Console, result: dict[str, Any]) -> None:
    """All recordings of a folder, a line each, and what damaged copies of them did."""
    for report in result["files"]:
        console.print(f"{'ok' if report['ok'] else 'FAILED':6} {report['file']}  {_summary(report)}")
    if result["damage"]:
        console.print("\ndamaged copies: frames dropped, repeated, reordered, cut, bits flipped")
        table = Table("exchange", "runs", "compared", "doubted", "unseen", "wrong", "not recovered", box=None)
        for exchange, one in result["damage"].items():
            names = ("runs", "compared", "doubted", "unseen", "wrong", "not_recovered")
            table.add_row(exchange, *(str(one[name]) for name in names))
        console.print(table)
        console.print(
            "compared: live books with the true ones. doubted: runs in which a book was dropped. unseen: runs with a "
            "fault that the protocol cannot show, not compared from there on. wrong: live books that differ, must be 0."
        )
        for one in result["damage"].values():
            if one["first_wrong"]:
                console.print(f"first wrong: {one['first_wrong']}")
    console.print("\neverything verified" if result["ok"] else "\nNOT everything verified")


def _summary(report: dict[str, Any]) -> str:
    parts = [f"{report['exchange']}: {report['frames']} frames"]
    parts += [f"{report[name]} {name}" for name in ("snapshots", "deltas", "tops", "trades") if report[name]]
    checksums = report["checksum_ok"] + report["checksum_failed"]
    if checksums:
        parts.append(f"checksums {report['checksum_ok']} of {checksums}")
    names = ("gaps", "crossed", "trade_gaps", "tops_wrong", "duplicates", "errors")
    parts += [f"{report[name]} {name.replace('_', ' ')}" for name in names if report[name]]
    states = [book["state"] for book in report["books"].values()]
    if report["samples"]:
        parts.append("single frames of several sessions: they can be read, their books mean nothing")
    elif states:
        parts.append(f"{states.count('live')} of {len(states)} books live")
    if report["instruments"]:
        parts.append(f"{report['instruments']} instruments")
    return ", ".join(parts)


def shard(text: str) -> tuple[int, int]:
    """`2/3` as (2, 3).

    Raises:
        UsageError: it is not I/N with 1 <= I <= N.
    """
    number, slash, of = text.partition("/")
    if slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of):
        return int(number), int(of)
    raise UsageError(f"--shard {text!r}: must be I/N with I from 1 to N, such as 2/3")


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
        table.add_row(name.replace("_", " "), "-" if value is None else _short(value))
    console.print(table)


def _short(value: object) -> str:
    """A number with at most 12 digits: a quotient has 28 of them, which `--json` keeps."""
    text = str(value)
    try:
        number = Decimal(text)
    except ArithmeticError:
        return text
    if not isinstance(value, str) or len(number.as_tuple().digits) <= 12:
        return text
    return format(Context(prec=12).plus(number), "f")
