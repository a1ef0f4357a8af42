"""Kraken spot WebSocket v2: https://docs.kraken.com/api/docs/websocket-v2/book (read 2026-02-26), checksum:
https://docs.kraken.com/exchange/guides/websockets/book-checksum-v2.

No sequence numbers: the CRC32 over the ten best levels of each side is the only sign of a gap. It is computed over
the digits as they came (made from floats, not one checksum of our captures matches), so numbers are left as
they are written until then. A late update can fit by chance where sizes come and go; its time shows it.

`ticker` (bbo) is no faster top for us: it carries neither a number nor a checksum that would place it in the book.
"""

import zlib
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec
import orjson

from services.collector.book import Book, Level
from services.collector.exchanges.base import (
    Acknowledged,
    Delta,
    Event,
    Exchange,
    Instrument,
    Limited,
    Limits,
    Proof,
    Refused,
    Rule,
    Snapshot,
    Status,
    TradeSeen,
    Unsubscribed,
    canonical,
    integer,
    iso_ns,
    number,
    positive,
)

DEPTHS = (10, 25, 100, 500, 1000)
"""What the `book` channel accepts."""

RENAMED = {"XBT": "BTC", "XDG": "DOGE"}
"""REST (and `wsname`, which is of WebSocket v1) still say XBT and XDG; v2 says BTC and DOGE."""


def _say(method: str, channel: str, natives: Sequence[str], **more: object) -> str:
    return orjson.dumps({"method": method, "params": {"channel": channel, "symbol": list(natives), **more}}).decode()


def subscribe(natives: Sequence[str], depth: int, fast_tops: bool) -> list[str]:
    """Books and trades; `snapshot: false` spares us the last fifty (old) trades."""
    return [
        _say("subscribe", "book", natives, depth=depth),
        _say("subscribe", "trade", natives, snapshot=False),
    ]


def resubscribe(natives: Sequence[str], depth: int) -> list[str]:
    """Unsubscribe and subscribe: a new snapshot of each follows."""
    return [_say(method, "book", natives, depth=depth) for method in ("unsubscribe", "subscribe")]


def unsubscribe(natives: Sequence[str], depth: int) -> list[str]:
    return [_say("unsubscribe", "book", natives, depth=depth), _say("unsubscribe", "trade", natives)]


def token(text: bytes) -> bytes:
    """A number of the wire as the checksum wants it: no point, no leading zeros."""
    if b"e" in text or b"E" in text:
        text = format(Decimal(text.decode()), "f").encode()
    return text.replace(b".", b"").lstrip(b"0")


def checksum(book: Book) -> int:
    """CRC32 of the ten best asks (low to high), then the ten best bids (high to low)."""
    return zlib.crc32(b"".join(book.bids.top_tokens(10)), zlib.crc32(b"".join(book.asks.top_tokens(10))))


class _Level(msgspec.Struct):
    price: msgspec.Raw
    qty: msgspec.Raw


class _Book(msgspec.Struct):
    symbol: str
    bids: list[_Level]
    asks: list[_Level]
    checksum: int
    timestamp: str | None = None


class _Books(msgspec.Struct):
    type: str
    data: list[_Book]


_BOOKS = msgspec.json.Decoder(_Books)
"""Leaves numbers as they are written."""


def parse(frame: bytes | str) -> list[Event]:
    """Books, trades, acknowledgements (one per symbol) and the exchange's status."""
    data = frame.encode() if isinstance(frame, str) else frame
    if data.startswith(b'{"channel":"book"'):  # nearly all frames; written otherwise it comes the other way
        return _books(data)
    message = orjson.loads(data)
    channel = message.get("channel")
    if channel == "book":
        return _books(data)
    if channel == "trade":
        replayed = message["type"] == "snapshot"
        return [_trade(data, replayed) for data in message["data"]]
    if channel == "status":
        return [Status(data["system"] == "online", str(data["system"])) for data in message["data"]]
    if channel is None:
        if "method" in message:
            return _answer(message)
        if "error" in message or "Error" in message:
            return [_refusal(None, str(message.get("error") or message["Error"]))]
    return []


def _refusal(symbol: str | None, words: str) -> Event:
    if "rate limit" in words.lower() or "msg rate" in words.lower():
        return Limited(words, 5.0)
    return Refused(symbol, words)


def _answer(message: dict[str, Any]) -> list[Event]:
    method, result = message["method"], message.get("result") or {}
    if method not in ("subscribe", "unsubscribe"):
        return []
    if message.get("success") is not True:
        # Refused to unsubscribe: we were not subscribed, which is what we wanted.
        return [_refusal(message.get("symbol"), str(message.get("error")))] if method == "subscribe" else []
    if result.get("channel") != "book":
        return []
    if method == "unsubscribe":
        return [Unsubscribed(result["symbol"])]
    depth = integer(result["depth"])
    if depth not in DEPTHS:
        raise ValueError(f"depth {depth}")
    return [Acknowledged(result["symbol"], depth)]


def _books(frame: bytes) -> list[Event]:
    message = _BOOKS.decode(frame)
    kind = message.type
    if kind == "update":
        return [_delta(book) for book in message.data]
    if kind == "snapshot":
        return [_snapshot(book) for book in message.data]
    raise ValueError(f"book type {kind!r}")


def _delta(book: _Book) -> Delta:
    bids, bid_tokens = _side(book.bids) if book.bids else ([], [])
    asks, ask_tokens = _side(book.asks) if book.asks else ([], [])
    when = None if book.timestamp is None else iso_ns(book.timestamp)
    return Delta(book.symbol, bids, asks, when, 0, 0, book.checksum, bid_tokens, ask_tokens)


def _snapshot(book: _Book) -> Snapshot:
    bids, bid_tokens = _side(book.bids)
    asks, ask_tokens = _side(book.asks)
    when = None if book.timestamp is None else iso_ns(book.timestamp)
    return Snapshot(book.symbol, bids, asks, when, 0, book.checksum, bid_tokens, ask_tokens)


def _side(rows: Sequence[_Level]) -> tuple[list[Level], list[bytes]]:
    levels: list[Level] = []
    tokens: list[bytes] = []
    for row in rows:
        price, size = bytes(row.price), bytes(row.qty)
        levels.append((float(price), float(size)))
        digits = price.replace(b".", b"").lstrip(b"0") + size.replace(b".", b"").lstrip(b"0")
        tokens.append(digits if digits.isdigit() else token(price) + token(size))
    return levels, tokens


def _trade(data: dict[str, Any], replayed: bool) -> TradeSeen:
    side = data["side"]
    if side not in ("buy", "sell"):
        raise ValueError(f"side {side!r}")
    trade_id = integer(data["trade_id"])
    price, size, when = positive(data["price"]), positive(data["qty"]), iso_ns(data["timestamp"])
    return TradeSeen(data["symbol"], str(trade_id), price, size, side, when, replayed, trade_id)


def parse_instruments(body: bytes | str) -> list[Instrument]:
    """`AssetPairs`. `wsname` separates base and quote itself; only XBT and XDG are other names there than in v2."""
    answer = orjson.loads(body)
    if answer["error"]:
        raise ValueError(", ".join(answer["error"]))
    found = []
    for row in answer["result"].values():
        wsname = row.get("wsname")
        if wsname is None:
            continue  # dark pools (`.d`) have none
        base, _, quote = wsname.partition("/")
        base, quote = RENAMED.get(base, base), RENAMED.get(quote, quote)
        symbol = canonical(base, quote)
        if symbol is None:
            continue
        status = row.get("status", "online")  # answers of 2021 have none
        found.append(
            Instrument(
                native=f"{base}/{quote}",
                symbol=symbol,
                trading=status == "online",
                status=status,
                tick_size=number(row.get("tick_size")) or Decimal(1).scaleb(-integer(row["pair_decimals"])),
                lot_step=Decimal(1).scaleb(-integer(row["lot_decimals"])),
                min_size=number(row.get("ordermin")),
                min_notional=number(row.get("costmin")),
            )
        )
    return found


def parse_time(body: bytes | str) -> tuple[int, int]:
    """Whole seconds only."""
    answer = orjson.loads(body)
    if answer["error"]:
        raise ValueError(", ".join(answer["error"]))
    return integer(answer["result"]["unixtime"]) * 1_000_000_000, 1_000_000_000


def limited(status: int, body: bytes) -> float | None:
    """Its REST says so in the body of a good answer: `{"error":["EGeneral:Too many requests"]}`."""
    return 5.0 if b"Too many requests" in body[:200] or b"Rate limit exceeded" in body[:200] else None


KRAKEN = Exchange(
    name="kraken",
    url=lambda base, natives: base,
    subscribe=subscribe,
    resubscribe=resubscribe,
    unsubscribe=unsubscribe,
    parse=parse,
    native=lambda symbol: symbol.replace("-", "/"),
    canonical=lambda name: name.replace("/", "-"),  # v2 names are BASE/QUOTE, with the exchange's own separator
    instruments_url=lambda base: f"{base.rstrip('/')}/0/public/AssetPairs",
    parse_instruments=parse_instruments,
    time_url=lambda base: f"{base.rstrip('/')}/0/public/Time",
    parse_time=parse_time,
    limits=Limits(
        connects=(Rule(150, 600.0), Rule(1, 5.0)),  # the second: after maintenance, so always
        messages=(Rule(10, 1.0),),  # "dynamic"; not stated
        requests=(Rule(1, 1.0),),
        forbidden_wait_s=600.0,  # its ban
        books=100,
    ),
    proof=Proof(idle_s=1.5, frame='{"method":"ping"}'),  # its heartbeats come only while something is subscribed
    depths=DEPTHS,
    truncates=True,
    checksum=checksum,
    by_time=True,
    limited=limited,
)
