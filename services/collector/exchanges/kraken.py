"""Kraken spot WebSocket v2: https://docs.kraken.com/api/docs/websocket-v2/book (read 2026-02-26), checksum:
https://docs.kraken.com/exchange/guides/websockets/book-checksum-v2.

No sequence numbers: the CRC32 over the ten best levels of each side is the only sign of a gap. It is computed over
the digits as they came, so numbers are parsed as text (with floats not one checksum of our captures matches).
"""

import json
import zlib
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import orjson

from services.collector.book import Book, Level
from services.collector.exchanges.base import (
    Acknowledged,
    Chain,
    Delta,
    Event,
    Exchange,
    Refused,
    Snapshot,
    Status,
    TradeSeen,
    Unsubscribed,
    iso_ns,
)

_AS_TEXT = json.JSONDecoder(parse_float=str, parse_int=str)
"""Made once: `json.loads` with these arguments would make one for every frame."""

DEPTHS = (10, 25, 100, 500, 1000)
"""What the `book` channel accepts."""


def subscribe(symbols: Sequence[str], depth: int) -> list[str]:
    """Books and trades; `snapshot: false` spares us the last fifty (old) trades."""
    frames: list[dict[str, Any]] = [
        {"method": "subscribe", "params": {"channel": "book", "symbol": list(symbols), "depth": depth}},
        {"method": "subscribe", "params": {"channel": "trade", "symbol": list(symbols), "snapshot": False}},
    ]
    return [orjson.dumps(frame).decode() for frame in frames]


def resubscribe(symbol: str, depth: int) -> list[str]:
    """Unsubscribe and subscribe one book: a new snapshot follows."""
    params = {"channel": "book", "symbol": [symbol], "depth": depth}
    return [orjson.dumps({"method": method, "params": params}).decode() for method in ("unsubscribe", "subscribe")]


def token(text: str) -> str:
    """A number of the wire as the checksum wants it: no point, no leading zeros."""
    if "e" in text or "E" in text:
        text = format(Decimal(text), "f")
    return text.replace(".", "").lstrip("0")


def checksum(book: Book) -> int:
    """CRC32 of the ten best asks (low to high), then the ten best bids (high to low)."""
    return zlib.crc32((book.asks.top_tokens(10) + book.bids.top_tokens(10)).encode())


def parse(frame: bytes | str) -> list[Event]:
    """Books, trades, acknowledgements (one per symbol) and the exchange's status."""
    message = _AS_TEXT.decode(frame if isinstance(frame, str) else frame.decode())
    match message.get("channel"):
        case "book":
            kind = message["type"]
            if kind == "update":
                return [_delta(data) for data in message["data"]]
            if kind == "snapshot":
                return [_snapshot(data) for data in message["data"]]
            raise ValueError(f"book type {kind!r}")
        case "trade":
            replayed = message["type"] == "snapshot"
            return [_trade(data, replayed) for data in message["data"]]
        case "status":
            return [Status(data["system"] == "online", str(data["system"])) for data in message["data"]]
        case None if "method" in message:
            return _answer(message)
        case None if "error" in message or "Error" in message:
            return [Refused(None, str(message.get("error") or message["Error"]))]
    return []


def _answer(message: dict[str, Any]) -> list[Event]:
    method, result = message["method"], message.get("result") or {}
    if method not in ("subscribe", "unsubscribe"):
        return []
    if message.get("success") is not True:
        # Refused to unsubscribe: we were not subscribed, which is what we wanted.
        return [Refused(message.get("symbol"), str(message.get("error")))] if method == "subscribe" else []
    if result.get("channel") != "book":
        return []
    if method == "unsubscribe":
        return [Unsubscribed(result["symbol"])]
    return [Acknowledged(result["symbol"], int(result["depth"]))]


def _side(rows: Sequence[dict[str, str]]) -> tuple[list[Level], list[str]]:
    found: list[Level] = []
    tokens: list[str] = []
    for row in rows:
        price, size = row["price"], row["qty"]
        found.append((float(price), float(size)))
        tokens.append(token(price) + token(size))
    return found, tokens


def _snapshot(data: dict[str, Any]) -> Snapshot:
    bids, bid_tokens = _side(data["bids"])
    asks, ask_tokens = _side(data["asks"])
    when = data.get("timestamp")
    exchange_ns = None if when is None else iso_ns(when)
    return Snapshot(data["symbol"], bids, asks, exchange_ns, 0, int(data["checksum"]), bid_tokens, ask_tokens)


def _delta(data: dict[str, Any]) -> Delta:
    bids, bid_tokens = _side(data["bids"])
    asks, ask_tokens = _side(data["asks"])
    exchange_ns = iso_ns(data["timestamp"])
    return Delta(data["symbol"], bids, asks, exchange_ns, 0, 0, int(data["checksum"]), bid_tokens, ask_tokens)


def _trade(data: dict[str, Any], replayed: bool) -> TradeSeen:
    side = data["side"]
    if side not in ("buy", "sell"):
        raise ValueError(f"side {side!r}")
    trade_id = str(int(data["trade_id"]))
    return TradeSeen(
        data["symbol"], trade_id, float(data["price"]), float(data["qty"]), side, iso_ns(data["timestamp"]), replayed
    )


KRAKEN = Exchange(
    name="kraken",
    chain=Chain.CHECKSUM,
    url=lambda base, symbols: base,
    subscribe=subscribe,
    resubscribe=resubscribe,
    parse=parse,
    native=lambda symbol: symbol.replace("-", "/"),
    canonical=lambda name: name.replace("/", "-"),  # v2 names are BASE/QUOTE, with the exchange's own separator
    truncates=True,
    checksum=checksum,
)
