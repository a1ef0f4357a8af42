"""Coinbase Exchange feed (same matching engine as Advanced Trade, the second source):
https://docs.cdp.coinbase.com/exchange/websocket-feed/channels (read 2025-05-17).

`l2update` has no sequence number and no checksum. What can show a lost frame is the trades: their ids count by one, and
the heartbeat names the last; a missing trade puts the book in doubt, and so does a time that goes back. A lost update
between two trades stays unseen. `match.side` is the maker's side. `last_match`
is an old trade, sent on subscribing. `ticker` comes with trades only, so it is no faster top.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import orjson

from services.collector.book import Level
from services.collector.exchanges.base import (
    Delta,
    Event,
    Exchange,
    Instrument,
    LastTrade,
    Limits,
    Refused,
    Rule,
    Snapshot,
    TradeSeen,
    canonical,
    integer,
    iso_ns,
    number,
    positive,
)

NOT_TRADING = ("trading_disabled", "cancel_only", "post_only", "auction_mode")


def _say(kind: str, natives: Sequence[str], channels: Sequence[str]) -> str:
    return orjson.dumps({"type": kind, "product_ids": list(natives), "channels": list(channels)}).decode()


def subscribe(natives: Sequence[str], depth: int, fast_tops: bool) -> list[str]:
    """All channels in one message, within five seconds of connecting."""
    return [_say("subscribe", natives, ("level2_batch", "matches", "heartbeat"))]


def resubscribe(natives: Sequence[str], depth: int) -> list[str]:
    return [_say(kind, natives, ("level2_batch",)) for kind in ("unsubscribe", "subscribe")]


def unsubscribe(natives: Sequence[str], depth: int) -> list[str]:
    return [_say("unsubscribe", natives, ("level2_batch", "matches", "heartbeat"))]


class _Update(msgspec.Struct):
    product_id: str
    changes: list[tuple[Literal["buy", "sell"], float, float]]
    time: str


class _Snapshot(msgspec.Struct):
    product_id: str
    bids: list[tuple[float, float]]
    asks: list[tuple[float, float]]


_UPDATE = msgspec.json.Decoder(_Update, strict=False)
_SNAPSHOT = msgspec.json.Decoder(_Snapshot, strict=False)
"""Not strict: prices and sizes are texts there, and become numbers here."""


def parse(frame: bytes | str) -> list[Event]:
    """Books, trades and the last trade's number; tickers and acks carry nothing for us."""
    data = frame.encode() if isinstance(frame, str) else frame
    if data.startswith(b'{"type":"l2update"'):  # nearly all frames; written otherwise it comes the other way
        return _update(data)
    message = orjson.loads(data)
    kind = message.get("type")
    if kind == "l2update":
        return _update(data)
    if kind == "match" or kind == "last_match":
        return [_trade(message, replayed=kind == "last_match")]
    if kind == "heartbeat":
        return [LastTrade(message["product_id"], integer(message["last_trade_id"]))]
    if kind == "snapshot":
        book = _SNAPSHOT.decode(data)
        return [Snapshot(book.product_id, book.bids, book.asks, None)]
    if kind == "error":
        return [Refused(None, str(message.get("reason") or message.get("message")))]
    return []


def _update(frame: bytes) -> list[Event]:
    message = _UPDATE.decode(frame)
    bids: list[Level] = []
    asks: list[Level] = []
    for side, price, size in message.changes:
        (bids if side == "buy" else asks).append((price, size))
    return [Delta(message.product_id, bids, asks, iso_ns(message.time))]


def _trade(message: dict[str, Any], replayed: bool) -> TradeSeen:
    taker_side = {"sell": "buy", "buy": "sell"}[message["side"]]
    price, size = positive(message["price"]), positive(message["size"])
    trade_id, when = integer(message["trade_id"]), iso_ns(message["time"])
    return TradeSeen(message["product_id"], str(trade_id), price, size, taker_side, when, replayed, trade_id)


def parse_instruments(body: bytes | str) -> list[Instrument]:
    """`/products`."""
    found = []
    for row in orjson.loads(body):
        symbol = canonical(row["base_currency"], row["quote_currency"])
        if symbol is None:
            continue
        trading = row["status"] == "online" and not any(row.get(name) for name in NOT_TRADING)
        found.append(
            Instrument(
                native=row["id"],
                symbol=symbol,
                trading=trading,
                status=next((name for name in NOT_TRADING if row.get(name)), row["status"]),
                tick_size=number(row["quote_increment"]),
                lot_step=number(row["base_increment"]),
                min_size=number(row.get("base_min_size")),
                min_notional=number(row.get("min_market_funds")),
            )
        )
    return found


def parse_time(body: bytes | str) -> tuple[int, int]:
    """`{"iso":"2026-01-01T00:00:00.123Z","epoch":1767225600.123}`: the text is the exact one."""
    return iso_ns(orjson.loads(body)["iso"]), 1_000_000


COINBASE_EXCHANGE = Exchange(
    name="coinbase-exchange",
    url=lambda base, natives: base,
    subscribe=subscribe,
    resubscribe=resubscribe,
    unsubscribe=unsubscribe,
    parse=parse,
    native=lambda symbol: symbol,
    canonical=lambda name: name,
    instruments_url=lambda base: f"{base.rstrip('/')}/products",
    parse_instruments=parse_instruments,
    time_url=lambda base: f"{base.rstrip('/')}/time",
    parse_time=parse_time,
    limits=Limits(
        connects=(Rule(8, 1.0),),
        messages=(Rule(8, 1.0),),
        messages_of_address=True,
        requests=(Rule(10, 1.0),),
        books=10,
    ),
    by_time=True,
    unchained=True,
)
