"""Bybit v5 spot: https://bybit-exchange.github.io/docs/v5/websocket/public/orderbook (read 2026-07-24).

One snapshot, then deltas whose `u` counts by one; anything else means to subscribe again. A snapshot at any time
replaces the book, also `u` = 1 after a restart of the service. Frames are never parsed by position: spot sends `ts`
before `type`, other products after. The snapshot may come before the acknowledgement.

`orderbook.1` is the faster top (10 ms against 20 and more). Its `u` is another counter, but `seq` is documented as
comparable between depths, so the top is merged by that. It is sent again after three seconds without a change: no
change, but proof of life.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import orjson

from services.collector.exchanges.base import (
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
    Top,
    TradeSeen,
    canonical,
    ms_ns,
    number,
    positive,
)

DEPTHS = (50, 200, 1000)
ARGS = 10
"""Most topics in one frame on spot."""

PING = '{"op":"ping"}'


def _say(op: str, topics: Sequence[str]) -> Iterator[str]:
    for start in range(0, len(topics), ARGS):
        yield orjson.dumps({"op": op, "args": topics[start : start + ARGS]}).decode()


def subscribe(natives: Sequence[str], depth: int, fast_tops: bool) -> list[str]:
    topics = [f"orderbook.{depth}.{name}" for name in natives] + [f"publicTrade.{name}" for name in natives]
    if fast_tops:
        topics += [f"orderbook.1.{name}" for name in natives]
    return list(_say("subscribe", topics))


def resubscribe(natives: Sequence[str], depth: int) -> list[str]:
    topics = [f"orderbook.{depth}.{name}" for name in natives]
    return [*_say("unsubscribe", topics), *_say("subscribe", topics)]


def unsubscribe(natives: Sequence[str], depth: int) -> list[str]:
    """What is not subscribed (the faster top, perhaps) is refused, which does not matter."""
    return list(
        _say(
            "unsubscribe",
            [
                topic
                for name in natives
                for topic in (f"orderbook.{depth}.{name}", f"publicTrade.{name}", f"orderbook.1.{name}")
            ],
        )
    )


def follows(last_id: int, delta: Delta) -> Step:
    return Step.APPLY if delta.last_id == last_id + 1 else Step.GAP


class _Book(msgspec.Struct):
    s: str
    b: list[tuple[float, float]]
    a: list[tuple[float, float]]
    u: int
    seq: int


class _Frame(msgspec.Struct):
    topic: str
    data: _Book
    ts: int
    type: str
    cts: int | None = None


_FRAME = msgspec.json.Decoder(_Frame, strict=False)
"""Not strict: prices and sizes are texts there, and become numbers here."""


def parse(frame: bytes | str) -> list[Event]:
    """Books, faster tops, trades, refusals; pongs and acknowledgements name no topic."""
    data = frame.encode() if isinstance(frame, str) else frame
    if data.startswith(b'{"topic":"orderbook.'):  # nearly all frames; written otherwise it comes the other way
        return _book(data)
    message = orjson.loads(data)
    topic = message.get("topic")
    if topic is None:
        return _answer(message)
    if topic.startswith("orderbook."):
        return _book(data)
    if topic.startswith("publicTrade."):
        return [_trade(trade) for trade in message["data"]]
    return []


def _book(frame: bytes) -> list[Event]:
    message = _FRAME.decode(frame)
    book, kind = message.data, message.type
    when = ms_ns(message.ts if message.cts is None else message.cts)  # `cts`: the matching engine's time
    if message.topic.startswith("orderbook.1."):
        if len(book.b) != 1 or len(book.a) != 1:
            return []  # a side is empty: nothing to show
        return [Top(book.s, book.b[0], book.a[0], book.seq, when)]
    if kind == "delta":
        return [Delta(book.s, book.b, book.a, when, book.u, book.u, order=book.seq)]
    if kind == "snapshot":
        return [Snapshot(book.s, book.b, book.a, when, book.u, order=book.seq)]
    raise ValueError(f"type {kind!r}")


def _answer(message: dict[str, Any]) -> list[Event]:
    if message.get("success") is not False:
        return []
    words = str(message.get("ret_msg"))
    if message.get("op") != "subscribe" or "already subscribed" in words:
        return []
    if "too many" in words.lower() or "rate limit" in words.lower():
        return [Limited(words, 5.0)]
    _, colon, topic = words.partition("topic:")
    return [Refused(topic.rsplit(".", 1)[-1] if colon else None, words)]


def _trade(trade: dict[str, Any]) -> TradeSeen:
    taker_side = {"Buy": "buy", "Sell": "sell"}[trade["S"]]
    # `i` is unique, but neither ordered nor gapless.
    trade_id = trade["i"]
    if type(trade_id) is not str:
        raise ValueError(f"trade id {trade_id!r}")
    return TradeSeen(trade["s"], trade_id, positive(trade["p"]), positive(trade["v"]), taker_side, ms_ns(trade["T"]))


def _result(body: bytes | str) -> dict[str, Any]:
    answer = orjson.loads(body)
    if answer["retCode"] != 0:
        raise ValueError(f"retCode {answer['retCode']}: {answer.get('retMsg')}")
    result: dict[str, Any] = answer["result"]
    return result


def parse_instruments(body: bytes | str) -> list[Instrument]:
    """`instruments-info?category=spot`."""
    found = []
    for row in _result(body)["list"]:
        symbol = canonical(row["baseCoin"], row["quoteCoin"])
        if symbol is None:
            continue
        lots = row["lotSizeFilter"]
        found.append(
            Instrument(
                native=row["symbol"],
                symbol=symbol,
                trading=row["status"] == "Trading",
                status=row["status"],
                tick_size=number(row["priceFilter"]["tickSize"]),
                lot_step=number(lots["basePrecision"]),
                min_size=number(lots.get("minOrderQty")),
                min_notional=number(lots.get("minOrderAmt")),
            )
        )
    return found


def parse_time(body: bytes | str) -> tuple[int, int]:
    return int(_result(body)["timeNano"]), 1


def limited(status: int, body: bytes) -> float | None:
    """retCode 10006 with HTTP 200; "access too frequent" with HTTP 403 means ten minutes."""
    if b"access too frequent" in body[:300].lower():
        return 600.0
    return 5.0 if b'"retCode":10006' in body[:100].replace(b" ", b"") else None


BYBIT = Exchange(
    name="bybit",
    url=lambda base, natives: base,
    subscribe=subscribe,
    resubscribe=resubscribe,
    unsubscribe=unsubscribe,
    parse=parse,
    follows=follows,
    native=lambda symbol: symbol.replace("-", ""),
    canonical=lambda name: name,  # BTCUSDT: only the exchange's metadata could tell where to cut
    instruments_url=lambda base: f"{base.rstrip('/')}/v5/market/instruments-info?category=spot",
    parse_instruments=parse_instruments,
    time_url=lambda base: f"{base.rstrip('/')}/v5/market/time",
    parse_time=parse_time,
    limits=Limits(
        connects=(Rule(500, 300.0),),
        messages=(Rule(10, 1.0),),  # none is stated; the topics of a connection may have 21,000 characters
        requests=(Rule(600, 5.0),),
        forbidden_wait_s=600.0,
        books=100,
    ),
    depths=DEPTHS,
    proof=Proof(idle_s=0.9, frame=PING, always_s=20.0),
    limited=limited,
)
