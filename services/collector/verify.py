"""A recording through the very same feed that runs live: are its books right?"""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from services.collector.exchanges import exchange_named
from services.collector.exchanges.base import Exchange
from services.collector.feed import Feed
from shared.errors import BadFrame, InputError, LinkLost, SubscriptionRefused, UnknownSymbol

LEVELS = 10


class Recorded(NamedTuple):
    """One line of a recording. `received_ns` is None where the recorder kept no time."""

    line: int
    inbound: bool
    url: str
    frame: str
    received_ns: int | None


def recorded(path: Path) -> Iterator[Recorded]:
    """Lines of a recording, plain or `.gz`.

    Raises:
        InputError: the file or one of its lines cannot be read; with its line number.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for text in file:
                number += 1
                if text.strip():
                    yield _line(str(path), number, text)
    except (OSError, EOFError, zlib.error) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise InputError(str(path), words, number + 1 if number else None) from None
    if number == 0:
        raise InputError(str(path), "empty; a recording has one JSON object a line", 1)


def _line(source: str, number: int, text: bytes) -> Recorded:
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InputError(source, f"not JSON: {error}", number) from None
    if not isinstance(data, dict):
        raise InputError(source, "must be a JSON object with direction, url and frame", number)
    for name in ("direction", "url", "frame"):
        if not isinstance(data.get(name), str):
            raise InputError(source, f"{name!r} is missing or not a text", number)
    if data["direction"] not in ("in", "out"):
        raise InputError(source, f"direction {data['direction']!r}, allowed are 'in' and 'out'", number)
    at = data.get("received_at")
    if at is not None and (isinstance(at, bool) or not isinstance(at, int | float)):
        raise InputError(source, f"received_at {at!r}, allowed are unix seconds or null", number)
    return Recorded(
        number, data["direction"] == "in", data["url"], data["frame"], None if at is None else int(at * 1e9)
    )


def verify(exchange: str, path: Path) -> dict[str, Any]:
    """Report on a recording; its keys are those of `arb verify --json`.

    Raises:
        UnknownExchange: no such exchange.
        InputError: the file cannot be read; with its line number.
    """
    chosen = exchange_named(exchange)
    feed = Feed(chosen, None, None, LEVELS, None, 0)
    for item in recorded(path):
        if item.inbound:
            _take_in(feed, chosen, item)
    report: dict[str, Any] = {"exchange": chosen.name, **feed.counts.as_dict(), "books": {}}
    for symbol, state, book in feed.books():
        best = book.best() or (None, None)
        report["books"][symbol] = {
            "state": state,
            "bids": len(book.bids.keys),
            "asks": len(book.asks.keys),
            "best_bid": best[0],
            "best_ask": best[1],
        }
    return report


def _take_in(feed: Feed, exchange: Exchange, item: Recorded) -> None:
    now_ns = item.received_ns or 0
    try:
        if item.url.startswith("http"):
            native = exchange.snapshot_symbol(item.url) if exchange.snapshot_symbol is not None else None
            if native is None:
                feed.counts.frames += 1
                feed.counts.ignored += 1
            else:
                feed.on_rest(native, item.frame, now_ns)
        else:
            feed.on_frame(item.frame, now_ns)
    except BadFrame as error:
        # Live the connection would be made again, so no book of it survives the frame.
        feed.counts.errors += 1
        feed.on_lost(now_ns, str(error))
        feed.on_connected(now_ns)
    except (SubscriptionRefused, UnknownSymbol):
        feed.counts.errors += 1
    except LinkLost:
        feed.counts.ignored += 1  # the exchange announced an end: live we would connect again


def ok(report: dict[str, Any]) -> bool:
    """Whether every book verified and nothing was wrong on the way."""
    faults = sum(report[name] for name in ("gaps", "checksum_failed", "crossed", "errors"))
    return faults == 0 and all(book["state"] == "live" for book in report["books"].values())
