"""Coinbase Exchange feed (same matching engine as Advanced Trade, the second source):
https://docs.cdp.coinbase.com/exchange/websocket-feed/channels (read 2025-05-17).

`l2update` has no sequence number and no checksum: a lost one cannot be seen, so this feed only backs the other up.
`match.side` is the maker's side. `last_match` is an old trade, sent on subscribing.
"""

from collections.abc import Sequence
from typing import Any

import orjson

from services.collector.book import Level
from services.collector.exchanges.base import (
    Chain,
    Delta,
    Event,
    Exchange,
    Refused,
    Snapshot,
    TradeSeen,
    iso_ns,
    levels,
)


def subscribe(symbols: Sequence[str], depth: int) -> list[str]:
    """All channels in one message, within five seconds of connecting."""
    channels = ["level2_batch", "matches", "heartbeat"]
    return [orjson.dumps({"type": "subscribe", "product_ids": list(symbols), "channels": channels}).decode()]


def parse(frame: bytes | str) -> list[Event]:
    """Books and trades; tickers, heartbeats and acks carry nothing for us."""
    message = orjson.loads(frame)
    match message.get("type"):
        case "l2update":
            bids, asks = _changes(message["changes"])
            return [Delta(message["product_id"], bids, asks, iso_ns(message["time"]))]
        case "snapshot":
            return [Snapshot(message["product_id"], levels(message["bids"]), levels(message["asks"]), None)]
        case "match" | "last_match" as kind:
            return [_trade(message, replayed=kind == "last_match")]
        case "error":
            return [Refused(None, str(message.get("reason") or message.get("message")))]
    return []


def _changes(rows: Sequence[Sequence[str]]) -> tuple[list[Level], list[Level]]:
    bids: list[Level] = []
    asks: list[Level] = []
    for side, price, size in rows:
        if side not in ("buy", "sell"):
            raise ValueError(f"side {side!r}")
        (bids if side == "buy" else asks).append((float(price), float(size)))
    return bids, asks


def _trade(message: dict[str, Any], replayed: bool) -> TradeSeen:
    taker_side = {"sell": "buy", "buy": "sell"}[message["side"]]
    price, size = float(message["price"]), float(message["size"])
    trade_id = str(int(message["trade_id"]))
    exchange_ns = iso_ns(message["time"])
    return TradeSeen(message["product_id"], trade_id, price, size, taker_side, exchange_ns, replayed)


COINBASE_EXCHANGE = Exchange(
    name="coinbase-exchange",
    chain=Chain.NONE,
    url=lambda base, symbols: base,
    subscribe=subscribe,
    parse=parse,
    native=lambda symbol: symbol,
    canonical=lambda name: name,
    books_per_connection=10,
)
