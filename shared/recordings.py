"""Recorded frames of an exchange: one JSON object a line with `received_at` (unix seconds or null), `direction` ("in"
from the exchange, "out" from the recorder), `url` and `frame` (the text as it came); plain or `.gz`."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import orjson

from shared.errors import InputError

HOSTS = {
    "binance": ("binance.com", "binance.vision", "binance.us"),
    "coinbase-exchange": ("ws-feed.pro.coinbase.com", "ws-feed.exchange.coinbase.com"),
    "coinbase": ("advanced-trade-ws.coinbase.com",),
    "kraken": ("kraken.com",),
    "bybit": ("bybit.com",),
    "okx": ("okx.com",),
}
"""Which protocol is spoken where."""


def protocol_of(url: str) -> str | None:
    """Name of the protocol that an address belongs to; None for one we do not know."""
    host = urlsplit(url).hostname or ""
    for name, hosts in HOSTS.items():
        if any(host == known or host.endswith("." + known) for known in hosts):
            return name
    return None


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
