"""Quiet ticks: the compiled way against the general one, and what it must leave to it."""

import importlib
import os
import random
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.detector import plain, quiet
from services.detector.books import tops_of
from services.detector.engine import Engine
from services.detector.service import AHEAD_NS, Detector
from shared.errors import UndecodableRecord
from shared.kafka import Record
from shared.messages import book_value, decode, read_tick

MS = 1_000_000
T0 = 1_795_000_000_000 * MS
PLACES = [("binance", "USDT"), ("coinbase", "USD"), ("kraken", "USD"), ("bybit", "USDT"), ("okx", "USDC")]

try:
    compiled = importlib.import_module("services.detector._quiet")
except ImportError:
    compiled = None

needs_it = pytest.mark.skipif(compiled is None, reason="it was not compiled: no C compiler or Python's headers")


def test_it_is_compiled_where_it_can_be():
    """Else the tests below would be left out, and nobody would know."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if shutil.which("cc") and headers.exists():
        assert compiled is not None, "run `make compiled`"


@needs_it
def test_what_is_compiled_is_what_is_here():
    assert quiet.PLAIN in (None, ("ARB_PLAIN=1", "unset ARB_PLAIN")), quiet.PLAIN
    assert (quiet.Quiet is compiled.Quiet) == (quiet.PLAIN is None)


# ---------------------------------------------------------------- one record


def value(bids="[[100,1],[99.5,2.25]]", asks="[[101,1e-3],[102.5,3]]", sequence="7", received=T0, exchange_ns="null"):
    return (
        f'{{"kind":"book","v":1,"exchange":"kraken","symbol":"BTC-USD","sequence":{sequence},"received_ns":{received},'
        f'"exchange_ns":{exchange_ns},"bids":{bids},"asks":{asks}}}'
    ).encode()


def held(module, *others):
    """A book of kraken that is known to a `Quiet`, with others of its coin beside it."""
    coin = module.CoinTops(owned=True, bridge=False)

    class Book(module.BookTop):
        mids = 0

        def note_mid(self):
            self.mids, self.next_mid_ns = self.mids + 1, self.received_ns + 1000 * MS

    def book(bid_rate=1.0, ask_rate=1.0):
        fx = module.Quote()
        fx.bid, fx.ask = bid_rate, ask_rate
        made = Book(fx)
        coin.add(made)
        return made

    top = book()
    for bid, ask, *rate in others:
        other = book(*rate)
        coin.mixed = coin.mixed or bool(rate)
        other.put(T0, b"", b"", bid, ask)
        coin.moved(other, 1)
    found = module.Quiet()
    found.know("kraken", "BTC-USD", top)
    return found, top


def taken(found, record, sure_ns=T0, until_ns=1 << 62, now_ns=0):
    return found.take([record], 0, now_ns, sure_ns, until_ns, 1)


@needs_it
def test_a_quiet_book_is_taken_in_as_it_stands():
    found, top = held(compiled, (99, 103))
    assert taken(found, value(), now_ns=T0 - 5) == (1, T0)
    assert (top.best_bid, top.best_ask, top.sequence, top.version, top.state) == (100.0, 101.0, 7, 1, "live")
    assert (top.received_ns, top.alive_ns, top.touched_ns) == (T0, T0, T0)
    assert (top.bids_text, top.asks_text) == (b"[[100,1],[99.5,2.25]]", b"[[101,1e-3],[102.5,3]]")
    assert top.mids == 1
    assert taken(found, value(sequence=8, received=T0 - 1), now_ns=T0) == (1, T0), "time never goes back"
    assert top.mids == 1, "one a second"


@needs_it
@pytest.mark.parametrize(
    "record",
    [
        None,
        b"",
        bytearray(value()),
        value(sequence="07"),
        value(sequence="7.0"),
        value(sequence=10**19),
        value(received=T0 + 1),
        value(received=2**63),
        value(received='"now"'),
        value(exchange_ns="nul"),
        value(exchange_ns="-1"),
        value(bids="[]"),
        value(asks="[]"),
        value(bids="[[100,1],]"),
        value(bids="[[100,1][99,1]]"),
        value(bids="[[100,1]"),
        value(bids="[[100]]"),
        value(bids="[[100,1,1]]"),
        value(bids="[[-100,1]]"),
        value(bids="[[0,1]]"),
        value(bids="[[1e-19,1]]"),
        value(asks="[[1e19,1]]"),
        value(asks="[[01,1]]"),
        value(asks="[[1.,1]]"),
        value(asks="[[.5,1]]"),
        value(asks="[[1e,1]]"),
        value(asks="[[NaN,1]]"),
        value(asks='[["1",1]]'),
        value(bids="[ [100,1]]"),
        value()[:-1],
        value() + b" ",
        value() + b"}",
        value().replace(b'"v":1', b'"v":2'),
        value().replace(b"kraken", b"krak\\u0065n"),
        value().replace(b"kraken", b"kra\nken"),
        value().replace(b"kraken", b"bybit"),
        value().replace(b"BTC-USD", b"ETH-USD"),
        value(bids="[[101.5,1]]"),  # above its own ask
        value(bids="[[103.5,1]]", asks="[[104,1]]"),  # above another's
        value(bids="[[97,1]]", asks="[[98,1]]"),  # below another's bid
        value(bids="[[97,1]]", asks="[[98.9,1]]"),
    ],
    ids=lambda record: repr(record)[:150],
)
def test_what_is_not_quiet_changes_nothing(record):
    found, top = held(compiled, (99, 103))
    assert taken(found, record) == (0, 0)
    assert (top.version, top.sequence, top.state, top.bids_text) == (0, -1, "syncing", b"[]")
    assert taken(found, value()) == (1, T0), "and the next one is taken in"


@needs_it
def test_a_crossing_in_usd_only_is_not_quiet():
    assert taken(held(compiled, (99, 103, 1.0, 1.0))[0], value()) == (1, T0)
    assert taken(held(compiled, (99, 103, 1.03, 1.0))[0], value()) == (0, 0), "its bid in USD is above ours to buy at"
    assert taken(held(compiled, (99, 103, 1.0, 0.95))[0], value()) == (0, 0)


@needs_it
@pytest.mark.parametrize("what", ["bridge", "bridged", "disowned", "gap", "outcome", "forgotten", "repeated"])
def test_a_book_of_which_more_may_follow_is_not_quiet(what):
    found, top = held(compiled)
    until_ns = 1 << 62
    if what == "gap":
        top.gaps.append("one")
    elif what == "outcome":
        until_ns = T0 - 1
    elif what == "forgotten":
        found.forget("kraken", "BTC-USD")
    elif what == "repeated":
        top.sequence = 7
    else:
        setattr(top.coin, "owned" if what == "disowned" else what, what != "disowned")
    assert taken(found, value(), until_ns=until_ns) == (0, 0)
    assert top.version == 0


number = st.one_of(
    st.floats(1e-12, 1e12),
    st.decimals(min_value="1e-9", max_value=10**9, places=9).map(lambda d: f"{d:f}".rstrip("0").rstrip(".") or "0"),
    st.integers(1, 10**18),
    st.tuples(st.integers(1, 10**9), st.integers(-30, 30)).map(lambda m: f"{m[0]}E{m[1]:+d}"),
)


@needs_it
@given(number, number)
def test_a_price_is_the_double_that_the_general_way_reads(bid, ask):
    record = value(bids=f"[[{bid},1]]", asks=f"[[{ask},1]]")
    found, top = held(compiled)
    at, _ = taken(found, record)
    if not at:
        return  # left to the general way: too long for certain, or crossed
    _, _, best_bid, best_ask = tops_of(read_tick(record))
    assert (top.best_bid, top.best_ask) == (best_bid, best_ask)


@needs_it
@given(st.data())
def test_what_is_taken_in_the_general_way_would_have_read_the_same(data):
    """Records damaged in any place: none is taken in that is no book, or another one."""
    record = bytearray(value())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(record) - 1))
        how = data.draw(st.sampled_from(["change", "drop", "repeat"]))
        if how == "change":
            record[at] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from(b'0123456789.eE-+,[]{}":')))
        elif how == "drop":
            del record[at]
        else:
            record.insert(at, record[at])
    found, top = held(compiled)
    if not taken(found, bytes(record), sure_ns=1 << 62)[0]:
        assert top.version == 0
        return
    tick = read_tick(bytes(record))
    bids, asks, bid, ask = tops_of(tick)
    assert (top.sequence, top.received_ns, top.best_bid, top.best_ask) == (tick.sequence, tick.received_ns, bid, ask)
    assert (top.bids_text, top.asks_text) == (bids, asks)


@needs_it
def test_a_name_with_a_line_end_is_left_to_the_general_way_which_refuses_it():
    found, top = held(compiled)
    found.know("kra\nken", "BTC-USD", top)
    assert taken(found, value().replace(b"kraken", b"kra\nken")) == (0, 0)


@pytest.mark.parametrize("received", [2**62 + 1, 2**63 - 2, 2**64])
def test_a_moment_beyond_all_clocks_is_refused_before_anything_changes(configured, received):
    engine = Engine(configured)
    with pytest.raises(UndecodableRecord):
        engine.on_message(read_tick(value(received=received)), T0)
    assert engine.take_quiet([value(received=received)], 0, T0, T0) == (0, T0)


def test_an_opening_in_a_far_future_ends_nothing(configured):
    message = decode((Path(__file__).parents[1] / "shared" / "stored" / "v1" / "opportunity.json").read_bytes())
    engine = Engine(configured)
    engine.expect(message.changed(detected_ns=2**63 - 1, phase="opened"), set())
    assert engine.take_quiet([b"x"], 0, T0, T0) == (0, T0)


# ---------------------------------------------------------------- many


price = st.sampled_from([0.0, 98.0, 99.0, 99.5, 100.0, 100.5, 101.0, 102.0, float("inf")])
rate = st.sampled_from([(1.0, 1.0), (0.99, 1.0), (1.0, 1.01), (0.0, float("inf"))])


@needs_it
@given(st.lists(st.tuples(st.integers(0, 9), price, price, rate, st.booleans(), st.integers(1, 3)), max_size=60))
def test_books_side_by_side_are_the_same_in_both(moves):
    sides = [module.CoinTops(owned=True, bridge=False) for module in (compiled, plain)]
    modules, version = (compiled, plain), 1
    for slot, bid, ask, (bid_rate, ask_rate), mixed, turns in moves:
        said = []
        if turns == 3:
            version += 1
        for coin, module in zip(sides, modules, strict=True):
            if slot >= len(coin.books):
                fx = module.Quote()
                fx.bid, fx.ask = bid_rate, ask_rate
                coin.add(module.BookTop(fx))
            book = coin.books[min(slot, len(coin.books) - 1)]
            coin.mixed = mixed
            if turns == 3:
                book.fx.bid, book.fx.ask = bid_rate, ask_rate
            book.put(T0, b"b", b"a", bid, ask)
            said.append((book.slot, coin.moved(book, version), coin.crosses_converted(version)))
        assert said[0] == said[1]


class Out:
    def __init__(self):
        self.published = []

    def publish(self, topic, key, value, *, then=None):
        self.published.append((topic, key, value))
        if then is not None:
            then()
        return True


def run(configured, batches, *, general):
    """What a detector publishes, and what it holds at the end; `general`: without the quiet way."""
    out, now = Out(), [T0]
    engine = Engine(configured)
    if general:
        engine._quiet = plain.Quiet()
    detector = Detector(
        engine, out, lambda: (), lambda record, error: out.publish("dead", b"", record.value), lambda: now[0]
    )
    for at_ns, values in batches:
        now[0] = at_ns
        detector.take([Record("t", 0, 0, b"", one, at_ns // MS, []) for one in values])
        detector.tick()
    books = {
        key: (
            book.sequence,
            book.best_bid,
            book.best_ask,
            book.received_ns,
            book.state,
            book.bids,
            book.asks,
            book.version,
        )
        for key, book in engine._books.items()
    }
    return out.published, books, detector._now_ns, detector._counts


@needs_it
@pytest.mark.parametrize("seed", range(6))
def test_a_detector_says_the_same_with_and_without_it(configured, seed):
    """Books that cross now and then, rates that move, halts, trades, repeated, late, early and broken records."""
    draw = random.Random(seed)
    sequences = dict.fromkeys(((base, place) for base in ("BTC", "ETH") for place in PLACES), 0)
    batches, now, rates = [], T0, 0
    for _ in range(250):
        values = []
        now += draw.choice((1, 10, 40, 200)) * MS
        for _ in range(draw.randrange(12)):
            base, (exchange, quote) = draw.choice(list(sequences))
            sequences[base, (exchange, quote)] += draw.choice((1, 1, 1, 1, 0))
            sequence, symbol = sequences[base, (exchange, quote)], f"{base}-{quote}"
            received = now - draw.choice((0, 0, 0, 3, 700)) * MS + draw.choice((0,) * 30 + (AHEAD_NS + 2 * MS,))
            mid = 100 * (1 + draw.choice((0, 0, 0, 0.002, 0.006, -0.004)) + draw.uniform(-0.0004, 0.0004))
            kind = draw.random()
            if kind < 0.86:
                bids = [
                    (round(mid * (1 - 0.0005 * n), 3), round(draw.uniform(0.1, 3), 4))
                    for n in range(1, draw.choice((2, 6)))
                ]
                asks = [(round(mid * (1 + 0.0005 * n), 3), 1.5) for n in range(1, draw.choice((1, 4, 4, 4)))]
                one = book_value(exchange, symbol, sequence, received, draw.choice((None, received)), bids, asks)
                values.append(one if draw.random() > 0.02 else one[: draw.randrange(len(one))])
            elif kind < 0.93:
                state = draw.choice(("live", "live", "stale", "halted"))
                health = {"kind": "health", "v": 1, "exchange": exchange, "symbol": symbol, "sequence": sequence}
                values.append(orjson.dumps({**health, "received_ns": received, "state": state, "alive_ns": received}))
            elif kind < 0.96:
                trade = {"kind": "trade", "v": 1, "exchange": exchange, "symbol": symbol, "sequence": sequence}
                values.append(orjson.dumps({**trade, "received_ns": received, "taker_side": "buy"}))
            else:
                rates += 1
                quote, bid = draw.choice(("USDT", "USDC")), 1 + draw.choice((0, 0.0001, -0.001))
                one = {"kind": "rate", "v": 1, "exchange": "kraken", "symbol": f"{quote}-USD", "sequence": rates}
                values.append(orjson.dumps({**one, "received_ns": now, "bid": bid, "ask": bid + 1e-4, "state": "live"}))
        batches.append((now, values))
    compiled_way = run(configured, batches, general=False)
    assert compiled_way == run(configured, batches, general=True)
    assert any(topic == "arbitrage-opportunities" for topic, _, _ in compiled_way[0])


def test_the_same_bytes_come_of_a_file_without_the_compiled_part(configured, tmp_path):
    """In processes of their own, so that the plain classes are really those that are used."""
    draw, lines = random.Random(3), []
    for number in range(1500):
        exchange, quote = PLACES[number % 3]
        mid = 100 * (1 + (0.02 if number % 200 > 150 and exchange == "kraken" else 0) + draw.uniform(-0.0002, 0.0002))
        at_ns = T0 + number * 20 * MS
        sides = [(round(mid * 0.9995, 3), 1.0)], [(round(mid * 1.0005, 3), 1.0)]
        lines.append(book_value(exchange, f"BTC-{quote}", number, at_ns, None, *sides))
        if number % 20 == 0:
            lines.append(
                orjson.dumps(
                    {"kind": "rate", "v": 1, "exchange": "kraken", "symbol": "USDT-USD", "sequence": number}
                    | {"received_ns": at_ns, "exchange_ns": None, "bid": 0.9999, "ask": 1.0001, "state": "live"}
                )
            )
    ticks = tmp_path / "ticks.jsonl"
    ticks.write_bytes(b"\n".join(lines) + b"\n")
    outputs = []
    for plainly in ("0", "1"):
        command = [sys.executable, "-m", "services.cli", "detect", "--from-file", str(ticks)]
        done = subprocess.run(
            command, capture_output=True, env={**os.environ, "ARB_PLAIN": plainly}, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    assert b'"kind":"opportunity"' in outputs[0]


def test_a_price_that_is_none_is_dead_lettered_and_not_taken_in(configured):
    with pytest.raises(UndecodableRecord):
        tops_of(read_tick(value(bids="[[0,1]]")))
