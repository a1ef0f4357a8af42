"""OKX v5 spot: https://www.okx.com/docs-v5/en/#order-book-trading-market-data-ws-order-book-channel (read 2026-02-23).

Each update of `books` names the one before it (`prevSeqId`). Two exceptions are legal: an empty one that repeats the
last id (keepalive after a minute without a change), and one whose id is smaller but that follows the last (sequence
reset after maintenance). Anything else means to subscribe again, within 480 subscriptions an hour and connection.

The checksum is 0 since 2026-06 and not checked then. Frames of before 2023 have a checksum and no ids: they are still
read, by that.

`bbo-tbt` is left out as a faster top: its `seqId` is documented for its own channel only, nothing says that it can be
compared with that of `books`, and its `ts` is the time of the push. Merged by a guess it could show a price that is
gone.
"""

import re
import zlib
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, Literal

import msgspec
import orjson

from services.collector.book import Book
from services.collector.exchanges.base import (
    Acknowledged,
    Closing,
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
    Step,
    TradeSeen,
    Unsubscribed,
    canonical,
    integer,
    levels,
    ms_ns,
    number,
    positive,
)

_INSTRUMENT = re.compile(r"instId:\s*([A-Za-z0-9-]+)")
CHECKED = 25
"""Levels a side that the old checksum covers."""


def _say(op: str, channels: Sequence[str], natives: Sequence[str]) -> str:
    args = [{"channel": channel, "instId": name} for channel in channels for name in natives]
    return orjson.dumps({"op": op, "args": args}).decode()


def subscribe(natives: Sequence[str], depth: int, fast_tops: bool) -> list[str]:
    """All in one frame (64 KB are allowed): each counts against 480 an hour."""
    return [_say("subscribe", ("books", "trades"), natives)]


def resubscribe(natives: Sequence[str], depth: int) -> list[str]:
    return [_say("unsubscribe", ("books",), natives), _say("subscribe", ("books",), natives)]


def unsubscribe(natives: Sequence[str], depth: int) -> list[str]:
    return [_say("unsubscribe", ("books", "trades"), natives)]


def follows(last_id: int, delta: Delta) -> Step:
    """`first_id` is `prevSeqId` here."""
    if delta.first_id != last_id:
        return Step.GAP
    if delta.last_id == last_id and not delta.bids and not delta.asks:
        return Step.IGNORE  # the keepalive
    return Step.APPLY


class _Book(msgspec.Struct):
    asks: list[tuple[float, float, str, str]]
    bids: list[tuple[float, float, str, str]]
    ts: int
    seqId: int
    prevSeqId: int
    checksum: int = 0


class _Arg(msgspec.Struct):
    channel: str
    instId: str


class _Books(msgspec.Struct):
    arg: _Arg
    action: Literal["snapshot", "update"]
    data: list[_Book]


_BOOKS = msgspec.json.Decoder(_Books, strict=False)
"""Today's book frames. Not strict: prices, sizes and times are texts there, and become numbers here."""


def parse(frame: bytes | str) -> list[Event]:
    """Books, trades, acknowledgements (one per argument), refusals, the announced end; `pong` is no JSON."""
    data = frame.encode() if isinstance(frame, str) else frame
    if data.startswith(b'{"arg":{"channel":"books",') and b'"seqId"' in data:
        try:
            found = _BOOKS.decode(data)
        except msgspec.ValidationError:
            pass  # of before 2023, or with a field more: the general way
        else:
            if not any(book.checksum for book in found.data):
                return [_plain(found.action, found.arg.instId, book) for book in found.data]
    if data == b"pong":
        return []
    message = orjson.loads(data)
    event = message.get("event")
    if event is not None:
        return _answer(event, message)
    arg = message["arg"]
    channel = arg["channel"]
    if channel == "books":
        kind, name = message["action"], arg["instId"]
        if kind not in ("update", "snapshot"):
            raise ValueError(f"action {kind!r}")
        return [_book(kind, name, data) for data in message["data"]]
    if channel == "trades":
        return [_trade(data) for data in message["data"]]
    return []


def _answer(event: str, message: dict[str, Any]) -> list[Event]:
    if event == "error":
        words = f"{message.get('code')}: {message.get('msg')}"
        if message.get("code") in ("60014", "60023", "50011"):
            return [Limited(words, 60.0)]
        found = _INSTRUMENT.search(words)
        return [Refused(found[1] if found is not None else None, words)]
    if event == "notice":
        return [Closing(f"{message.get('code')}: {message.get('msg')}")]
    if event in ("subscribe", "unsubscribe") and message["arg"]["channel"] == "books":
        name = message["arg"]["instId"]
        return [Acknowledged(name, None) if event == "subscribe" else Unsubscribed(name)]
    return []


def _plain(kind: str, name: str, book: _Book) -> Event:
    bids = [(price, size) for price, size, _, _ in book.bids]
    asks = [(price, size) for price, size, _, _ in book.asks]
    if kind == "update":
        return Delta(name, bids, asks, ms_ns(book.ts), book.prevSeqId, book.seqId)
    return Snapshot(name, bids, asks, ms_ns(book.ts), book.seqId)


def _book(kind: str, name: str, data: dict[str, Any]) -> Event:
    bids, asks, when = data["bids"], data["asks"], ms_ns(int(data["ts"]))
    checksum = data.get("checksum", 0)
    if "seqId" in data:
        previous, last = integer(data["prevSeqId"]), integer(data["seqId"])
    elif checksum:
        previous = last = 0
    else:
        raise ValueError("neither seqId nor a checksum")
    if not checksum:
        if kind == "update":
            return Delta(name, levels(bids), levels(asks), when, previous, last)
        return Snapshot(name, levels(bids), levels(asks), when, last)
    make = Delta if kind == "update" else Snapshot
    more: dict[str, Any] = {"first_id": previous} if make is Delta else {}
    return make(
        name,
        levels(bids),
        levels(asks),
        when,
        last_id=last,
        checksum=integer(checksum),
        bid_tokens=[(row[0] + ":" + row[1]).encode() for row in bids],
        ask_tokens=[(row[0] + ":" + row[1]).encode() for row in asks],
        **more,
    )


def checksum(book: Book) -> int:
    """CRC32, signed, of bid and ask in turns over the 25 best levels; a missing level is skipped."""
    bids, asks = book.bids.top_tokens(CHECKED), book.asks.top_tokens(CHECKED)
    if len(bids) == len(asks):
        tokens = [token for pair in zip(bids, asks, strict=True) for token in pair]
    else:
        tokens = [token for pair in zip_longest(bids, asks) for token in pair if token is not None]
    value = zlib.crc32(b":".join(tokens))
    return value - (1 << 32) if value >= 1 << 31 else value


def _trade(data: dict[str, Any]) -> TradeSeen:
    """Fills of one taker order at one price come as one: `count` of them, `tradeId` being the last."""
    side = data["side"]
    if side not in ("buy", "sell"):
        raise ValueError(f"side {side!r}")
    last = int(data["tradeId"])
    price, size, when = positive(data["px"]), positive(data["sz"]), ms_ns(int(data["ts"]))
    fills = int(data.get("count", 1))
    if fills < 1 or last < fills:
        raise ValueError(f"trade {last} stands for {fills}")
    return TradeSeen(data["instId"], str(last), price, size, side, when, number=last, fills=fills)


def _data(body: bytes | str) -> list[dict[str, Any]]:
    answer = orjson.loads(body)
    if answer["code"] != "0":
        raise ValueError(f"code {answer['code']}: {answer.get('msg')}")
    rows: list[dict[str, Any]] = answer["data"]
    return rows


def parse_instruments(body: bytes | str) -> list[Instrument]:
    """`public/instruments?instType=SPOT`; the least order is in base."""
    found = []
    for row in _data(body):
        symbol = canonical(row["baseCcy"], row["quoteCcy"])
        if symbol is None:
            continue
        found.append(
            Instrument(
                native=row["instId"],
                symbol=symbol,
                trading=row["state"] == "live",
                status=row["state"],
                tick_size=number(row["tickSz"]),
                lot_step=number(row["lotSz"]),
                min_size=number(row["minSz"]),
                min_notional=None,
            )
        )
    return found


def parse_time(body: bytes | str) -> tuple[int, int]:
    return ms_ns(int(_data(body)[0]["ts"])), 1_000_000


def limited(status: int, body: bytes) -> float | None:
    """Code 50011 comes with HTTP 429 or 200."""
    return 2.0 if b'"code":"50011"' in body[:200].replace(b" ", b"") else None


OKX = Exchange(
    name="okx",
    url=lambda base, natives: base,
    subscribe=subscribe,
    resubscribe=resubscribe,
    unsubscribe=unsubscribe,
    parse=parse,
    follows=follows,
    native=lambda symbol: symbol,
    canonical=lambda name: name,
    instruments_url=lambda base: f"{base.rstrip('/')}/api/v5/public/instruments?instType=SPOT",
    parse_instruments=parse_instruments,
    time_url=lambda base: f"{base.rstrip('/')}/api/v5/public/time",
    parse_time=parse_time,
    limits=Limits(
        connects=(Rule(3, 1.0),),
        messages=(Rule(480, 3600.0),),
        requests=(Rule(5, 1.0),),  # 10 in two seconds for the tightest of the calls we make
        books=25,  # fewer than 30 deep books a connection are recommended
    ),
    depths=(400,),
    proof=Proof(idle_s=0.9, frame="ping"),
    truncates=True,
    checksum=checksum,
    limited=limited,
)
