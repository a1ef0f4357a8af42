"""Coinbase Advanced Trade market data: https://docs.cdp.coinbase.com/coinbase-app/advanced-trade-apis/websocket/
websocket-channels (read 2026).

`level2` is subscribed and arrives as `l2_data`; the snapshot comes before the acknowledgement. `sequence_num` is one
counter for the whole connection, acknowledgements and heartbeats included. `side` of a trade is not defined in the
documentation, so the taker's side stays unknown. USD and USDC are one book there.
"""

from collections.abc import Sequence
from typing import Any

import orjson

from services.collector.book import Level
from services.collector.exchanges.base import (
    Chain,
    Counter,
    Delta,
    Event,
    Exchange,
    Refused,
    Snapshot,
    TradeSeen,
    iso_ns,
)


def subscribe(symbols: Sequence[str], depth: int) -> list[str]:
    """One channel per message; heartbeats keep the channels open and are the proof of life."""
    frames: list[dict[str, Any]] = [
        {"type": "subscribe", "channel": "heartbeats"},
        {"type": "subscribe", "channel": "level2", "product_ids": list(symbols)},
        {"type": "subscribe", "channel": "market_trades", "product_ids": list(symbols)},
    ]
    return [orjson.dumps(frame).decode() for frame in frames]


def parse(frame: bytes | str) -> list[Event]:
    """The connection's counter first, then books and trades."""
    message = orjson.loads(frame)
    if message.get("type") == "error":
        return [Refused(None, str(message.get("message", "no reason given")))]
    number = message["sequence_num"]
    if not isinstance(number, int):
        raise ValueError(f"sequence_num {number!r}")
    events: list[Event] = [Counter(number)]
    match message["channel"]:
        case "l2_data":
            exchange_ns = iso_ns(message["timestamp"])
            for event in message["events"]:
                events.append(_book(event, exchange_ns))
        case "market_trades":
            for event in message["events"]:
                replayed = event["type"] == "snapshot"  # old trades, sent again on subscribing
                # Newest first inside a frame: published oldest first.
                events.extend(_trade(trade, replayed) for trade in reversed(event["trades"]))
    return events


def _book(event: dict[str, Any], exchange_ns: int) -> Event:
    bids: list[Level] = []
    asks: list[Level] = []
    for update in event["updates"]:
        level = (float(update["price_level"]), float(update["new_quantity"]))
        side = update["side"]
        if side == "bid":
            bids.append(level)
        elif side == "offer":
            asks.append(level)
        else:
            raise ValueError(f"side {side!r}")
    kind = event["type"]
    if kind == "snapshot":
        return Snapshot(event["product_id"], bids, asks, exchange_ns)
    if kind == "update":
        return Delta(event["product_id"], bids, asks, exchange_ns)
    raise ValueError(f"event type {kind!r}")


def _trade(trade: dict[str, Any], replayed: bool) -> TradeSeen:
    price, size = float(trade["price"]), float(trade["size"])
    trade_id = str(int(trade["trade_id"]))
    return TradeSeen(trade["product_id"], trade_id, price, size, None, iso_ns(trade["time"]), replayed)


COINBASE = Exchange(
    name="coinbase",
    chain=Chain.CONNECTION,
    url=lambda base, symbols: base,
    subscribe=subscribe,
    parse=parse,
    native=lambda symbol: symbol,
    canonical=lambda name: name,
    books_per_connection=15,  # "too many L2 streams requested in a single session" between 17 and 32, seen 2026-01
)
