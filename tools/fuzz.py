"""A million random and mutated frames per adapter: only the documented errors, no hang, bounded memory.

    python tools/fuzz.py [--exchange NAME] [--frames 1000000] [--seed 1] [--json FILE]

Each adapter is driven as the shell drives it: a feed takes in a conversation (a recording, generated frames, the
simulator's server, or documented frames in any order), answers to its subscriptions and fetches are given or not, time
goes on, and after a documented error there is a new connection. Frames of the conversation are damaged: bits, bytes,
values of other types, keys, whole trees, order. Whatever the feed says is checked and published through the real
emitter to a publisher that decodes it again. All is drawn from one seed, and the clock is not a real one: the same seed
gives the same run.

Exit 1: a rule was broken. The rule, the frame's number and the least conversation that shows it are printed.
"""
# ruff: noqa: E501  # frames stand as they come on the wire

import argparse
import contextlib
import copy
import ctypes
import functools
import gc
import importlib.util
import json
import math
import random
import re
import signal
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from services.collector import emitter as emitting
from services.collector.book import Book
from services.collector.emitter import Emitter
from services.collector.exchanges import EXCHANGES
from services.collector.exchanges.base import MALFORMED, Delta, Exchange, Snapshot
from services.collector.feed import Feed
from services.collector.keeper import Timing
from services.collector.outputs import BookChanged, Fetch, Reconnect, Replace, Send, Traded
from services.simulator.exchanges import SERVERS
from services.simulator.market import BookEvent, Market
from shared.errors import BadFrame, LinkLost, RateLimited, SubscriptionRefused, UndecodableRecord, UnknownSymbol
from shared.messages import decode
from shared.recordings import recorded

ROOT = Path(__file__).resolve().parents[1]
CAPTURES = ROOT / "tests" / "collector" / "captures"
START_NS = 1_795_000_000_000_000_000
MS = 1_000_000

SLOW_S = 1.0
"""No frame may cost more of our thread's CPU."""

HANG_S = 60.0
"""So many seconds without progress are a hang."""

MOST_HELD = 6_000
"""No list, dict or deque of a feed may be longer (books and buffers end at 5,000)."""

MOST_BYTES = 1_000_000
"""Kafka takes no larger message."""

GROWTH_MB = 10.0
GROWTH_BLOCKS = 30_000
"""The process may grow by so much in the second half of a run: resident memory (a full buffer that has come and gone
leaves up to five MB of it in pieces that the allocator keeps), and Python's own pieces of memory in use."""

DOCUMENTED: dict[str, tuple[type[Exception], ...]] = {
    "on_frame": (BadFrame, UnknownSymbol, SubscriptionRefused, RateLimited, LinkLost),
    "on_rest": (BadFrame,),
}
"""What a feed's inputs may raise, by their docstrings; the others raise nothing."""

ERRORS = tuple(error.__name__ for error in DOCUMENTED["on_frame"])

# ---------------------------------------------------------------- what an exchange says


class Case(NamedTuple):
    """How an adapter is configured: subscribed depth, native to canonical names, frames for what no capture has."""

    depth: int
    names: dict[str, str]
    documented: tuple[str, ...]


_COINBASE_HEAD = '"client_id":"","timestamp":"2026-08-12T19:27:50.714964855Z"'

CASES: dict[str, Case] = {
    "binance": Case(
        1000,
        {
            "NKNUSDT": "NKN-USDT",
            "LRCBTC": "LRC-BTC",
            "BTCUSDT": "BTC-USDT",
            "ETHUSDT": "ETH-USDT",
            "USDCUSDT": "USDC-USDT",
        },
        (
            '{"result":null,"id":1}',
            '{"code":2,"msg":"Invalid request: unknown variant"}',
            '{"error":{"code":2,"msg":"Invalid request: invalid stream"},"id":2}',
            '{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1795000000000}}',
            '{"stream":"btcusdt@bookTicker","data":{"u":500000100,"s":"BTCUSDT","b":"64000.10000000","B":"31.21000000","a":"64000.20000000","A":"40.66000000"}}',
            '{"u":499869760,"s":"NKNUSDT","b":"0.35220000","B":"31.21000000","a":"0.35230000","A":"40.66000000"}',
            '{"stream":"btcusdt@trade","data":{"e":"trade","E":1795000000136,"s":"BTCUSDT","t":12345,"p":"64000.10","q":"0.01","T":1795000000136,"m":true,"M":true}}',
            '{"e":"trade","E":1795000000137,"s":"NKNUSDT","t":12346,"p":"0.001","q":"100","T":1795000000136,"m":false,"M":true}',
            '{"e":"aggTrade","E":1672515782136,"s":"BNBBTC","a":12345,"p":"0.001","q":"100","f":100,"l":105,"T":1672515782136,"m":true,"M":true}',
            '{"lastUpdateId":160,"bids":[["0.0024","10"]],"asks":[["0.0026","100"]]}',
        ),
    ),
    "coinbase": Case(
        0,
        {"BTC-USD": "BTC-USD", "ETH-USD": "ETH-USD", "USDT-USD": "USDT-USD", "ETH-BTC": "ETH-BTC"},
        (
            f'{{"channel":"l2_data",{_COINBASE_HEAD},"sequence_num":0,"events":[{{"type":"snapshot","product_id":"BTC-USD","updates":[{{"side":"bid","event_time":"1970-01-01T00:00:00Z","price_level":"21921.73","new_quantity":"0.06317902"}},{{"side":"offer","event_time":"1970-01-01T00:00:00Z","price_level":"21921.74","new_quantity":"0.5"}}]}}]}}',
            f'{{"channel":"l2_data",{_COINBASE_HEAD},"sequence_num":1,"events":[{{"type":"update","product_id":"BTC-USD","updates":[{{"side":"bid","event_time":"2026-08-12T19:27:50.714964855Z","price_level":"21921.72","new_quantity":"0.06317902"}},{{"side":"offer","event_time":"2026-08-12T19:27:50.714964855Z","price_level":"21921.75","new_quantity":"0"}}]}}]}}',
            f'{{"channel":"heartbeats",{_COINBASE_HEAD},"sequence_num":2,"events":[{{"current_time":"2026-08-12 19:27:50.820713045 +0000 UTC m=+66987.628148662","heartbeat_counter":66987}}]}}',
            f'{{"channel":"market_trades",{_COINBASE_HEAD},"sequence_num":3,"events":[{{"type":"update","trades":[{{"product_id":"BTC-USD","trade_id":"1069726293","price":"63310.25","size":"0.00000043","time":"2026-08-12T19:27:47.532655Z","side":"BUY"}},{{"product_id":"ETH-BTC","trade_id":"7","price":"0.05","size":"1","time":"2026-08-12T19:27:47Z","side":"SELL"}}]}}]}}',
            f'{{"channel":"subscriptions",{_COINBASE_HEAD},"sequence_num":4,"events":[{{"subscriptions":{{"level2":["BTC-USD"]}}}}]}}',
            '{"type":"error","message":"too many L2 streams requested in a single session"}',
            '{"type":"error","message":"rate limit exceeded"}',
        ),
    ),
    "coinbase-exchange": Case(
        0,
        {
            "SKL-USD": "SKL-USD",
            "DASH-BTC": "DASH-BTC",
            "BAND-BTC": "BAND-BTC",
            "BTC-USD": "BTC-USD",
            "USDT-USD": "USDT-USD",
        },
        (
            '{"type":"subscriptions","channels":[{"name":"level2_50","product_ids":["BTC-USD"]}]}',
            '{"type":"snapshot","product_id":"BTC-USD","bids":[["10101.10","0.45054140"]],"asks":[["10102.55","0.57753524"]]}',
            '{"type":"l2update","product_id":"BTC-USD","time":"2022-08-04T15:25:05.010758Z","changes":[["buy","10101.270000","0.00000000"],["sell","10102.30","1.00000000"]]}',
            '{"type":"match","trade_id":147587440,"maker_order_id":"a","taker_order_id":"b","side":"sell","size":"985","price":"0.00001305","product_id":"BTC-USD","sequence":177100030,"time":"2026-04-17T16:43:37.089723Z"}',
            '{"type":"heartbeat","sequence":90,"last_trade_id":20,"product_id":"BTC-USD","time":"2014-11-07T08:19:28.464459Z"}',
            '{"type":"heartbeat","sequence":91,"last_trade_id":147587440,"product_id":"SKL-USD","time":"2026-11-07T08:19:28.464459Z"}',
            '{"type":"error","message":"Failed to subscribe","reason":"level2, level3, and full channels now require authentication."}',
        ),
    ),
    "kraken": Case(
        10,
        {
            "BTC/USD": "BTC-USD",
            "ETH/USD": "ETH-USD",
            "USDT/USD": "USDT-USD",
            "ETH/USDT": "ETH-USDT",
        },
        (
            '{"channel":"status","type":"update","data":[{"version":"2.0.10","system":"maintenance","api_version":"v2","connection_id":7204881492680171915}]}',
            '{"channel":"status","type":"update","data":[{"version":"2.0.10","system":"online","api_version":"v2","connection_id":7204881492680171915}]}',
            '{"channel":"trade","type":"update","data":[{"symbol":"ETH/USDT","side":"sell","price":0.5117,"qty":40.0,"ord_type":"market","trade_id":4665906,"timestamp":"2023-09-25T07:49:37.708706Z"},{"symbol":"BTC/USD","side":"buy","price":64000.1,"qty":1e-8,"ord_type":"limit","trade_id":4665907,"timestamp":"2026-09-25T07:49:37.708706Z"}]}',
            '{"channel":"trade","type":"snapshot","data":[{"symbol":"BTC/USD","side":"sell","price":63000,"qty":40.0,"ord_type":"market","trade_id":4665905,"timestamp":"2023-09-25T07:49:37.708706Z"}]}',
            '{"channel":"ticker","type":"update","data":[{"symbol":"BTC/USD","bid":0.10025,"bid_qty":740.0,"ask":0.10035,"ask_qty":740.0,"last":0.10035,"timestamp":"2022-12-25T09:30:59.123456Z"}]}',
            '{"channel":"instrument","type":"snapshot","data":{"assets":[{"id":"USD","status":"enabled"}],"pairs":[{"symbol":"BTC/USD","base":"BTC","quote":"USD","status":"online","qty_precision":8}]}}',
            '{"channel":"heartbeat"}',
            '{"method":"pong","req_id":101,"time_in":"2026-08-01T02:53:53.184174Z","time_out":"2026-08-01T02:53:53.184216Z"}',
            '{"method":"subscribe","result":{"channel":"book","depth":25,"snapshot":true,"symbol":"ETH/USD"},"success":true,"time_in":"2026-08-01T02:53:53.184174Z","time_out":"2026-08-01T02:53:53.184216Z"}',
            '{"method":"unsubscribe","result":{"channel":"book","depth":10,"symbol":"BTC/USD"},"success":true}',
            '{"error":"Subscription depth not supported","method":"subscribe","success":false}',
            '{"error":"Currency pair not supported ETH/USD","method":"subscribe","success":false,"symbol":"ETH/USD"}',
            '{"Error":"Exceeded msg rate"}',
            '{"channel":"book","type":"snapshot","data":[{"symbol":"BTC/USD","bids":[{"price":45283.5,"qty":0.10000000}],"asks":[{"price":45285.2,"qty":0.00100000}],"checksum":3310070434,"timestamp":"2026-08-01T02:53:54.966086Z"}]}',
        ),
    ),
    "bybit": Case(
        50,
        {"BTCUSDT": "BTC-USDT", "ETHUSDT": "ETH-USDT", "USDCUSDT": "USDC-USDT"},
        (
            '{"success":true,"ret_msg":"subscribe","conn_id":"d9avsh3fo0jvsls9d82g-5m9jh","req_id":"1","op":"subscribe"}',
            '{"success":true,"ret_msg":"pong","conn_id":"d9","op":"ping"}',
            '{"success":false,"ret_msg":"error:handler not found,topic:orderbook.50.ETHUSDT","conn_id":"d9","req_id":"e1","op":"subscribe"}',
            '{"success":false,"ret_msg":"error:already subscribed,topic:orderbook.50.ETHUSDT","conn_id":"d9","req_id":"e1","op":"subscribe"}',
            '{"success":false,"ret_msg":"error:invalid op","conn_id":"d9","req_id":"e1","op":"subscribe"}',
            '{"success":false,"ret_msg":"Too many visits. Exceeded the API Rate Limit.","op":"subscribe"}',
            '{"topic":"orderbook.1.BTCUSDT","ts":1786613159749,"type":"snapshot","data":{"s":"BTCUSDT","b":[["63705.3","2.045546"]],"a":[["63705.4","2.334566"]],"u":72212457,"seq":47474968000},"cts":1786613159748}',
            '{"topic":"orderbook.50.ETHUSDT","ts":1731035685345,"type":"snapshot","data":{"s":"ETHUSDT","b":[["3000.1","1"],["3000","2"]],"a":[["3000.2","1"]],"u":1,"seq":1},"cts":1731035685342}',
            '{"topic":"orderbook.50.ETHUSDT","ts":1731035685365,"type":"delta","data":{"s":"ETHUSDT","b":[["3000.1","0"]],"a":[["3000.3","4"]],"u":2,"seq":3},"cts":1731035685362}',
            '{"topic":"publicTrade.BTCUSDT","type":"snapshot","ts":1672304486868,"data":[{"T":1672304486865,"s":"BTCUSDT","S":"Buy","v":"0.001","p":"16578.50","i":"20f43950-d8dd-5b31-9112-a178eb6023af","BT":false,"seq":1783284617}]}',
        ),
    ),
    "okx": Case(
        400,
        {"BTC-USDT": "BTC-USDT", "ETH-USDT": "ETH-USDT", "USDC-USDT": "USDC-USDT", "UNI-USD-SWAP": "UNI-USD"},
        (
            "pong",
            '{"id":"1512","event":"subscribe","arg":{"channel":"books","instId":"BTC-USDT"},"connId":"a4d3ae55"}',
            '{"event":"unsubscribe","arg":{"channel":"books","instId":"ETH-USDT"},"connId":"a4d3ae55"}',
            '{"event":"error","code":"60012","msg":"Invalid request: {}","connId":"a4d3ae55"}',
            '{"event":"error","code":"60014","msg":"Requests too frequent","connId":"a4d3ae55"}',
            '{"event":"error","msg":"Subscribe failed, wrong URL or channel:books,instId:ETH-USDT doesn\'t exist.","code":"60018","connId":"e1f69f02"}',
            '{"event":"notice","code":"64008","msg":"The connection will soon be closed for a service upgrade. Please reconnect.","connId":"a4d3ae55"}',
            '{"arg":{"channel":"books","instId":"ETH-USDT"},"action":"snapshot","data":[{"asks":[["83800.9","0.41458754","0","10"]],"bids":[["83800.5","0.4","0","1"]],"ts":"1790358602106","checksum":0,"seqId":81625399056,"prevSeqId":-1}]}',
            '{"arg":{"channel":"books","instId":"ETH-USDT"},"action":"update","data":[{"asks":[["83802","0","0","0"]],"bids":[],"ts":"1790358602306","checksum":0,"seqId":81625399057,"prevSeqId":81625399056}]}',
            '{"arg":{"channel":"books","instId":"ETH-USDT"},"action":"update","data":[{"asks":[],"bids":[],"ts":"1790358662306","checksum":0,"seqId":81625399057,"prevSeqId":81625399057}]}',
            '{"arg":{"channel":"bbo-tbt","instId":"BTC-USDT"},"data":[{"asks":[["111.06","55154","0","2"]],"bids":[["111.05","57745","0","2"]],"ts":"1670324386802","seqId":363996337}]}',
            '{"arg":{"channel":"trades","instId":"BTC-USDT"},"data":[{"instId":"BTC-USDT","tradeId":"1040968613","px":"64040.2","sz":"0.00240857","side":"buy","ts":"1786538760218","count":"2","source":"0","seqId":79706765242}]}',
        ),
    ),
}


class Step(NamedTuple):
    """One inbound frame; `native` names the book of a REST answer."""

    native: str | None
    body: bytes


class Recording(NamedTuple):
    """Steps with the wait before each; `starts` are where snapshots stand, `rest` the answers to fetches.

    One of twice the `weight` is twice as often what a connection hears.
    """

    weight: int
    steps: list[tuple[int, Step]]
    starts: list[int]
    rest: dict[str, Step]


class Corpus(NamedTuple):
    """All that an adapter is fed from."""

    recordings: list[Recording]
    documented: list[bytes]


def corpus_of(exchange: Exchange, most: int = 12_000) -> Corpus:
    """Captures that speak of the case's symbols, generated streams, documented frames."""
    case = CASES[exchange.name]
    found = []
    for path in sorted(CAPTURES.glob(f"{exchange.name}-*.jsonl*")):
        if exchange.name == "coinbase" and path.name.startswith("coinbase-exchange"):
            continue
        whole = _recorded(exchange, path, most)
        weight = min(len(whole), 300)
        trimmed = [(wait_ns, Step(step.native, _trimmed(step.body))) for wait_ns, step in whole]
        if trimmed != whole:
            found.append(_recording(exchange, weight, trimmed))
            weight //= 30
        found.append(_recording(exchange, weight, whole))
    generate = getattr(_generators(), f"{exchange.name.replace('-', '_')}_frames", None)
    if generate is not None:
        more = {"levels": 100} if exchange.name == "coinbase" else {}
        frames = generate(min(most, 4000), 7, **more)
        found.append(_recording(exchange, 300, [(20 * MS, Step(None, frame)) for frame in frames]))
    return Corpus(found, [text.encode() for text in case.documented])


def _recorded(exchange: Exchange, path: Path, most: int) -> list[tuple[int, Step]]:
    steps: list[tuple[int, Step]] = []
    before: int | None = None
    for item in recorded(path):
        if not item.inbound or len(steps) >= most:
            continue
        native = None
        if item.url.startswith("http"):
            native = exchange.snapshot_symbol(item.url) if exchange.snapshot_symbol is not None else None
            if native is None:
                continue
        at = item.received_ns
        wait_ns = 20 * MS if at is None or before is None else min(max(0, at - before), 2_000 * MS)
        before = at
        steps.append((wait_ns, Step(native, item.frame.encode())))
    return steps


def _trimmed(body: bytes) -> bytes:
    """A snapshot without its far levels, which cost time and show nothing; all other frames as they are."""
    if len(body) < 15_000 or b'"checksum"' in body:
        return body
    book = json.loads(body)
    for side in ("bids", "asks"):
        book[side] = book[side][:60]
    return json.dumps(book, separators=(",", ":")).encode()


def _recording(exchange: Exchange, weight: int, steps: list[tuple[int, Step]]) -> Recording:
    rest = {step.native: step for _, step in steps if step.native is not None}
    starts = [at for at, (_, step) in enumerate(steps) if step.native is not None or b"snapshot" in step.body[:300]]
    return Recording(max(1, weight), steps, starts or [0], rest)


def _generators() -> Any:
    """benchmarks/frames.py, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("fuzz_frames", ROOT / "benchmarks" / "frames.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------- conversations


class Replay:
    """A recording, round and round. What the feed asks for sets it back to a snapshot."""

    def __init__(self, recording: Recording, draw: random.Random) -> None:
        self._recording = recording
        self._draw = draw
        self._asked: deque[Step] = deque()
        self._at = 0 if draw.random() < 0.7 else draw.randrange(len(recording.steps))

    def next(self) -> tuple[int, Step]:
        if self._asked:
            return 5 * MS, self._asked.popleft()
        wait_ns, step = self._recording.steps[self._at]
        self._at = (self._at + 1) % len(self._recording.steps)
        return wait_ns, step

    def hear(self, out: Send | Fetch) -> None:
        if isinstance(out, Fetch):
            step = self._recording.rest.get(out.native)
            if step is not None:
                self._asked.append(step)
                self._at = 0 if self._draw.random() < 0.5 else self._at
        elif self._draw.random() < 0.5:
            self._at = self._draw.choice(self._recording.starts)


class Soup:
    """Any frame of a corpus after any other."""

    def __init__(self, corpus: Corpus, draw: random.Random) -> None:
        self._corpus = corpus
        self._draw = draw

    def next(self) -> tuple[int, Step]:
        draw = self._draw
        if not self._corpus.recordings or draw.random() < 0.6:
            return 10 * MS, Step(None, draw.choice(self._corpus.documented))
        recording = draw.choice(self._corpus.recordings)
        near = min(len(recording.steps), 400)
        return 10 * MS, recording.steps[draw.randrange(near)][1]

    def hear(self, out: Send | Fetch) -> None:
        pass


class Town:
    """The simulator's server of one exchange and its market: one for all connections of a run."""

    def __init__(self, exchange: Exchange, seed: int) -> None:
        case = CASES[exchange.name]
        symbols = [symbol for native, symbol in case.names.items() if exchange.native(symbol) == native][-3:]
        configured: Any = SimpleNamespace(
            enabled_exchanges=lambda: {exchange.name: SimpleNamespace(symbols=symbols, fees=[])}
        )
        self.natives = [exchange.native(symbol) for symbol in symbols]
        self.market = Market(configured, (exchange.name,), seed, 10.0)
        self.server = SERVERS[exchange.name]({symbol: book for (_, symbol), book in self.market.books.items()})


class Visit:
    """A connection to the simulator's server, which answers what the feed sends and fetches."""

    def __init__(self, exchange: Exchange, town: Town, natives: Sequence[str], draw: random.Random) -> None:
        self._exchange = exchange
        self._town = town
        self._session = town.server.session("/stream", self._now())
        self._queue: deque[Step] = deque()
        depth = CASES[exchange.name].depth
        self._say(self._session.on_open(self._now()))
        for frame in exchange.subscribe(natives, depth, draw.random() < 0.5):
            self._say(self._session.on_client(frame, self._now()))

    def _now(self) -> int:
        """The fuzz's clock is that of the market: the exchange's times are about now."""
        return START_NS + self._town.market.next_ns()

    def _say(self, frames: Sequence[str]) -> None:
        self._queue.extend(Step(None, frame.encode()) for frame in frames)

    def next(self) -> tuple[int, Step]:
        market, before = self._town.market, self._town.market.next_ns()
        rounds = 0
        while not self._queue:
            rounds += 1
            for at, event in market.step(market.next_ns()):
                if isinstance(event, BookEvent):
                    self._town.server.before_book(event)
                    self._say(self._session.on_book(event, START_NS + at))
                else:
                    self._say(self._session.on_trade(event, START_NS + at))
            if rounds % 20 == 0:
                self._say(self._session.on_timer(self._now()))
            if rounds > 400:
                self._say(["{}"])  # nothing is subscribed any more
        return max(0, market.next_ns() - before), self._queue.popleft()

    def hear(self, out: Send | Fetch) -> None:
        if isinstance(out, Send):
            self._say(self._session.on_client(out.frame, self._now()))
            return
        assert self._exchange.snapshot_url is not None
        url = self._exchange.snapshot_url("", out.native, CASES[self._exchange.name].depth)
        answer = self._town.server.rest(url, self._now())
        if answer is not None and answer.status == 200:
            self._queue.append(Step(out.native, answer.body))


Conversation = Replay | Soup | Visit

# ---------------------------------------------------------------- damage

ODD = [
    *(b"null", b"true", b"false", b"-1", b"0", b"1", b"-0", b"0.0", b"-0.0", b"1180591620717411303424"),
    *(b"9223372036854775807", b"9223372036854775808", b"-9223372036854775809", b"9007199254740993", b"4294967295"),
    *(
        b"1e308",
        b"-1e308",
        b"1e400",
        b"1e-400",
        b"5e-324",
        b"0.1e1",
        b"1E-7",
        b"1e5",
        b"NaN",
        b"Infinity",
        b"-Infinity",
    ),
    *(b'""', b'"NaN"', b'"nan"', b'"inf"', b'"-inf"', b'"1e400"', b'"1_000"', b'" 1"', b'"1 "', b'"+1"', b'"0x10"'),
    *(b'"-0"', b'"-1"', b'"0"', b'"1e5"', b'"1E-7"', b'"1e-400"', b'"1e308"', b'"Infinity"', b'"1.2.3"', b'"00012.50"'),
    *('"\u0661\u0662"'.encode(), '"\uff11"'.encode(), '"\U0001f600"'.encode(), '"\u5e01"'.encode(), b'"\\u0000"'),
    *(
        b'"\\ud800"',
        b'"\\ud83d\\ude00"',
        b'"\x80"',
        b'"\\""',
        b'"Z"',
        b'"1970-01-01T00:00:00Z"',
        b'"2026-02-30T00:00:00Z"',
    ),
    *(
        b'"0001-01-01T00:00:00Z"',
        b'"9999-12-31T23:59:59.999999999Z"',
        b'"1969-12-31T23:59:59.5Z"',
        b'"2026-01-01T00:00:00.-5Z"',
    ),
    *(
        b'"2026-01-01T00:00:00+01:00"',
        b'"2026-01-01T00:00:00.1_2Z"',
        b'"10000-01-01T00:00:00Z"',
        b'"2026-W01-1T00:00:00Z"',
    ),
    *(b"[]", b"{}", b"[[]]", b"[{}]", b"[null]", b'[["1","1"]]', b'[["1"]]', b'["1","1"]', b'[["2","1"],["2","0"]]'),
    *(
        b'[{"price":1,"qty":2}]',
        b'[{"price":1e0,"qty":2.0}]',
        b'"snapshot"',
        b'"update"',
        b'"delta"',
        b'"book"',
        b'"error"',
    ),
]
"""JSON values (and what is none) that parsers trip over."""

HUGE = [
    b'"' + b"9" * 400 + b'"',
    b'"' + b"9" * 4200 + b'"',
    b'"' + b"7" * 5000 + b'"',
    b'"0.' + b"3" * 5000 + b'"',
    b"8" * 30,
    b"8" * 400,
    b"6" * 5000,
    b"0." + b"1" * 5000,
    b'"' + b"x" * 20_000 + b'"',
    b'"' + "\u5e01".encode() * 2_000 + b'"',
    b"[" * 200 + b"]" * 200,
    b"[" * 3000 + b"]" * 3000,
    b'{"a":' * 900 + b"1" + b"}" * 900,
    b"[" + b",".join(b'["%d","1"]' % (number + 1) for number in range(3_000)) + b"]",
    b"[" + b",".join(b'{"price":%d.0,"qty":1.0}' % (number + 1) for number in range(2_000)) + b"]",
]
GIANT = [
    b'"' + b"y" * 1_200_000 + b'"',
    b"[" + b",".join(b'["%d","1"]' % (number + 1) for number in range(20_000)) + b"]",
]

_SCALAR = re.compile(rb'[:,\[{]\s*("(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null)')
_MEMBER = re.compile(rb'"[A-Za-z_]+":("(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null|\[\]),?')
_WORD = re.compile(rb'"([A-Za-z_0-9/-]{1,24})"')
_RAW = re.compile(r'"@@(.*?)@@"')


def _raw(text: str) -> str:
    """Marks a number while a tree is changed, so that its digits survive."""
    return f"@@{text}@@"


class Mutator:
    """Damages frames. Other frames that it has seen are what it splices and swaps with."""

    def __init__(self, draw: random.Random, corpus: Corpus) -> None:
        self._draw = draw
        self._seen: deque[bytes] = deque(corpus.documented, maxlen=300)
        words = {word for frame in corpus.documented for word in _WORD.findall(frame)}
        for recording in corpus.recordings:
            words |= {word for _, step in recording.steps[:50] for word in _WORD.findall(step.body[:500])}
        self._words: list[str] = [word.decode() for word in sorted(words)]

    def see(self, frame: bytes) -> None:
        if len(frame) < 6_000:
            self._seen.append(frame)

    def damaged(self, frame: bytes) -> bytes:
        """Another frame, mostly like this one."""
        draw = self._draw
        for _ in range(1 if draw.random() < 0.75 else draw.randint(2, 4)):
            lot = draw.random()
            if lot < 0.46:
                frame = self._value(frame)
            elif lot < 0.54:
                frame = self._member(frame)
            elif lot < 0.72:
                frame = self._tree(frame)
            elif lot < 0.86:
                frame = self._bytes(frame)
            elif lot < 0.91:
                other = draw.choice(self._seen)
                frame = frame[: draw.randint(0, len(frame))] + other[draw.randint(0, len(other)) :]
            elif lot < 0.96:
                frame = json.dumps(self._random(4)).encode()
                frame = _RAW.sub(r"\1", frame.decode()).encode()
            elif lot < 0.98:
                frame = draw.choice(self._seen)
            elif lot < 0.99:
                frame = draw.randbytes(draw.choice((0, 1, 2, 10, 100, 1000)))
            else:
                frame = draw.choice(ODD)
        return frame

    # ------------------------------------------------ the text

    def _value(self, frame: bytes) -> bytes:
        """One scalar (or key) becomes something else; all other digits stay."""
        draw = self._draw
        found = _SCALAR.search(frame, draw.randint(0, len(frame))) or _SCALAR.search(frame)
        if found is None:
            return self._bytes(frame)
        start, end = found.span(1)
        return frame[:start] + self._instead(found[1]) + frame[end:]

    def _instead(self, token: bytes) -> bytes:
        draw, lot = self._draw, self._draw.random()
        text = token.strip(b'"')
        if text[:1].isdigit() and lot < 0.5:
            quote = b'"' if token[:1] == b'"' else b""
            return quote + self._number(text) + quote
        if lot < 0.8:
            if lot < 0.6:
                other = _SCALAR.search(draw.choice(self._seen), draw.randint(0, 100))
                if other is not None:
                    return bytes(other[1])
            return draw.choice(ODD)
        if lot < 0.9:
            return b'"' + draw.choice(self._words).encode() + b'"'
        if lot > 0.9995:
            return draw.choice(GIANT)
        return draw.choice(HUGE) if lot > 0.985 else draw.choice(ODD)

    def _number(self, text: bytes) -> bytes:
        """Another number, or nearly one."""
        draw, at = self._draw, self._draw.randrange(len(text))
        match draw.randrange(10):
            case 0 | 1:
                return text[:at] + b"%d" % draw.randrange(10) + text[at + 1 :]
            case 2 | 3 if text.isdigit() and len(text) < 30:
                return b"%d" % (int(text) + draw.choice((-2, -1, 1, 2, 1000, -1000)))
            case 4:
                return text[:at] + draw.choice((b".", b"_", b"e", b"-", b" ", b"0", b"00")) + text[at:]
            case 5:
                return b"-" + text
            case 6:
                return text + draw.choice((b"0", b"000000", b"e1", b"E-3", b"e300", b"9" * 30))
            case 7:
                return text[:at] or b"0"
            case 8:
                return b"0"
            case _:
                return b"0" + text

    def _member(self, frame: bytes) -> bytes:
        """One key with its value dropped or sent twice."""
        draw = self._draw
        found = _MEMBER.search(frame, draw.randint(0, len(frame))) or _MEMBER.search(frame)
        if found is None:
            return self._bytes(frame)
        if draw.random() < 0.5:
            return frame[: found.start()] + frame[found.end() :]
        again = found[0].rstrip(b",")
        if draw.random() < 0.5:
            again = again[: found.start(1) - found.start()] + self._instead(found[1])
        return frame[: found.start()] + again + b"," + frame[found.start() :]

    def _bytes(self, frame: bytes) -> bytes:
        draw = self._draw
        changed = bytearray(frame)
        for _ in range(draw.choice((1, 1, 1, 2, 5))):
            at = draw.randint(0, len(changed))
            match draw.randrange(5):
                case 0 if at < len(changed):
                    changed[at] ^= 1 << draw.randrange(8)
                case 1 if at < len(changed):
                    changed[at] = draw.randrange(256)
                case 2:
                    changed[at:at] = draw.randbytes(draw.choice((1, 1, 3)))
                case 3:
                    del changed[at : at + draw.choice((1, 1, 4, 40))]
                case _:
                    del changed[at:]
        return bytes(changed)

    # ------------------------------------------------ the tree

    def _tree(self, frame: bytes) -> bytes:
        """One container changed; the digits of all numbers stay as they are."""
        draw = self._draw
        if len(frame) > 8_000 and draw.random() < 0.9:
            return self._value(frame)
        try:
            tree = json.loads(frame, parse_float=_raw, parse_int=_raw, parse_constant=_raw)
        except (ValueError, RecursionError):
            return self._bytes(frame)
        containers = _containers(tree)
        if not containers:
            return json.dumps(self._random(4)).encode()
        try:
            self._change(draw.choice(containers))
            text = json.dumps(tree, separators=(",", ":"), ensure_ascii=draw.random() < 0.5)
        except RecursionError:
            return self._bytes(frame)
        return _RAW.sub(r"\1", text).encode("utf-8", "surrogatepass")

    def _change(self, box: Any) -> None:
        draw = self._draw
        places: list[Any] = list(box) if isinstance(box, dict) else list(range(len(box)))
        if not places:
            box.update({draw.choice(self._words): self._random(2)}) if isinstance(box, dict) else box.append(
                self._random(2)
            )
            return
        at, other = draw.choice(places), draw.choice(places)
        match draw.randrange(8):
            case 0:
                del box[at]
            case 1 | 2:
                box[at] = self._random(3)
            case 3:
                box[at], box[other] = box[other], box[at]
            case 4:
                box[at] = copy.deepcopy(box[other])
            case 5:
                box[at] = [box[at]] if draw.random() < 0.5 else {draw.choice(self._words): box[at]}
            case 6 if isinstance(box, list):
                box[at:at] = [copy.deepcopy(box[at])] * draw.choice((1, 1, 2, 20))
            case 6:
                box[draw.choice(self._words)] = box.pop(at)
            case _ if isinstance(box, list):
                draw.shuffle(box)
            case _:
                box[draw.choice(self._words)] = self._random(2)

    def _random(self, depth: int) -> Any:
        """Any JSON, of this protocol's words."""
        draw, lot = self._draw, self._draw.random()
        if depth and lot < 0.25:
            return {draw.choice(self._words): self._random(depth - 1) for _ in range(draw.randrange(5))}
        if depth and lot < 0.5:
            return [self._random(depth - 1) for _ in range(draw.randrange(4))]
        if lot < 0.65:
            return draw.choice(self._words)
        if lot < 0.8:
            number = round(10 ** draw.uniform(-6, 12), draw.randrange(9))
            return str(number) if draw.random() < 0.5 else number
        if lot < 0.99:
            return _raw(draw.choice(ODD).decode("utf-8", "replace"))
        return _raw(draw.choice(HUGE).decode())


def _containers(tree: Any) -> list[Any]:
    """All lists and dicts of a tree (of a large one, some)."""
    found: list[Any] = []
    pending = [tree]
    while pending and len(found) < 300:
        one = pending.pop()
        if isinstance(one, dict | list):
            found.append(one)
            pending.extend(one.values() if isinstance(one, dict) else one)
    return found


def mended(exchange: Exchange, feed: Feed, frame: bytes) -> bytes:
    """With the checksum that the damaged book now has: what is behind the check must stand damage, too."""
    if exchange.checksum is None:
        return frame
    try:
        (event,) = exchange.parse(frame)
        if not isinstance(event, Snapshot | Delta) or event.checksum is None:
            return frame
        book = Book(CASES[exchange.name].depth)
        if isinstance(event, Snapshot):
            book.replace(event.bids, event.asks, event.bid_tokens, event.ask_tokens)
        else:
            symbol = feed.symbol_of(event.symbol)
            book = next(copy.deepcopy(book) for name, _, book in feed.books() if name == symbol)
            book.apply(event.bids, event.asks, 0, event.bid_tokens, event.ask_tokens)
        return frame.replace(b"%d" % event.checksum, b"%d" % exchange.checksum(book))
    except (*MALFORMED, StopIteration, TypeError):
        return frame


# ---------------------------------------------------------------- rules


class Broken(Exception):
    """A rule was broken."""


class Hang(Exception):
    """No progress."""


def check(outputs: Sequence[object], levels: int, now_ns: int) -> None:
    """Every output is well formed.

    Raises:
        Broken: it is not; in words without the numbers.
    """
    if type(outputs) is not list:
        raise Broken("outputs are no list")
    for out in outputs:
        if isinstance(out, BookChanged):
            _check_side("bids", out.bids, -1, levels)
            _check_side("asks", out.asks, 1, levels)
            if not out.bids[0][0] < out.asks[0][0]:
                raise Broken("a published book is crossed")
            if out.received_ns != now_ns:
                raise Broken("a published book has another time of receipt")
        elif isinstance(out, Traded):
            if out.trade.price <= 0 or out.trade.size <= 0:  # NaN and infinity cannot be decoded
                raise Broken("price or size of a published trade is zero or less")
        elif isinstance(out, Send):
            try:
                out.frame.encode()
            except UnicodeEncodeError:
                raise Broken("a frame to send is no UTF-8") from None


def _check_side(name: str, rows: Sequence[tuple[float, float]], sign: int, levels: int) -> None:
    if not 0 < len(rows) <= levels:
        raise Broken(f"{name}: none or more than the configured levels")
    before = -math.inf
    for price, size in rows:
        if type(price) is not float or type(size) is not float:
            raise Broken(f"{name}: a price or size is no float")
        if not (0 < price < math.inf and 0 < size < math.inf):
            raise Broken(f"{name}: a price or size is not positive and finite")
        if price * sign <= before:
            raise Broken(f"{name}: not sorted")
        before = price * sign


class Decoding:
    """A publisher that decodes each message again."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()

    def publish(self, topic: str, key: str | bytes | None, value: bytes | None, *_: object) -> bool:
        message = decode(value)
        self.kinds[message.kind] += 1
        if len(value or b"") > MOST_BYTES:
            raise Broken(f"a {message.kind} message is larger than Kafka takes")
        return True


def largest(root: object) -> int:
    """Length of the longest list, dict or deque that belongs to a feed."""
    most, seen, pending = 0, {id(root)}, [root]
    while pending:
        one = pending.pop()
        if isinstance(one, list | dict | deque | set):
            most = max(most, len(one))
            if len(one) > MOST_HELD:
                return most
        for other in gc.get_referents(one):
            if isinstance(other, (str, bytes, int, float, tuple, type, Exchange)) or callable(other):
                continue
            if id(other) not in seen:
                seen.add(id(other))
                pending.append(other)
    return most


def rss_mb() -> float:
    """Resident memory of this process, without what the C library keeps for later."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        pass  # no GNU C library: a little more is shown
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 1e6
    except OSError:
        import resource  # not on every system, and no system has neither

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


# ---------------------------------------------------------------- a run

Input = tuple[str, tuple[Any, ...]]
"""A feed's method and its arguments, the clock last."""

MOST_KEPT = 3_000_000
"""Bytes of a connection's inputs that are kept to find the least conversation that shows a failure."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How one connection is configured."""

    exchange: Exchange
    names: Mapping[str, str]
    levels: int
    timing: Timing
    proven: frozenset[str]
    fast_tops: bool

    def feed(self, now_ns: int) -> Feed:
        return Feed(
            self.exchange,
            self.names,
            CASES[self.exchange.name].depth,
            self.levels,
            self.timing,
            now_ns,
            None,
            self.proven,
            self.fast_tops,
        )


@dataclass(slots=True)
class Failure:
    """A rule that was broken: how often, where first, and the shortest frame and least conversation that show it."""

    rule: str
    words: str
    frame_number: int
    frame: str
    count: int = 1
    least: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """What came of one adapter."""

    exchange: str
    seed: int
    frames: int = 0
    damaged: int = 0
    accepted: int = 0
    errors: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ERRORS, 0))
    reconnects: int = 0
    connections: int = 0
    live_share: float = 0.0
    published: dict[str, int] = field(default_factory=dict)
    slowest_ms: float = 0.0
    slowest_frame: str = ""
    frames_s: float = 0.0
    memory_mb: list[float] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    largest: int = 0
    failures: list[Failure] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            name: getattr(self, name) if name != "failures" else [vars_of(one) for one in self.failures]
            for name in self.__slots__
        }


def vars_of(one: Failure) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__slots__}


def shortened(frame: bytes | str, most: int = 400) -> str:
    text = repr(frame)
    return text if len(text) <= most else f"{text[: most - 100]} ...({len(frame)} in all)... {text[-60:]}"


def play(feed: Feed, emitter: Emitter, levels: int, given: Input) -> list[Any]:
    """One input as the shell gives it; its outputs, checked and published."""
    name, args = given
    outputs: list[Any] = getattr(feed, name)(*args)
    check(outputs, levels, args[-1])
    emitter.emit(outputs)
    return outputs


class Fuzz:
    """One adapter, one seed."""

    def __init__(self, exchange: Exchange, seed: int, corpus: Corpus | None = None) -> None:
        self._exchange = exchange
        self._draw = random.Random(f"{exchange.name} {seed}")
        self._corpus = corpus or corpus_of(exchange)
        self._mutator = Mutator(self._draw, self._corpus)
        self._town = Town(exchange, seed)
        self._publisher = Decoding()
        self._now = START_NS
        self._emitter = Emitter(exchange.name, self._publisher, self._now)  # type: ignore[arg-type]  # a fake of it
        self._held: list[Step] = []
        self._late: deque[Step] = deque()
        self._kept: list[Input] = []
        self._kept_bytes = 0
        self._rate = 0.0
        self._answers = 1.0
        self._mood_ends = 0
        self._last: bytes | str = b""
        self._live = 0
        self._failures: dict[str, Failure] = {}
        self.report = Report(exchange.name, seed)
        self._connect(None)

    # ------------------------------------------------ the run

    def run(self, frames: int, beat: Callable[[], None] = lambda: None) -> Report:
        """So many frames; `beat` is called from time to time."""
        report = self.report
        began = time.perf_counter()
        marks = [max(1, frames // 20), max(1, frames // 2), frames]
        while report.frames < frames:
            if report.frames >= self._mood_ends:
                self._new_mood(frames)
            if report.frames % 500 == 0:
                beat()
            self._one()
            if report.frames >= marks[0]:
                del marks[0]
                self._measure()
                self._connect(None)  # what one feed may hold is measured apart; what stays without it is a leak
                report.memory_mb.append(round(rss_mb(), 1))
                report.blocks.append(sys.getallocatedblocks())
            if report.frames % 5_000 == 0:
                self._measure()
        report.frames_s = round(report.frames / (time.perf_counter() - began))
        report.published = dict(sorted(self._publisher.kinds.items()))
        report.live_share = round(self._live / max(1, report.frames), 3)
        growth_mb = report.memory_mb[-1] - report.memory_mb[-2]
        growth = report.blocks[-1] - report.blocks[-2]
        if growth_mb > GROWTH_MB or growth > GROWTH_BLOCKS:
            self._fail("memory grows", f"{growth_mb:.1f} MB and {growth:,} pieces in the second half", b"")
        report.failures = list(self._failures.values())
        return report

    def _new_mood(self, frames: int) -> None:
        """How much is damaged, and how often the feed is answered, for a while."""
        draw = self._draw
        self._rate = draw.choices((0.0, 0.03, 0.3, 0.7, 1.0), (3, 20, 32, 30, 15))[0]
        self._answers = draw.choice((1.0, 1.0, 1.0, 0.5, 0.0))
        self._mood_ends = self.report.frames + draw.choice((100, 300, 300, 1_000))
        if self._rate < 0.1 and draw.random() < 0.04:
            self._mood_ends += min(12_000, frames // 20)  # long enough for every buffer to fill
            self._rate, self._answers = 0.0, draw.choice((0.0, 0.0, 1.0))

    def _one(self) -> None:
        draw = self._draw
        wait_ns, step = self._next()
        self._now += wait_ns
        if step.native is not None and draw.random() >= self._answers:
            return
        if draw.random() < 0.002:
            self._now += draw.choice((1_000, 3_000, 20_000, 100_000)) * MS
        if draw.random() < 0.03 and not self._other_input():
            return
        step = self._damaged(step)
        body: bytes | str = step.body
        if draw.random() < 0.04:
            body = step.body.decode("utf-8", draw.choice(("replace", "surrogateescape")))
        if step.native is None:
            self._give(("on_frame", (body, self._now)), body)
        else:
            self._give(("on_rest", (step.native, body, self._now)), body)

    def _next(self) -> tuple[int, Step]:
        """The conversation's next frame; now and then one is lost, comes twice or late."""
        draw = self._draw
        if self._late:
            return 0, self._late.popleft()
        wait_ns, step = self._conversation.next()
        if self._rate and draw.random() < self._rate * 0.1:
            self.report.damaged += 1
            match draw.randrange(4):
                case 0:
                    return self._conversation.next()
                case 1:
                    self._late.extend([step] * draw.choice((1, 1, 3)))
                case 2:
                    self._held.append(step)
                    return self._conversation.next()
                case _ if self._held:
                    draw.shuffle(self._held)
                    self._late.extend(self._held)
                    self._held.clear()
                case _:
                    pass
            if len(self._held) > 20:
                self._late.extend(self._held)
                self._held.clear()
        return wait_ns, step

    def _damaged(self, step: Step) -> Step:
        draw, mutator = self._draw, self._mutator
        if draw.random() >= self._rate:
            if draw.random() < 0.05:
                mutator.see(step.body)
            return step
        self.report.damaged += 1
        if step.native is None and draw.random() < 0.1:
            step = Step(None, draw.choice(self._corpus.documented))
            if draw.random() < 0.5:
                return step
        body = mutator.damaged(step.body)
        if draw.random() < 0.3:
            body = mended(self._exchange, self._feed, body)
        return Step(step.native, body)

    def _other_input(self) -> bool:
        """Time, a pong, metadata, a look; whether the connection is still there."""
        draw, now = self._draw, self._now
        lot = draw.random()
        if lot < 0.7:
            return self._give(("on_timer", (now,)))
        if lot < 0.9:
            return self._give(("on_proof", (now,)))
        if lot < 0.93:
            names = list(CASES[self._exchange.name].names)
            halted = dict.fromkeys(draw.sample(names, draw.choice((0, 0, 1, 2))), "delisted")
            return self._give(("on_halted", (halted, now)))
        feed = self._feed
        feed.covers(feed)
        feed.unverified()
        feed.all_live()
        feed.lag.raw_ns()
        return self._give(("announce", (now,)))

    # ------------------------------------------------ one input

    def _give(self, given: Input, body: bytes | str | None = None) -> bool:
        """One input; whether the connection is still there."""
        report, feed = self.report, self._feed
        name = given[0]
        self._keep(given, len(body or b""))
        if body is not None:
            report.frames += 1
            self._last = body
        began = time.thread_time_ns()
        try:
            outputs = play(feed, self._emitter, self._setup.levels, given)
        except DOCUMENTED.get(name, ()) as error:
            report.errors[type(error).__name__] += 1
            self._timed(time.thread_time_ns() - began, body)
            self._lose(error)
            return False
        except Exception as error:  # all that is not documented is what we are looking for
            self._fail(*_rule_of(error, name), body or b"", self._kept)
            self._connect(None)
            return False
        if body is not None:
            self._timed(time.thread_time_ns() - began, body)
            report.accepted += 1
            self._live += any(state == "live" for _, state, _ in feed.books())
        return self._hear(outputs)

    def _hear(self, outputs: list[Any]) -> bool:
        for out in outputs:
            if isinstance(out, Send | Fetch):
                if self._draw.random() < self._answers:
                    self._conversation.hear(out)
            elif isinstance(out, Reconnect):
                self.report.reconnects += 1
                self._lose(LinkLost(out.reason))
                return False
            elif isinstance(out, Replace) and self._draw.random() < 0.5:
                self._connect(self._feed)
                self._give(("announce", (self._now,)))
                return False
        return True

    def _timed(self, took_ns: int, body: bytes | str | None) -> None:
        took_ms = took_ns / 1e6
        if body is not None and took_ms > self.report.slowest_ms:
            self.report.slowest_ms = round(took_ms, 2)
            self.report.slowest_frame = shortened(body, 160)
        if took_ms > SLOW_S * 1e3:
            self._fail("a frame takes too long", f"{took_ms:.0f} ms", body or b"")

    def _lose(self, error: Exception) -> None:
        """As the shell does: the books are told to be lost, then a new connection; after a refusal, a new start."""
        if self.report.connections % 50 == 0 or len(self._kept) > 300:
            self._measure()
        try:
            play(self._feed, self._emitter, self._setup.levels, ("on_lost", (self._now, str(error))))
        except Exception as failed:  # nothing is documented
            self._keep(("on_lost", (self._now, str(error))), 0)
            self._fail(*_rule_of(failed, "on_lost"), self._last, self._kept[-1:])
        if isinstance(error, RateLimited):
            if not 0 <= error.retry_after_s <= 3600:
                self._fail("an impossible wait", str(error), b"")
            self._now += int(error.retry_after_s * 1e9)
        self._connect(None if isinstance(error, UnknownSymbol | SubscriptionRefused) else self._feed)

    def _connect(self, before: Feed | None) -> None:
        """A new feed and another conversation."""
        draw = self._draw
        timing = draw.choice(
            (
                Timing(),
                Timing(5_000 * MS, 60_000 * MS, 2_000 * MS),
                Timing(5_000 * MS, 3_000 * MS, None),
                Timing(500 * MS, 500 * MS, 2_000 * MS),
            )
        )
        proven = before.verified() if before is not None and draw.random() < 0.8 else frozenset()
        known = CASES[self._exchange.name].names
        natives = draw.sample(list(known), 3 if self._rate > 0.1 else len(known))
        names = {native: known[native] for native in natives}
        self._setup = Setup(self._exchange, names, draw.choice((1, 5, 10, 10)), timing, proven, draw.random() < 0.5)
        self._feed = self._setup.feed(self._now)
        if before is not None:
            self._feed.adopt(before)
        self._conversation = self._new_conversation()
        self._late.clear()
        self._held.clear()
        self._kept.clear()
        self._kept_bytes = 0
        self.report.connections += 1
        self._give(("on_connected", (self._now,)))

    def _new_conversation(self) -> Conversation:
        draw = self._draw
        visits = 0.5 if self._rate < 0.1 else 0.15 if self._rate < 0.5 else 0.03  # they cost more than the others
        if draw.random() < visits:
            natives = [native for native in self._setup.names if native in self._town.natives]
            return Visit(self._exchange, self._town, natives, draw)
        if self._corpus.recordings and draw.random() < 0.8:
            weights = [one.weight for one in self._corpus.recordings]
            return Replay(draw.choices(self._corpus.recordings, weights)[0], draw)
        return Soup(self._corpus, draw)

    # ------------------------------------------------ failures

    def _keep(self, given: Input, size: int) -> None:
        self._kept_bytes += size + 100
        if self._kept_bytes < MOST_KEPT:
            self._kept.append(given)
        elif self._kept:
            self._kept.clear()

    def _measure(self) -> None:
        held = largest(self._feed)
        self.report.largest = max(self.report.largest, held)
        if held > MOST_HELD:
            self._fail("a feed holds too much", f"a container of {held}", b"")

    def _fail(self, rule: str, words: str, body: bytes | str, shown_by: list[Input] | None = None) -> None:
        known = self._failures.get(rule)
        if known is not None:
            known.count += 1
            if body and len(shortened(body)) < len(known.frame):
                known.frame = shortened(body)
            return
        failure = self._failures[rule] = Failure(rule, words, self.report.frames, shortened(body))
        if shown_by:
            failure.least = [
                f"{name}({', '.join(shortened(arg) for arg in args[:-1])})"
                for name, args in least(self._setup, list(shown_by), rule)
            ]


def _rule_of(error: Exception, name: str) -> tuple[str, str]:
    """A failure's name, equal for equal failures, and its words."""
    words = f"{type(error).__name__}: {error}"[:300]
    if isinstance(error, Broken):
        return str(error), words
    if isinstance(error, UndecodableRecord):
        return "a published message cannot be decoded: " + re.sub(r"\d+", "#", str(error))[:150], words
    passed = [one for one in traceback.extract_tb(error.__traceback__) if ".venv" not in one.filename]
    if any(Path(one.filename).name == "emitter.py" for one in passed):
        name = "the emitter"
    return f"{type(error).__name__} out of {name}, {Path(passed[-1].filename).name} in {passed[-1].name}", words


def least(setup: Setup, inputs: list[Input], rule: str, budget: int = 15_000) -> list[Input]:
    """The fewest inputs (and the least frames) that still break the rule; empty if they do not alone."""

    def shows(some: list[Input]) -> bool:
        nonlocal budget
        budget -= len(some) + 5
        feed = setup.feed(some[0][1][-1] if some and some[0][0] != "on_lost" else START_NS)
        emitter = Emitter(setup.exchange.name, Decoding(), START_NS)  # type: ignore[arg-type]
        for at, given in enumerate(some):
            try:
                play(feed, emitter, setup.levels, given)
            except Exception as error:
                return at == len(some) - 1 and _rule_of(error, given[0])[0] == rule
        return False

    if not shows(inputs):
        return []
    size = len(inputs) // 2
    while size and budget > 0:
        at = 0
        while at < len(inputs) - 1 and budget > 0:
            fewer = inputs[:at] + inputs[min(at + size, len(inputs) - 1) :]
            if shows(fewer):
                inputs = fewer
            else:
                at += size
        size //= 2
    for at, (name, args) in enumerate(inputs):
        if name not in ("on_frame", "on_rest"):
            continue
        first, last = inputs[:at], inputs[at + 1 :]
        make = functools.partial(_with_body, first, (name, args), last)
        body = _smallest(args[-2], lambda body, make=make: budget > 0 and shows(make(body)))  # type: ignore[misc]
        if body is not None:
            inputs = make(body)
    return inputs


def _with_body(first: list[Input], given: Input, last: list[Input], body: bytes) -> list[Input]:
    name, args = given
    return [*first, (name, (*args[:-2], body, args[-1])), *last]


def _smallest(body: bytes | str, shows: Callable[[bytes], bool]) -> bytes | None:
    """The frame without all the parts that can be left out; None if that shows nothing."""
    try:
        tree = json.loads(body, parse_float=_raw, parse_int=_raw, parse_constant=_raw)
        if not shows(_text(tree)):
            return None
    except (ValueError, RecursionError):
        return None
    for box in _containers(tree):
        for at in list(box) if isinstance(box, dict) else reversed(range(len(box))):
            before = copy.copy(box)
            del box[at]
            if not shows(_text(tree)):
                box.clear()
                box.update(before) if isinstance(box, dict) else box.extend(before)
    return _text(tree)


def _text(tree: Any) -> bytes:
    return _RAW.sub(r"\1", json.dumps(tree, separators=(",", ":"))).encode()


# ---------------------------------------------------------------- the command


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The emitter logs each change of a book: not here."""
    before: Any = emitting.log
    emitting.log = SimpleNamespace(info=lambda *_, **__: None)
    try:
        yield
    finally:
        emitting.log = before


def fuzz(exchange: Exchange, frames: int, seed: int, beat: Callable[[], None] = lambda: None) -> Report:
    """Drive one adapter with so many frames."""
    with quiet():
        return Fuzz(exchange, seed).run(frames, beat)


def table(reports: Sequence[Report]) -> Table:
    """One line each."""
    short = ("exchange", "frames", "damaged", "accepted", *ERRORS, "Reconnect", "live", "slowest ms", "frames/s", "MB")
    shown = Table(title=f"fuzz, seed {reports[0].seed}", title_justify="left")
    for column in (*short, "held", "broken"):
        shown.add_column(column, justify="left" if column == "exchange" else "right")
    for one in reports:
        shown.add_row(
            one.exchange,
            *(f"{number:,}" for number in (one.frames, one.damaged, one.accepted, *one.errors.values())),
            *(f"{one.reconnects:,}", f"{one.live_share:.0%}", f"{one.slowest_ms:g}", f"{one.frames_s:,.0f}"),
            *(" ".join(f"{mb:.0f}" for mb in one.memory_mb), f"{one.largest:,}", str(len(one.failures))),
        )
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--exchange", choices=sorted(EXCHANGES), help="only this adapter")
    parser.add_argument("--frames", type=int, default=1_000_000, help="for each adapter")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the report there, too")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 200, soft_wrap=True)
    reports = []
    for name in [options.exchange] if options.exchange else list(EXCHANGES):
        reports.append(fuzz(EXCHANGES[name], options.frames, options.seed, _alarm))
        signal.setitimer(signal.ITIMER_REAL, 0)
        console.print(table(reports[-1:]))
        for failure in reports[-1].failures:
            console.print(f"BROKEN: {failure.rule}, {failure.count} times", markup=False)
            console.print(
                f"  first: --exchange {name} --seed {options.seed}, frame {failure.frame_number}", markup=False
            )
            console.print(f"  {failure.words}\n  {failure.frame}", markup=False)
            shown = failure.least if len(failure.least) < 9 else [*failure.least[:3], "...", *failure.least[-4:]]
            for line in shown:
                console.print(f"    {line}", markup=False)
    if len(reports) > 1:
        console.print(table(reports))
    if options.json is not None:
        options.json.write_text(json.dumps([one.as_dict() for one in reports], indent=2) + "\n")
    return 1 if any(one.failures for one in reports) else 0


def _alarm() -> None:
    """Wait anew for a hang."""

    def hang(number: int, frame: object) -> None:
        raise Hang(f"no progress for {HANG_S:g} s")

    signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)


if __name__ == "__main__":
    sys.exit(main())
