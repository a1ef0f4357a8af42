"""Faults: the schedule and what it does to frames and books (pure), then seen by clients over real sockets."""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from services.simulator.capture import Recording, TimedFrame
from services.simulator.faults import (
    FRAME_KINDS,
    GENERATED_ONLY,
    KINDS,
    MOST_FAULTS,
    Crossing,
    Fault,
    Faults,
    Line,
    Running,
    corrupted,
    from_json,
    merged,
    read,
)
from services.simulator.market import BookEvent, Market
from services.simulator.service import FaultControl, ReplayedExchange, Simulation, listen, serve_app
from shared import settings
from shared.errors import InputError

CONFIGURED = settings.load()
SECOND = 1_000_000_000
WAIT_S = 10.0
"""Longest wait for something that must come."""

SHORT_S = 0.4
"""How long we look at something that must not come."""


def engine(seed: int = 1) -> Faults:
    faults = Faults(random.Random(seed))
    faults.cover("kraken", ["BTC-USD", "ETH-USD"])
    faults.cover("coinbase", ["BTC-USD", "SOL-USD"])
    return faults


def given(faults: Faults, now_ns: int = 0, **fields: Any) -> Running:
    """Schedule one fault, and begin what is due."""
    (running,) = faults.add([Fault(**{"exchange": "kraken", **fields})], now_ns)
    faults.tick(now_ns)
    return running


# ---------------------------------------------------------------- reading


def test_a_file_of_faults_is_read(tmp_path):
    file = tmp_path / "faults.toml"
    file.write_text(
        '[[fault]]\nkind = "stall"\nexchange = "kraken"\nat_s = 5\n\n[[fault]]\nkind="halt"\nexchange="*"\n'
    )
    assert read(file) == [Fault(kind="stall", exchange="kraken", at_s=5), Fault(kind="halt", exchange="*")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fault = ", "not TOML"),
        ("", r"holds no fault; allowed are \[\[fault\]\] tables"),
        ("fault = 3", "holds no fault"),
        ("fault = [3]", "fault 1: must be an object with kind and exchange"),
        ('[fault]\nkind="stall"', "holds no fault"),
        ("[[faults]]", r"unknown faults; allowed are \[\[fault\]\] tables only"),
        ('[[fault]]\nkind="stall"', "fault 1: exchange: Field required"),
        ('[[fault]]\nkind="explode"\nexchange="*"', "fault 1: kind: Input should be 'drop', 'duplicate'"),
        ('[[fault]]\nkind="stall"\nexchange="*"\nfor=3', "for: no such field; there are kind, exchange, symbol, at_s"),
        ('[[fault]]\nkind="stall"\nexchange="*"\nfor_s=0', "for_s: Input should be greater than 0"),
        ('[[fault]]\nkind="stall"\nexchange="*"\nfor_s=nan', "for_s: Input should be"),
        ('[[fault]]\nkind="stall"\nexchange="*"\nat_s="5"', "at_s: Input should be a valid number"),
        ('[[fault]]\nkind="drop"\nexchange="*"\nshare=2', "share: Input should be less than or equal to 1"),
        ('[[fault]]\nkind="stall"\nexchange="*"\nsymbol="BTC-USD"', "symbol: not for stall; only for drop"),
        ('[[fault]]\nkind="cross"\nexchange="*"\nsymbol="BTC/USD"', "symbol: 'BTC/USD' is not of the form BASE-QUOTE"),
        ('[[fault]]\nkind="close"\nexchange="*"\nshare=0.5', "share: not for close; only for drop"),
        ('[[fault]]\nkind="drop"\nexchange="*"\nstatus=503', "status: not for drop; only for refuse, rate_limit"),
        ('[[fault]]\nkind="rate_limit"\nexchange="*"\nstatus=503', "status: of rate_limit, allowed are 429, 418, 403"),
        ('[[fault]]\nkind="announce"\nexchange="*"\nfor_s=3', "for_s: not for announce"),
        ('[[fault]]\nkind="close"\nexchange="*"\nnotice_s=3', "notice_s: not for close; only for announce"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it_and_what_is_allowed(tmp_path, text, words):
    file = tmp_path / "faults.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"/nowhere\.toml: No such file"):
        read(Path("/nowhere.toml"))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"[]", "must be one fault"),
        (b"3", "must be one fault"),
        (b'[{"kind":"stall","exchange":"*"},{"kind":"x"}]', "fault 2: kind: Input should be"),
        (b'{"kind":"stall"}', "request: exchange: Field required"),
    ],
)
def test_a_wrong_request_is_one_line(body, words):
    with pytest.raises(InputError, match=words):
        from_json(body)


# ---------------------------------------------------------------- the schedule


def test_a_fault_begins_at_its_time_and_ends_after_its_duration():
    faults = engine()
    (one,) = faults.add([Fault(kind="stall", exchange="kraken", at_s=5, for_s=2)], 10 * SECOND)
    assert faults.tick(14 * SECOND) == []
    assert faults.listing(14 * SECOND)[0] == {
        "id": "1",
        "state": "scheduled",
        "kind": "stall",
        "exchange": "kraken",
        "at_s": 5,
        "for_s": 2,
        "begins_in_s": 1.0,
        "struck": 0,
    }
    assert faults.tick(15 * SECOND) == [("began", one)]
    assert faults.active("kraken", "stall") == [one]
    assert faults.active("coinbase", "stall") == []
    assert faults.listing(16 * SECOND)[0]["ends_in_s"] == 1.0
    assert faults.tick(16 * SECOND) == []
    assert faults.tick(17 * SECOND) == [("ended", one)]
    assert faults.active("kraken", "stall") == []
    assert faults.listing(17 * SECOND)[0]["state"] == "over"


def test_without_a_duration_it_lasts_until_it_is_cleared():
    faults = engine()
    one = given(faults, kind="stall")
    assert faults.tick(10**18) == []
    assert faults.clear("2") == []
    assert faults.clear("1") == [one]
    assert faults.tick(10**18) == [("cleared", one)]
    assert faults.tick(10**18) == []
    assert faults.listing(10**18) == []


@pytest.mark.parametrize(
    ("fields", "ends_ns"),
    [
        ({"kind": "close"}, 0),
        ({"kind": "close", "for_s": 3}, 3 * SECOND),
        ({"kind": "announce"}, 5 * SECOND),
        ({"kind": "announce", "notice_s": 0.5}, SECOND // 2),
    ],
)
def test_what_strikes_once_is_active_for_one_tick_or_for_its_notice(fields, ends_ns):
    faults = engine()
    one = given(faults, **fields)
    assert one.state == "active", "even if no time has passed"
    assert one.ends_ns == ends_ns
    assert faults.tick(ends_ns) == [("ended", one)]


def test_clearing_all_takes_what_is_scheduled_too_and_tells_only_of_what_was_active():
    faults = engine()
    later, active = given(faults, kind="stall", at_s=9), given(faults, kind="halt")
    assert faults.clear() == [later, active]
    assert faults.tick(20 * SECOND) == [("cleared", active)]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"exchange": "mtgox"}, "exchange: 'mtgox' is not simulated here; allowed are kraken, coinbase, *"),
        ({"kind": "cross", "symbol": "SOL-USD"}, "symbol: kraken has no SOL-USD; allowed are BTC-USD, ETH-USD"),
        ({"kind": "cross", "symbol": "XRP-USD", "exchange": "*"}, "allowed are BTC-USD, ETH-USD, SOL-USD"),
    ],
)
def test_what_cannot_strike_here_is_refused_with_all_that_came_with_it(fields, words):
    faults = engine()
    wrong = Fault(**{"kind": "stall", "exchange": "kraken", **fields})
    with pytest.raises(InputError) as caught:
        faults.add([Fault(kind="stall", exchange="*"), wrong], 0, "file.toml")
    assert "file.toml: fault 2: " in str(caught.value)
    assert words in str(caught.value)
    assert faults.listing(0) == []


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_replay_only_what_needs_no_market(kind):
    faults = Faults(random.Random(1))
    faults.cover("binance", None)
    fault = Fault(kind=kind, exchange="*", **({"symbol": "ANY-USD"} if kind in FRAME_KINDS else {}))
    if kind in GENERATED_ONLY:
        with pytest.raises(InputError, match=f"{kind} needs the generated market; on a replay allowed are drop"):
            faults.add([fault], 0)
    else:
        assert len(faults.add([fault], 0)) == 1


def test_there_is_a_most():
    faults = engine()
    faults.add([Fault(kind="stall", exchange="*")] * MOST_FAULTS, 0)
    with pytest.raises(InputError, match="allowed are 100"):
        faults.add([Fault(kind="stall", exchange="*")], 0)


def test_a_fault_of_all_exchanges_names_the_symbols_that_each_has():
    faults = engine()
    one = given(faults, kind="halt", exchange="*")
    assert faults.struck_symbols("kraken", "halt") == {"BTC-USD": one, "ETH-USD": one}
    assert faults.struck_symbols("coinbase", "halt") == {"BTC-USD": one, "SOL-USD": one}
    faults.clear()
    two = given(faults, kind="halt", exchange="*", symbol="SOL-USD")
    assert faults.struck_symbols("kraken", "halt") == {}
    assert faults.struck_symbols("coinbase", "halt") == {"SOL-USD": two}


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"kind": "refuse"}, (503, None)),
        ({"kind": "refuse", "status": 500, "retry_after_s": 9}, (500, 9)),
        ({"kind": "rate_limit"}, (429, 5)),
        ({"kind": "rate_limit", "status": 418, "retry_after_s": 60}, (418, 60)),
        ({"kind": "rate_limit", "status": 451}, (451, None)),
    ],
)
def test_what_a_newcomer_is_answered(fields, refusal):
    faults = engine()
    assert faults.refusal("kraken") is None
    one = given(faults, **fields)
    assert faults.refusal("kraken") == refusal
    assert faults.refusal("coinbase") is None
    assert one.struck == 1


# ---------------------------------------------------------------- frames

BTC = '{"channel":"book","data":[{"symbol":"BTC/USD","n":1}]}'
ETH = '{"channel":"book","data":[{"symbol":"ETH/USD","n":2}]}'
BEAT = '{"channel":"heartbeat"}'
ACK = '{"method":"subscribe","result":{"channel":"book","symbol":"BTC/USD"},"success":true}'
FRAMES = [BTC, ETH, BEAT, ACK]


@pytest.mark.parametrize(
    ("fields", "out", "struck"),
    [
        ({"kind": "stall"}, FRAMES, 0),
        ({"kind": "drop", "exchange": "coinbase"}, FRAMES, 0),
        ({"kind": "drop"}, [], 4),
        ({"kind": "drop", "symbol": "BTC-USD"}, [ETH, BEAT, ACK], 1),
        ({"kind": "duplicate"}, [BTC, BTC, ETH, ETH, BEAT, BEAT, ACK, ACK], 4),
        ({"kind": "duplicate", "symbol": "ETH-USD"}, [BTC, ETH, ETH, BEAT, ACK], 1),
        ({"kind": "reorder"}, [ETH, BTC, ACK, BEAT], 2),
        ({"kind": "silent", "symbol": "BTC-USD"}, [ETH, BEAT, ACK], 1),
        ({"kind": "silent"}, [BEAT, ACK], 2),
        ({"kind": "drop", "share": 0}, FRAMES, 0),
    ],
)
def test_what_goes_out(fields, out, struck):
    faults = engine()
    one = given(faults, **fields)
    assert Line(faults, "kraken").passed(FRAMES) == out
    assert one.struck == struck


def test_a_frame_held_back_of_a_symbol_comes_after_the_next_of_that_symbol():
    faults = engine()
    given(faults, kind="reorder", symbol="BTC-USD")
    assert Line(faults, "kraken").passed([BTC, ETH, BEAT, BTC.replace("1", "3")]) == [
        ETH,
        BEAT,
        BTC.replace("1", "3"),
        BTC,
    ]


def test_a_frame_that_is_held_back_when_the_fault_ends_goes_out():
    faults = engine()
    given(faults, kind="reorder")
    line = Line(faults, "kraken")
    assert line.passed([BTC]) == []
    assert line.release() == []
    faults.clear()
    assert line.passed([ETH]) == [BTC, ETH]
    given(faults, kind="reorder")
    assert line.passed([BTC]) == []
    assert line.release(last=True) == [BTC]


def test_a_share_of_the_frames_is_struck_the_same_with_the_same_seed():
    def dropped(seed: int) -> list[int]:
        faults = engine(seed)
        one = given(faults, kind="drop", share=0.2)
        line = Line(faults, "kraken")
        found = [number for number in range(1000) if not line.passed([f"{number}"])]
        assert one.struck == len(found)
        return found

    assert dropped(1) == dropped(1) != dropped(2)
    assert 150 < len(dropped(1)) < 250


def test_corrupted_is_one_sign_changed_or_a_cut():
    draw = random.Random(1)
    cuts = 0
    for _ in range(500):
        out = corrupted(BTC, draw)
        if len(out) < len(BTC):
            assert BTC.startswith(out)
            cuts += 1
            continue
        ((old, new),) = [(a, b) for a, b in zip(BTC, out, strict=True) if a != b]
        assert (old.isdigit(), old.isupper(), old.islower()) == (new.isdigit(), new.isupper(), new.islower())
    assert 50 < cuts < 250
    assert corrupted("", draw) == ""
    assert corrupted("{}", draw) in ("", "{")


def test_all_faults_of_frames_at_once():
    faults = engine()
    for kind in ("reorder", "duplicate", "corrupt"):
        given(faults, kind=kind)
    out = Line(faults, "kraken").passed([BTC, ETH])
    assert len(out) == 4
    assert out[0] == out[1] != ETH
    assert out[2] == out[3] != BTC


def test_what_was_never_sent_leaves_no_gap_in_a_counter_of_the_connection():
    faults = engine()
    frames = [f'{{"channel":"l2_data","sequence_num":{n},"p":"{"BTC" if n % 2 else "SOL"}-USD"}}' for n in range(6)]
    line = Line(faults, "coinbase")
    silent = given(faults, kind="silent", exchange="coinbase", symbol="BTC-USD")
    out = line.passed(frames[:4])
    faults.clear(silent.id)
    out += line.passed(frames[4:])
    assert [(json.loads(f)["sequence_num"], json.loads(f)["p"]) for f in out] == [
        (0, "SOL-USD"),
        (1, "SOL-USD"),
        (2, "SOL-USD"),
        (3, "BTC-USD"),
    ]


# ---------------------------------------------------------------- books


class Copy:
    """A client's book, made of changes."""

    def __init__(self, bids: dict[int, int], asks: dict[int, int]) -> None:
        self.bids, self.asks = dict(bids), dict(asks)

    def apply(self, event: BookEvent) -> None:
        for side, changes in ((self.bids, event.bids), (self.asks, event.asks)):
            for price, size in changes:
                side.pop(price, None)
                if size:
                    side[price] = size


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_crossed_book_is_crossed_for_its_clients_only_and_right_afterwards(seed):
    market, other = Market(CONFIGURED, ("kraken",), seed, 20.0), Market(CONFIGURED, ("kraken",), seed, 20.0)
    book = market.books["kraken", "BTC-USD"]
    client = Copy(book.bids, book.asks)
    crossing = Crossing(book, given(engine(), kind="cross"))
    with crossing.laid():
        assert max(book.bids) < min(book.asks), "nothing was told yet"
    client.apply(crossing.over(BookEvent("kraken", "BTC-USD", [], [])))
    told = 0
    for _, event in market.step(60 * SECOND):
        if isinstance(event, BookEvent) and event.symbol == "BTC-USD":
            client.apply(crossing.over(event))
            told += 1
            assert max(client.bids) > min(client.asks)
            with crossing.laid():
                assert (client.bids, client.asks) == (book.bids, book.asks)
            assert max(book.bids) < min(book.asks)
    assert told > 500
    client.apply(crossing.closed())
    assert (client.bids, client.asks) == (book.bids, book.asks)
    assert len(list(other.step(60 * SECOND))) > told, "the market itself went on as without the fault:"
    assert other.books == market.books


def test_changes_are_merged_to_what_counts_in_the_end():
    first = BookEvent("kraken", "BTC-USD", [(1, 5), (2, 6)], [(9, 1)])
    later = BookEvent("kraken", "BTC-USD", [(2, 0)], [(8, 3)])
    assert merged(first, later) == BookEvent("kraken", "BTC-USD", [(1, 5), (2, 0)], [(9, 1), (8, 3)])


# ---------------------------------------------------------------- over sockets


@dataclass
class Live:
    """A simulation with its addresses and its faults."""

    faults: Faults
    control: FaultControl
    simulation: Simulation
    addresses: dict[str, dict[str, str]]

    def begin(self, **fields: Any) -> Running:
        (one,) = self.faults.add([Fault(**fields)], time.monotonic_ns())
        self.control.look()
        return one

    def clear(self) -> None:
        self.faults.clear()
        self.control.look()

    def ws(self, exchange: str) -> str:
        return self.addresses[exchange]["ws_url"]

    async def get(self, exchange: str, path: str, timeout_s: float = WAIT_S) -> httpx2.Response:
        async with httpx2.AsyncClient(trust_env=False, timeout=timeout_s) as http:
            return await http.get(self.addresses[exchange]["rest_url"] + path)


@pytest.fixture
async def running() -> AsyncIterator[Live]:
    faults = Faults(random.Random(1))
    simulation = Simulation(CONFIGURED, 1, 20.0, None, time.time_ns, faults)
    control = FaultControl(faults, simulation.exchanges)
    async with contextlib.AsyncExitStack() as stack:
        addresses = {}
        for name, exchange in simulation.exchanges.items():
            server, addresses[name] = await listen(exchange, "127.0.0.1", 0)
            await stack.enter_async_context(server)
        tasks = [asyncio.create_task(simulation.run()), asyncio.create_task(control.run())]
        try:
            yield Live(faults, control, simulation, addresses)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results), results


async def received(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(WAIT_S):
        message: dict[str, Any] = json.loads(await socket.recv(), parse_float=str)
        return message


async def matching(
    socket: ClientConnection, wanted: Callable[[dict[str, Any]], bool], timeout_s: float = WAIT_S
) -> dict[str, Any]:
    """The next frame that is wanted."""
    async with asyncio.timeout(timeout_s):
        while True:
            message = await received(socket)
            if wanted(message):
                return message


async def nothing_comes(socket: ClientConnection) -> None:
    """The stream dries up, and stays dry for a while."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await asyncio.wait_for(socket.recv(), SHORT_S)
            except TimeoutError:
                return


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  # a count of the code under test, which offers no event
            await asyncio.sleep(0.01)


async def kraken(socket: ClientConnection, *symbols: str) -> None:
    params = {"channel": "book", "symbol": list(symbols), "depth": 10}
    await socket.send(json.dumps({"method": "subscribe", "params": params}))


async def coinbase(socket: ClientConnection, *products: str) -> None:
    await socket.send(json.dumps({"type": "subscribe", "channel": "level2", "product_ids": list(products)}))


def of_book(message: dict[str, Any]) -> bool:
    return message.get("channel") == "book"


class KrakenBook:
    """A naive client of one book with depth 10: truncates, and checks every checksum."""

    def __init__(self) -> None:
        self.sides: dict[str, dict[float, tuple[str, str]]] = {"bids": {}, "asks": {}}

    def apply(self, message: dict[str, Any]) -> None:
        (data,) = message["data"]
        if message["type"] == "snapshot":
            self.sides = {"bids": {}, "asks": {}}
        for side, held in self.sides.items():
            for level in data[side]:
                held.pop(float(level["price"]), None)
                if float(level["qty"]):
                    held[float(level["price"])] = (level["price"], level["qty"])
            for price in sorted(held, reverse=side == "bids")[10:]:
                del held[price]
        asks, bids = self.sides["asks"], self.sides["bids"]
        top = [asks[p] for p in sorted(asks)] + [bids[p] for p in sorted(bids, reverse=True)]
        text = "".join(part.replace(".", "").lstrip("0") for level in top for part in level)
        assert zlib.crc32(text.encode()) == int(data["checksum"])

    @property
    def crossed(self) -> bool:
        return max(self.sides["bids"]) >= min(self.sides["asks"])


async def test_stall_is_a_half_open_socket_and_a_rest_that_hangs(running):
    async with connect(running.ws("kraken"), ping_interval=None, max_queue=None) as socket:
        await kraken(socket, "BTC/USD")
        await matching(socket, of_book)
        await (await socket.ping())
        fault = running.begin(kind="stall", exchange="kraken")
        pong = await socket.ping()
        await nothing_comes(socket)  # after what was on its way
        assert not pong.done()
        with pytest.raises(httpx2.TimeoutException):
            await running.get("kraken", "/0/public/Time", SHORT_S)
        with pytest.raises(TimeoutError):
            await connect(running.ws("kraken"), open_timeout=SHORT_S)
        assert fault.struck == 3, "one connection, one request, one handshake"
        assert (await running.get("binance", "/api/v3/time")).status_code == 200
        running.clear()
        await asyncio.wait_for(pong, WAIT_S)
        await matching(socket, of_book)
        assert (await running.get("kraken", "/0/public/Time")).status_code == 200


async def test_a_stalled_request_is_cut_in_the_end(running, monkeypatch):
    """With a server of its own, whose patience is short."""
    monkeypatch.setattr("services.simulator.service.HANG_S", SHORT_S)
    server, address = await listen(running.simulation.exchanges["kraken"], "127.0.0.1", 0)
    async with server:
        running.begin(kind="stall", exchange="kraken")
        async with httpx2.AsyncClient(trust_env=False, timeout=WAIT_S) as http:
            with pytest.raises(httpx2.RemoteProtocolError):
                await http.get(f"{address['rest_url']}/0/public/Time")


@pytest.mark.parametrize(
    ("fields", "status", "after"),
    [
        ({"kind": "refuse"}, 503, None),
        ({"kind": "refuse", "status": 499}, 499, None),
        ({"kind": "rate_limit", "retry_after_s": 7}, 429, "7"),
        ({"kind": "rate_limit", "status": 418}, 418, "5"),
        ({"kind": "rate_limit", "status": 403}, 403, None),
    ],
)
async def test_newcomers_are_refused_while_who_is_connected_stays(running, fields, status, after):
    async with connect(running.ws("kraken")) as socket:
        await kraken(socket, "BTC/USD")
        fault = running.begin(exchange="kraken", **fields)
        with pytest.raises(InvalidStatus) as caught:
            await connect(running.ws("kraken"))
        assert caught.value.response.status_code == status
        assert caught.value.response.headers.get("retry-after") == after
        answer = await running.get("kraken", "/0/public/Time")
        assert (answer.status_code, answer.headers.get("retry-after")) == (status, after)
        assert fault.struck == 2
        await matching(socket, of_book)
        running.clear()
        async with connect(running.ws("kraken")):
            pass


async def test_close_strikes_once_or_for_as_long_as_it_lasts(running):
    async with connect(running.ws("kraken")) as socket, connect(running.ws("coinbase-exchange")) as other:
        await received(socket)
        fault = running.begin(kind="close", exchange="kraken")
        with pytest.raises(ConnectionClosed) as caught:
            await received(socket)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1001
        assert fault.struck == 1
        await (await other.ping())
    async with connect(running.ws("kraken")) as socket:
        await kraken(socket, "BTC/USD")
        await matching(socket, of_book)
        running.begin(kind="close", exchange="kraken", for_s=60)
        with pytest.raises(ConnectionClosed):
            await matching(socket, lambda message: False)
    async with connect(running.ws("kraken")) as socket:
        with pytest.raises(ConnectionClosed):
            await matching(socket, lambda message: False)


async def test_announce_tells_who_is_there_and_closes_only_them(running):
    streams = f"{running.ws('binance')}/stream?streams=btcusdt@depth@100ms"
    async with connect(streams) as old:
        await received(old)
        running.begin(kind="announce", exchange="binance", notice_s=0.5)
        notice = await matching(old, lambda message: message.get("data", message).get("e") != "depthUpdate")
        assert notice.get("data", notice)["e"] == "serverShutdown"
        async with connect(streams) as new:
            with pytest.raises(ConnectionClosed) as caught:
                await matching(old, lambda message: False)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.reason == "the announced end"
            await received(new)


async def test_an_announced_end_that_is_cleared_closes_nobody(running):
    async with connect(running.ws("kraken")) as socket:
        await kraken(socket, "BTC/USD")
        running.begin(kind="announce", exchange="kraken", notice_s=SHORT_S)
        running.clear()
        with pytest.raises(TimeoutError):
            await matching(socket, lambda message: False, 2 * SHORT_S)


async def test_cross_is_seen_by_a_kraken_client_with_right_checksums(running):
    async with connect(running.ws("kraken")) as socket:
        await kraken(socket, "BTC/USD")
        book = KrakenBook()
        book.apply(await matching(socket, of_book))
        assert not book.crossed
        fault = running.begin(kind="cross", exchange="kraken", symbol="BTC-USD")
        async with asyncio.timeout(WAIT_S):
            while not book.crossed:
                book.apply(await matching(socket, of_book))
        for _ in range(20):
            book.apply(await matching(socket, of_book))
            assert book.crossed
        assert fault.struck >= 20
        async with connect(running.ws("kraken")) as late:
            await kraken(late, "BTC/USD", "ETH/USD")
            first, second = KrakenBook(), KrakenBook()
            first.apply(await matching(late, lambda m: of_book(m) and m["data"][0]["symbol"] == "BTC/USD"))
            second.apply(await matching(late, lambda m: of_book(m) and m["data"][0]["symbol"] == "ETH/USD"))
            assert (first.crossed, second.crossed) == (True, False)
        running.clear()
        async with asyncio.timeout(WAIT_S):
            while book.crossed:
                book.apply(await matching(socket, of_book))
        for _ in range(20):
            book.apply(await matching(socket, of_book))
            assert not book.crossed


async def test_cross_keeps_binance_ids_in_their_chain_and_shows_in_the_snapshot(running):
    streams = f"{running.ws('binance')}/stream?streams=btcusdt@depth@100ms"

    async def best() -> tuple[float, float]:
        snapshot = (await running.get("binance", "/api/v3/depth?symbol=BTCUSDT&limit=5")).json()
        return float(snapshot["bids"][0][0]), float(snapshot["asks"][0][0])

    async with connect(streams) as socket:
        last = (await received(socket))["data"]["u"]
        running.begin(kind="cross", exchange="binance", symbol="BTC-USDT")
        bid, ask = await best()
        assert bid > ask
        running.clear()
        bid, ask = await best()
        assert bid < ask
        for _ in range(30):
            data = (await received(socket))["data"]
            assert data["U"] == last + 1
            assert data["u"] >= data["U"]
            last = data["u"]


OKX_ARG = {"channel": "books", "instId": "BTC-USDT"}


@pytest.mark.parametrize(
    ("exchange", "subscription"),
    [
        ("okx", {"op": "subscribe", "args": [OKX_ARG]}),
        ("bybit", {"op": "subscribe", "args": ["orderbook.50.BTCUSDT"]}),
    ],
)
async def test_numbers_stay_in_their_chain_through_a_cross_and_a_silence(running, exchange, subscription):
    sides: dict[str, dict[float, float]] = {"bids": {}, "asks": {}}
    last = 0

    async def follow() -> None:
        nonlocal last
        message = await matching(socket, lambda m: "data" in m)
        data = message["data"] if exchange == "bybit" else message["data"][0]
        if message.get("type", message.get("action")) == "snapshot":
            sides["bids"], sides["asks"] = {}, {}
        else:
            assert int(data["u"]) - 1 == last if exchange == "bybit" else int(data["prevSeqId"]) == last
        last = int(data["u"] if exchange == "bybit" else data["seqId"])
        for side, held in sides.items():
            for price, size, *_ in data[side if exchange == "okx" else side[0]]:
                held.pop(float(price), None)
                if float(size):
                    held[float(price)] = float(size)

    def crossed() -> bool:
        return max(sides["bids"]) >= min(sides["asks"])

    async def followed(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await follow()

    def true() -> bool:
        return sides == {
            "bids": {book.price(p): book.size(s) for p, s in book.bids.items()},
            "asks": {book.price(p): book.size(s) for p, s in book.asks.items()},
        }

    book = running.simulation.market.books[exchange, "BTC-USDT"]
    path = "/v5/public/spot" if exchange == "bybit" else "/ws/v5/public"
    async with connect(running.ws(exchange) + path) as socket:
        await socket.send(json.dumps(subscription))
        await follow()
        assert not crossed()
        running.begin(kind="cross", exchange=exchange, symbol="BTC-USDT")
        await followed(crossed)
        silent = running.begin(kind="silent", exchange=exchange, symbol="BTC-USDT")
        await until(lambda: silent.struck >= 10)
        running.faults.clear(silent.id)
        running.control.look()
        for _ in range(10):
            await follow()
            assert crossed()
        running.clear()
        await followed(lambda: not crossed())
        await followed(true)


async def test_a_fault_of_coinbase_is_not_one_of_its_second_source_which_has_the_same_books(running):
    assert running.simulation.seconds == {"coinbase": "coinbase-exchange"}

    async def second() -> tuple[float, float]:
        book = (await running.get("coinbase-exchange", "/products/BTC-USD/book?level=1")).json()
        return float(book["bids"][0][0]), float(book["asks"][0][0])

    async with connect(running.ws("coinbase")) as first:
        running.begin(kind="cross", exchange="coinbase", symbol="BTC-USD")
        await coinbase(first, "BTC-USD")
        snapshot = await matching(first, lambda message: message["channel"] == "l2_data")
        sides: dict[str, list[float]] = {"bid": [], "offer": []}
        for row in snapshot["events"][0]["updates"]:
            sides[row["side"]].append(float(row["price_level"]))
        assert max(sides["bid"]) > min(sides["offer"])
        bid, ask = await second()
        assert bid < ask
        assert abs(bid / max(sides["bid"]) - 1) < 0.01
        running.clear()
        running.begin(kind="refuse", exchange="coinbase-exchange")
        assert (await running.get("coinbase-exchange", "/time")).status_code == 503
        assert (await running.get("coinbase", "/api/v3/brokerage/time")).status_code == 200


async def test_halt_shows_in_the_metadata_and_kraken_says_its_state(running):
    async def statuses() -> dict[str, str]:
        pairs = (await running.get("kraken", "/0/public/AssetPairs")).json()["result"]
        return {pair["wsname"]: pair["status"] for pair in pairs.values()}

    def of_status(message: dict[str, Any]) -> bool:
        return message.get("channel") == "status"

    async with connect(running.ws("kraken")) as socket:
        assert (await received(socket))["data"][0]["system"] == "online"
        running.begin(kind="halt", exchange="kraken", symbol="BTC-USD")
        found = await statuses()
        assert found["XBT/USD"] == "cancel_only"
        assert found["ETH/USD"] == "online"
        running.begin(kind="halt", exchange="*")
        assert "online" not in (await statuses()).values()
        assert (await matching(socket, of_status))["data"][0]["system"] == "cancel_only"
        async with connect(running.ws("kraken")) as late:
            systems = [(await matching(late, of_status))["data"][0]["system"] for _ in range(2)]
            assert systems == ["online", "cancel_only"]
        running.clear()
        assert (await matching(socket, of_status))["data"][0]["system"] == "online"
        assert set((await statuses()).values()) == {"online"}


async def test_silent_is_acknowledged_and_brings_nothing(running):
    running.begin(kind="silent", exchange="coinbase", symbol="BTC-USD")
    async with connect(running.ws("coinbase")) as socket:
        await coinbase(socket, "BTC-USD", "ETH-USD")
        messages = [await received(socket) for _ in range(40)]
    acks = [message for message in messages if message["channel"] == "subscriptions"]
    assert acks[0]["events"][0]["subscriptions"]["level2"] == ["BTC-USD", "ETH-USD"]
    products = {event["product_id"] for message in messages for event in message["events"] if "product_id" in event}
    assert products == {"ETH-USD"}
    assert [message["sequence_num"] for message in messages] == list(range(40)), "it is silence, not a gap"


async def test_after_a_silence_the_client_is_told_what_it_missed(running):
    async with connect(running.ws("coinbase")) as socket:
        await coinbase(socket, "BTC-USD")
        sides: dict[str, dict[float, float]] = {"bid": {}, "offer": {}}

        def apply(message: dict[str, Any]) -> None:
            for event in message["events"] if message["channel"] == "l2_data" else ():
                for row in event["updates"]:
                    held, price, size = sides[row["side"]], float(row["price_level"]), float(row["new_quantity"])
                    held.pop(price, None)
                    if size:
                        held[price] = size

        apply(await received(socket))
        fault = running.begin(kind="silent", exchange="coinbase", symbol="BTC-USD")
        await until(lambda: fault.struck >= 20)
        running.clear()
        book = running.simulation.market.books["coinbase", "BTC-USD"]
        true = {
            "bid": {book.price(p): book.size(s) for p, s in book.bids.items()},
            "offer": {book.price(p): book.size(s) for p, s in book.asks.items()},
        }
        async with asyncio.timeout(WAIT_S):
            while sides != true:
                apply(await received(socket))


async def test_frames_are_struck_after_the_opening_acknowledgements_and_heartbeats_too(running):
    fault = running.begin(kind="drop", exchange="kraken")
    async with connect(running.ws("kraken")) as socket:
        assert (await received(socket))["channel"] == "status"
        await kraken(socket, "BTC/USD")
        await until(lambda: fault.struck >= 10)
        running.clear()
        assert (await received(socket))["type"] == "update", "neither acknowledgement nor snapshot came"


async def test_faults_strike_a_replay_too():
    frames = (*(TimedFrame(0.0, f'{{"n":{number}}}') for number in range(4)), TimedFrame(60.0, "late"))
    faults = Faults(random.Random(1))
    replay = ReplayedExchange(Recording("binance", frames, {}), 1.0, False, faults)
    control = FaultControl(faults, {"binance": replay})

    def begin(**fields: Any) -> Running:
        (one,) = faults.add([Fault(exchange="binance", **fields)], time.monotonic_ns())
        control.look()
        return one

    server, address = await listen(replay, "127.0.0.1", 0)
    async with server:
        begin(kind="duplicate")
        async with connect(address["ws_url"]) as socket:
            assert [(await received(socket))["n"] for _ in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
            begin(kind="stall")
            pong = await socket.ping()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(pong), SHORT_S)
            faults.clear()
            control.look()
            await asyncio.wait_for(pong, WAIT_S)
            begin(kind="close")
            with pytest.raises(ConnectionClosed):
                await received(socket)
        begin(kind="rate_limit")
        with pytest.raises(InvalidStatus):
            await connect(address["ws_url"])


# ---------------------------------------------------------------- the control endpoint


async def test_faults_are_listed_added_and_cleared_by_http(running):
    url, server, task = await serve_app(running.control.app, "127.0.0.1", 0)
    async with httpx2.AsyncClient(base_url=url, trust_env=False) as http:
        assert (await http.get("/faults")).json() == {"faults": []}
        added = await http.post("/faults", json={"kind": "refuse", "exchange": "kraken", "status": 500})
        assert (added.status_code, added.json()) == (201, {"ids": ["1"]})
        assert (await running.get("kraken", "/0/public/Time")).status_code == 500, "at once"
        two = [{"kind": "stall", "exchange": "okx", "at_s": 100}, {"kind": "halt", "exchange": "*"}]
        assert (await http.post("/faults", json=two)).json() == {"ids": ["2", "3"]}
        rows = (await http.get("/faults")).json()["faults"]
        assert [(row["id"], row["state"]) for row in rows] == [("1", "active"), ("2", "scheduled"), ("3", "active")]
        assert rows[0]["struck"] == 1
        cleared = (await http.delete("/faults/1")).json()["cleared"]
        assert [(row["id"], row["state"], row["struck"]) for row in cleared] == [("1", "over", 1)]
        assert (await running.get("kraken", "/0/public/Time")).status_code == 200
        again = await http.delete("/faults/1")
        assert (again.status_code, again.json()) == (
            404,
            {"error": "no fault 1; GET /faults lists those that are known"},
        )
        assert [row["id"] for row in (await http.delete("/faults")).json()["cleared"]] == ["2", "3"]
        assert (await http.get("/faults")).json() == {"faults": []}
        for body, words in ((b"{", "not JSON"), (b'{"kind":"stall","exchange":"mtgox"}', "'mtgox' is not simulated")):
            refused = await http.post("/faults", content=body)
            assert refused.status_code == 400
            assert words in refused.json()["error"]
            assert "\n" not in refused.json()["error"]
    server.should_exit = True
    await task


# ---------------------------------------------------------------- the command


def arb(*arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ARB_")}
    command = [sys.executable, "-m", "services.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=clean, timeout=60)


@contextlib.contextmanager
def simulator(*arguments: str) -> Iterator[dict[str, Any]]:
    """A simulator of its own process; its ready line."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ARB_")}
    command = [sys.executable, "-m", "services.cli", "simulate", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(15) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
            process.stdout.close()
            process.stderr.close()


def test_a_file_and_the_command_switch_faults_of_a_running_simulator(tmp_path):
    file = tmp_path / "faults.toml"
    file.write_text('[[fault]]\nkind = "stall"\nexchange = "kraken"\nat_s = 600\n')
    with simulator("--faults", str(file)) as ready:
        second = ready["exchanges"]["coinbase"]["second"]
        assert httpx2.get(f"{second['rest_url']}/time", trust_env=False).status_code == 200
        assert "coinbase-exchange" not in ready["exchanges"]
        url = ("--url", ready["control_url"])
        (row,) = json.loads(arb("faults", "list", "--json", *url).stdout)["faults"]
        assert (row["kind"], row["state"], row["at_s"]) == ("stall", "scheduled", 600)
        added = arb("faults", "add", "rate_limit", "okx", "--for-s", "500", "--retry-after-s", "3", *url)
        assert (added.returncode, added.stdout) == (0, "fault 2: rate_limit on okx\n")
        listed = arb("faults", "list", *url).stdout
        assert "for_s 500.0, retry_after_s 3, ends_in_s" in listed
        wrong = arb("faults", "add", "stall", "kraken", "--symbol", "BTC-USD", *url)
        assert wrong.returncode == 2
        assert wrong.stderr.startswith("arb: request: symbol: not for stall; only for drop")
        assert len(wrong.stderr.splitlines()) == 1
        unknown = arb("faults", "clear", "9", *url)
        assert (unknown.returncode, unknown.stderr[:15]) == (2, "arb: no fault 9")
        assert "stall" in arb("faults", "clear", "1", *url).stdout
        assert [row["id"] for row in json.loads(arb("faults", "clear", "--json", *url).stdout)["cleared"]] == ["2"]
        assert arb("faults", "list", *url).stdout == "no faults\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["faults", "list", "--url", "http://127.0.0.1:1"], 3, "no simulator's control endpoint at http://127.0.0.1:1"),
        (["faults", "list", "--url", "ftp://127.0.0.1"], 2, "--url ftp://127.0.0.1: "),
        (["faults", "clear", "x/y"], 2, "no fault 'x/y'"),
        (["simulate", "--faults", "/nowhere.toml"], 2, "/nowhere.toml: No such file"),
    ],
)
def test_what_cannot_be_is_one_line_and_its_exit_code(arguments, code, words):
    done = arb(*arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_something_else_at_the_address_is_no_simulator():
    with simulator() as ready:
        done = arb("faults", "list", "--url", ready["exchanges"]["kraken"]["rest_url"])
        assert done.returncode == 3
        assert "HTTP 404" in done.stderr


def test_a_fault_of_what_is_not_simulated_stops_the_start(tmp_path):
    file = tmp_path / "faults.toml"
    file.write_text('[[fault]]\nkind = "stall"\nexchange = "mtgox"\n')
    done = arb("simulate", "--faults", str(file))
    assert done.returncode == 2
    assert f"arb: {file}: exchange: 'mtgox' is not simulated here; allowed are binance" in done.stderr


@pytest.mark.parametrize("command", [[], ["list"], ["add"], ["clear"]], ids=str)
def test_the_command_explains_itself(command):
    done = arb("faults", *command, "--help")
    assert done.returncode == 0
    assert len(done.stdout) > 100
    if command == ["add"]:
        assert all(kind in done.stdout for kind in KINDS)
