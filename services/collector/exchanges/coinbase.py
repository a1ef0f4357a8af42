"""Coinbase Advanced Trade market data: https://docs.cdp.coinbase.com/coinbase-app/advanced-trade-apis/websocket/
websocket-channels (read 2026).

`level2` is subscribed and arrives as `l2_data`; the snapshot comes before the acknowledgement. `sequence_num` is one
counter for the whole connection, acknowledgements and heartbeats included: a jump means that every book on it is
subscribed again. `side` of a trade is not defined in the documentation, so the taker's side stays unknown.

USD and USDC are one book there: `BTC-USDC` is listed as an alias of `BTC-USD`, and data comes under the latter's name.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import orjson

from services.collector.book import Level
from services.collector.exchanges.base import (
    Counter,
    Delta,
    Event,
    Exchange,
    Instrument,
    Limited,
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

NOT_TRADING = ("is_disabled", "trading_disabled", "view_only", "cancel_only", "post_only", "auction_mode")


def _say(kind: str, channel: str, natives: Sequence[str] = ()) -> str:
    frame: dict[str, Any] = {"type": kind, "channel": channel}
    if natives:
        frame["product_ids"] = list(natives)
    return orjson.dumps(frame).decode()


def subscribe(natives: Sequence[str], depth: int, fast_tops: bool) -> list[str]:
    """One channel per message; heartbeats keep the channels open and are the proof of life."""
    return [
        _say("subscribe", "heartbeats"),
        _say("subscribe", "level2", natives),
        _say("subscribe", "market_trades", natives),
    ]


def resubscribe(natives: Sequence[str], depth: int) -> list[str]:
    return [_say(kind, "level2", natives) for kind in ("unsubscribe", "subscribe")]


def unsubscribe(natives: Sequence[str], depth: int) -> list[str]:
    return [_say("unsubscribe", channel, natives) for channel in ("level2", "market_trades")]


class _Update(msgspec.Struct):
    side: Literal["bid", "offer"]
    price_level: float
    new_quantity: float


class _Event(msgspec.Struct):
    type: Literal["snapshot", "update"]
    product_id: str
    updates: list[_Update]


class _Levels(msgspec.Struct):
    timestamp: str
    sequence_num: int
    events: list[_Event]


_LEVELS = msgspec.json.Decoder(_Levels, strict=False)
"""Not strict: prices and sizes are texts there, and become numbers here."""


def parse(frame: bytes | str) -> list[Event]:
    """The connection's counter first, then books and trades."""
    data = frame.encode() if isinstance(frame, str) else frame
    if data.startswith(b'{"channel":"l2_data"'):  # nearly all frames; written otherwise it comes the other way
        return _books(data)
    message = orjson.loads(data)
    if message.get("type") == "error":
        words = str(message.get("message", "no reason given"))
        return [Limited(words, 1.0) if "rate limit" in words.lower() else Refused(None, words)]
    channel = message["channel"]
    if channel == "l2_data":
        return _books(data)
    events: list[Event] = [Counter(integer(message["sequence_num"]))]
    if channel == "market_trades":
        for event in message["events"]:
            replayed = event["type"] == "snapshot"  # old trades, sent again on subscribing
            # Newest first inside a frame: published oldest first.
            events.extend([_trade(trade, replayed) for trade in reversed(event["trades"])])
    return events


def _books(frame: bytes) -> list[Event]:
    message = _LEVELS.decode(frame)
    events: list[Event] = [Counter(message.sequence_num)]
    exchange_ns = iso_ns(message.timestamp)
    for event in message.events:
        bids: list[Level] = []
        asks: list[Level] = []
        for update in event.updates:
            (bids if update.side == "bid" else asks).append((update.price_level, update.new_quantity))
        make = Delta if event.type == "update" else Snapshot
        events.append(make(event.product_id, bids, asks, exchange_ns))
    return events


def _trade(trade: dict[str, Any], replayed: bool) -> TradeSeen:
    price, size = positive(trade["price"]), positive(trade["size"])
    trade_id = int(trade["trade_id"])
    return TradeSeen(
        trade["product_id"], str(trade_id), price, size, None, iso_ns(trade["time"]), replayed, number=trade_id
    )


def parse_instruments(body: bytes | str) -> list[Instrument]:
    """`market/products`; `alias` names the pair whose book this one shows."""
    found = []
    for row in orjson.loads(body)["products"]:
        symbol = canonical(row["base_currency_id"], row["quote_currency_id"])
        if symbol is None or row.get("product_type", "SPOT") != "SPOT":
            continue
        trading = row.get("status", "online") == "online" and not any(row.get(name) for name in NOT_TRADING)
        found.append(
            Instrument(
                native=row["product_id"],
                symbol=symbol,
                trading=trading,
                status=next((name for name in NOT_TRADING if row.get(name)), row.get("status", "online")),
                tick_size=number(row.get("price_increment")) or number(row.get("quote_increment")),
                lot_step=number(row.get("base_increment")),
                min_size=number(row.get("base_min_size")),
                min_notional=number(row.get("quote_min_size")),
                alias_of=row.get("alias") or None,
            )
        )
    return found


def parse_time(body: bytes | str) -> tuple[int, int]:
    return int(orjson.loads(body)["epochMillis"]) * 1_000_000, 1_000_000


COINBASE = Exchange(
    name="coinbase",
    url=lambda base, natives: base,
    subscribe=subscribe,
    resubscribe=resubscribe,
    unsubscribe=unsubscribe,
    parse=parse,
    native=lambda symbol: symbol,
    canonical=lambda name: name,
    instruments_url=lambda base: f"{base.rstrip('/')}/api/v3/brokerage/market/products",
    parse_instruments=parse_instruments,
    time_url=lambda base: f"{base.rstrip('/')}/api/v3/brokerage/time",
    parse_time=parse_time,
    limits=Limits(
        connects=(Rule(8, 1.0),),
        messages=(Rule(8, 1.0),),
        messages_of_address=True,
        requests=(Rule(10, 1.0),),
        books=15,  # "too many L2 streams requested in a single session" between 17 and 32, seen 2026-01
    ),
)
