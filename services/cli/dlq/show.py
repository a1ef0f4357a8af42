"""Dead letters for people and for programs. Nothing that is shown moves a terminal's cursor or has a key in it."""

import datetime
from collections.abc import Sequence
from typing import Any

import orjson
from rich.console import Console

from services.cli.decisions.show import clean
from services.cli.dlq import letters
from services.cli.dlq.letters import Letter
from shared import secrets

MOST_SHOWN = 4000
"""Characters of a value; `--full` shows all."""


def moment(ms: int) -> str:
    """UTC, to the second."""
    try:
        return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms after 1970"


def text(raw: bytes | None) -> str:
    """As it can be shown: UTF-8 where it is, the other bytes escaped; no keys."""
    if raw is None:
        return "(none)"
    return secrets.redact(clean(raw.decode("utf-8", "backslashreplace")))


def pretty(raw: bytes | None) -> str:
    """A value, indented if it is JSON."""
    try:
        return text(orjson.dumps(orjson.loads(raw or b""), option=orjson.OPT_INDENT_2))
    except orjson.JSONDecodeError:
        return text(raw)


def state(letter: Letter) -> str:
    """What was done with it."""
    if not letter.attempts:
        return "not sent again"
    if not letter.sent:
        return "begun to be sent again, and not known whether Kafka took it"
    at = "" if letter.sent_ms is None else f", last at {moment(letter.sent_ms)}"
    begun = "; another run began to, and did not say that it was taken" if letter.sent < letter.attempts else ""
    return f"sent again {'once' if letter.sent == 1 else f'{letter.sent} times'}{at}{begun}"


def show_heaps(console: Console, found: Sequence[Letter]) -> None:
    """A block for each topic, stage and error."""
    waiting = sum(1 for one in found if not one.attempts)
    console.print(f"{len(found)} dead letters, {waiting} of them not sent again")
    for heap in letters.heaps(found):
        topic, stage, error = (text(one.encode()) or "(unknown)" for one in (heap.topic, heap.stage, heap.error))
        console.print(f"\n{topic}, {stage}, {error}: {heap.count}, {heap.waiting} not sent again", markup=False)
        console.print(f"  why     {text(heap.message.encode())}", markup=False)
        oldest = "" if heap.oldest_ms == heap.newest_ms else f", oldest {moment(heap.oldest_ms)}"
        console.print(f"  newest  {moment(heap.newest_ms)}{oldest}")
        console.print(f"  look    arb dlq show {heap.newest}")
    console.print("\nsend again: arb dlq replay ID, or --all, --stage, --since (docs/doctor.md)")


def show_letter(console: Console, letter: Letter, *, full: bool) -> None:
    """All about one."""
    rows = {
        "id": str(letter.place),
        "from": f"{letter.topic}/{letter.partition}/{letter.offset}, published {moment(letter.timestamp_ms)}",
        "put aside": f"{moment(letter.died_ms)} by group {letter.group}, stage {letter.stage}",
        "why": f"{letter.error}: {letter.message}",
        "now": letter.problem or "decodes",
        "state": state(letter),
        "key": text(letter.key),
    }
    for name, words in rows.items():
        console.print(f"{name:10} {text(words.encode())}", markup=False)
    for name, value in letter.headers:
        console.print(f"{'header':10} {text(name.encode())} = {text(value)}", markup=False)
    console.print(f"{'value':10} {len(letter.value or b'')} bytes{f', of {letter.cut}' if letter.cut else ''}")
    shown = pretty(letter.value)
    if not full and len(shown) > MOST_SHOWN:
        shown = f"{shown[:MOST_SHOWN]}\n... {len(shown) - MOST_SHOWN} more characters; --full shows all"
    console.print(shown, markup=False)


def as_value(letter: Letter, *, value: bool) -> dict[str, Any]:
    """For `--json`; all times in ms."""
    found: dict[str, Any] = {
        "id": str(letter.place),
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "timestamp_ms": letter.timestamp_ms,
        "died_ms": letter.died_ms,
        "group": letter.group,
        "stage": letter.stage,
        "error": letter.error,
        "message": text(letter.message.encode()),
        "key": None if letter.key is None else text(letter.key),
        "attempts": letter.attempts,
        "sent": letter.sent,
    }
    if value:
        found |= {
            "headers": [[name, text(held)] for name, held in letter.headers],
            "value": None if letter.value is None else text(letter.value),
            "problem": letter.problem,
        }
    return found
