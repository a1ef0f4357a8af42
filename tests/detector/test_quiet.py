"""Quiet ticks: the compiled way against the general one, and what it must leave to it."""

import importlib
import os
import random
import shutil
import subprocess
import sys
import sysconfig
from decimal import Decimal
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.detector import plain, quiet
from services.detector.books import tops_of
from services.detector.engine import Engine
from services.detector.service import AHEAD_NS, Detector
from shared import settings
from shared.errors import UndecodableRecord
from shared.kafka import Record
from shared.messages import book_value, decode, rate_value, read_tick

MS = 1_000_000
T0 = 1_795_000_000_000 * MS
GATES = plain.Gates(10_000 * MS, 10_000 * MS, 10_000 * MS, 100 * MS, 1_000 * MS, 1_000 * MS, 0.05)
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

    def book(exchange, bid_rate=1.0, ask_rate=1.0):
        fx = module.Quote()
        fx.bid, fx.ask, fx.good_until_ns = bid_rate, ask_rate, plain.NEVER_NS
        made = module.BookTop(exchange, fx)
        made.fee_day, made.fee_known = T0 // plain.DAY_NS, True
        made.buy_factor, made.sell_factor = 1.001, 0.999
        coin.add(made)
        return made

    top = book("kraken")
    for number, (bid, ask, *rate) in enumerate(others):
        other = book(PLACES[3 + number][0], *rate)
        coin.mixed = coin.mixed or bool(rate)
        other.put(T0, b"", b"", bid, ask)
        coin.moved(other, 1)
    found = module.Quiet(GATES)
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
    assert top.mids.since(0) == [(T0 // plain.SECOND_NS, 100.5)]
    assert taken(found, value(sequence=8, received=T0 - 1), now_ns=T0) == (1, T0), "time never goes back"
    assert len(top.mids.since(0)) == 1, "one a second"


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
@pytest.mark.parametrize("what", ["bridged", "disowned", "outcome", "forgotten", "repeated"])
def test_a_book_of_which_more_may_follow_is_not_quiet(what):
    found, top = held(compiled)
    until_ns = 1 << 62
    if what == "outcome":
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


PRICES = [98.0, 99.0, 99.5, 100.0, 100.5, 101.0, 102.0]
bid_price, ask_price = st.sampled_from([plain.NO_BID, *PRICES]), st.sampled_from([*PRICES, plain.NO_ASK])
rate = st.sampled_from([(1.0, 1.0), (0.99, 1.0), (1.0, 1.01), (0.0, float("inf"))])


@needs_it
@given(
    st.lists(st.tuples(st.integers(0, 9), bid_price, ask_price, rate, st.booleans(), st.integers(1, 3)), max_size=60)
)
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
                coin.add(module.BookTop("kraken", fx))
            book = coin.books[min(slot, len(coin.books) - 1)]
            coin.mixed = mixed
            if turns == 3:
                book.fx.bid, book.fx.ask = bid_rate, ask_rate
            book.put(T0, b"b", b"a", bid, ask)
            said.append((book.slot, coin.moved(book, version), coin.crosses_converted(version)))
        assert said[0] == said[1]


@needs_it
@given(st.lists(st.tuples(st.integers(0, 3000), st.floats(1e-9, 1e9)), max_size=200), st.integers(-5, 300))
def test_mids_are_the_same_in_both(moves, since):
    both, now = (compiled.Mids(), plain.Mids()), T0
    for wait_ms, mid in moves:
        now += wait_ms * MS
        for mids in both:
            mids.add(now, mid)
    first = T0 // plain.SECOND_NS
    kept = both[0].since(first + since)
    assert kept == both[1].since(first + since)
    assert (both[0].next_ns, len(both[0].since(0))) == (both[1].next_ns, len(both[1].since(0)))


# ---------------------------------------------------------------- what is open and stays as it is


def engine_of(configured, general):
    """`general`: without the quiet way."""
    engine = Engine(configured)
    if general:
        engine._quiet = plain.Quiet(GATES)
    return engine


def judged(configured, *records):
    """An engine that took these in the general way, and the moment."""
    engine, now_ns = Engine(configured), T0
    for record in records:
        tick = read_tick(record)
        now_ns = max(now_ns, tick.received_ns)
        engine.on_message(tick, now_ns)
    return engine, now_ns


def book(exchange, quote, sequence, at_ms, bid, ask):
    return book_value(exchange, f"BTC-{quote}", sequence, T0 + at_ms * MS, None, [(bid, 1.0)], [(ask, 1.0)])


def usdt(at_ms, bid=0.9999, ask=1.0001):
    return rate_value("kraken", "USDT-USD", at_ms, T0 + at_ms * MS, None, bid, ask, "live")


def quiet_ones(engine, now_ns, *records):
    """How many of these are taken in at once."""
    return engine.take_quiet(list(records), 0, now_ns, 1 << 62)[0]


def stays(configured, *records):
    """Whether the last one is taken in at once, after the others were judged, and leaves all as judging it would."""
    *before, last = records
    found = []
    for general in (False, True):
        engine, now_ns = judged(configured, *before)
        if general:
            (event_count,) = [len(engine.on_message(read_tick(last), read_tick(last).received_ns))]
            found.append(event_count == 0)
        else:
            found.append(quiet_ones(engine, now_ns, last) == 1)
        gaps = [gap for coin in engine._coins.values() for gap in coin.gaps.values()]
        found.append([(g.refused_ns, g.best_bps(), g.due_ns, g.recheck_ns, g.gone_ns, g.rejection) for g in gaps])
    if found[0]:
        assert found[:2] == found[2:]
    return found[0]


KRAKEN, COINBASE = book("kraken", "USD", 1, 0, 100.0, 100.01), book("coinbase", "USD", 1, 1, 100.05, 100.06)
"""Bought at 100.01 and sold at 100.05: fees of 20 bps eat it."""


@needs_it
@pytest.mark.parametrize(
    ("at_ms", "bid", "ask", "is_quiet"),
    [
        (20, 100.07, 100.08, True),
        (20, 100.03, 100.04, True),
        (20, 100.01, 100.02, False),  # it does not cross any more: from now on it lingers
        (20, 100.3, 100.31, False),  # it pays
        (20, 100.2101, 100.3, False),  # just below paying, by less than floats could be trusted
        (20, 99.0, 99.01, False),  # the other way round
        (20_000, 100.07, 100.08, False),  # Kraken was silent for too long
    ],
)
def test_a_crossing_that_fees_eat_is_quiet_while_they_do(configured, at_ms, bid, ask, is_quiet):
    if bid == 100.2101:
        bid = 100.01 * 1.001 / 0.999
    assert stays(configured, KRAKEN, COINBASE, book("coinbase", "USD", 2, at_ms, bid, ask)) is is_quiet


@needs_it
def test_the_best_edge_is_that_of_quiet_ticks_too(configured):
    later = [book("coinbase", "USD", 2 + n, 20 + n, bid, 100.2) for n, bid in enumerate((100.07, 100.12, 100.03))]
    gone = book("coinbase", "USD", 9, 50, 100.0, 100.01)
    closed = []
    for general in (False, True):
        engine, now_ns = judged(configured, KRAKEN, COINBASE)
        for record in later:
            if general:
                assert engine.on_message(read_tick(record), read_tick(record).received_ns) == []
            else:
                assert quiet_ones(engine, now_ns, record) == 1
        assert engine.on_message(read_tick(gone), T0 + 50 * MS) == []
        closed += engine.on_timer(T0 + 5_000 * MS)
    assert [event.phase for event in closed] == ["closed", "closed"]
    assert closed[0] == closed[1]
    naive = (100.12 * 0.999 / (100.01 * 1.001) - 1) * 10_000
    assert float(closed[0].best_net_bps) == pytest.approx(naive, abs=1e-4)


@needs_it
def test_a_rejection_whose_crossing_is_gone_waits_quietly_for_its_end(configured):
    gone = book("coinbase", "USD", 2, 20, 100.0, 100.01)
    assert stays(configured, KRAKEN, COINBASE, gone, book("coinbase", "USD", 3, 40, 100.001, 100.01))
    assert stays(configured, KRAKEN, COINBASE, gone, book("kraken", "USD", 2, 40, 100.001, 100.01))
    assert not stays(configured, KRAKEN, COINBASE, gone, book("coinbase", "USD", 3, 40, 100.05, 100.06)), "it is back"


@needs_it
def test_the_first_look_of_a_day_is_not_quiet(configured):
    """Fees may be others from midnight (UTC) on."""
    midnight_ms = plain.DAY_NS // MS - T0 // MS % (plain.DAY_NS // MS)
    before = [
        book("kraken", "USD", 1, midnight_ms - 100, 100.0, 100.01),
        book("coinbase", "USD", 1, midnight_ms - 90, 100.05, 100.06),
    ]
    assert stays(configured, *before, book("coinbase", "USD", 2, midnight_ms - 1, 100.06, 100.07))
    assert not stays(configured, *before, book("coinbase", "USD", 2, midnight_ms, 100.06, 100.07))


@needs_it
def test_another_reason_is_not_quiet(configured):
    """As they stand they cross; in USD they do not, and that is another reason than fees."""
    before = (usdt(0), KRAKEN, book("binance", "USDT", 1, 1, 100.05, 100.06))
    assert stays(configured, *before, book("binance", "USDT", 2, 20, 100.06, 100.07))
    assert not stays(configured, *before, book("binance", "USDT", 2, 20, 100.012, 100.02))
    assert not stays(configured, *before, usdt(10, 1.0099, 1.0101), book("binance", "USDT", 2, 20, 100.05, 100.06))


@needs_it
def test_another_crossing_is_not_quiet(configured):
    third = book("bitstamp", "USD", 1, 2, 100.02, 100.2)
    assert not stays(configured, KRAKEN, COINBASE, third.replace(b"bitstamp", b"okx"))
    fourth = book("okx", "USD", 1, 2, 100.0, 100.2)
    assert stays(configured, KRAKEN, COINBASE, fourth, book("coinbase", "USD", 2, 20, 100.06, 100.07))
    assert not stays(configured, KRAKEN, COINBASE, fourth, book("coinbase", "USD", 2, 20, 100.21, 100.22))


@needs_it
def test_two_books_of_one_exchange_are_no_gap(configured):
    """They may cross in USD all the time."""
    both = (usdt(0, 1.0019, 1.0021), KRAKEN, book("kraken", "USDT", 1, 1, 100.05, 100.06))
    engine, now_ns = judged(configured, *both)
    assert not engine._coins["BTC"].gaps
    assert quiet_ones(engine, now_ns, book("kraken", "USDT", 2, 20, 100.07, 100.08)) == 1


@needs_it
def test_an_opportunity_that_still_pays_is_quiet_until_it_may_be_published_again(configured):
    configured = changed(configured, outcome_delays_ms=())
    before = (KRAKEN, book("coinbase", "USD", 1, 1, 100.5, 100.51))
    engine, now_ns = judged(configured, *before)
    (opened,) = [e for e in engine.on_timer(T0 + 150 * MS) if e.kind == "opportunity"]
    assert opened.phase == "opened"
    now_ns = T0 + 150 * MS
    first = book("coinbase", "USD", 2, 160, 100.51, 100.52)
    assert quiet_ones(engine, now_ns, first) == 0, "when it may be looked at again is noted once"
    assert engine.on_message(read_tick(first), T0 + 160 * MS) == []
    assert quiet_ones(engine, now_ns, book("coinbase", "USD", 3, 170, 100.52, 100.53)) == 1
    assert quiet_ones(engine, now_ns, book("coinbase", "USD", 4, 180, 100.2, 100.21)) == 0, "it may not pay any more"
    assert quiet_ones(engine, now_ns, book("coinbase", "USD", 4, 180, 103.0, 103.01)) == 0, "too good to be true"
    may_ms = 150 + configured.detector.update_min_ms
    assert quiet_ones(engine, now_ns, book("coinbase", "USD", 4, may_ms - 1, 100.52, 100.53)) == 1
    assert quiet_ones(engine, now_ns, book("coinbase", "USD", 5, may_ms, 100.52, 100.53)) == 0


def left_open(configured):
    """Books of a gap that pays, and an opportunity about it that another owner left open."""
    books = (KRAKEN, book("coinbase", "USD", 1, 1, 100.5, 100.51))
    (opened,) = [e for e in judged(configured, *books)[0].on_timer(T0 + 150 * MS) if e.kind == "opportunity"]
    return books, opened


def owner_of_two(configured, general, *books):
    """An engine that has read these books and adopted two opportunities about the one gap."""
    _, opened = left_open(configured)
    engine = engine_of(configured, general)
    for record in books:
        engine.on_message(read_tick(record), T0 + 2 * MS, silent=True)
    for letter in "ab":
        engine.adopt(opened.changed(opportunity_id=letter * 32), T0 + 200 * MS)
    engine.evaluate_all(T0 + 200 * MS)
    return engine


@needs_it
def test_a_new_crossing_beside_an_adopted_gap_is_seen(configured):
    """Of two adopted about one gap the second stays; that must not be counted as a gap more."""
    configured = changed(configured, outcome_delays_ms=(), update_min_ms=500)
    books, _ = left_open(configured)
    events = []
    for general in (False, True):
        engine = owner_of_two(configured, general, *books, book("okx", "USD", 1, 1, 100.0, 100.505))
        for at_ms, bid in ((210, 100.501), (220, 100.506)):
            record = book("coinbase", "USD", at_ms, at_ms, bid, 100.51)
            if not quiet_ones(engine, T0 + at_ms * MS, record):
                events.append(engine.on_message(read_tick(record), T0 + at_ms * MS))
    assert [(event.kind, event.phase, event.buy.exchange) for event in events[-1]] == [("rejection", "opened", "okx")]
    assert events[-1] in events[:-1]


def test_of_an_adopted_gap_nothing_is_left_when_it_has_closed(configured):
    configured = changed(configured, outcome_delays_ms=(), close_after_ms=0, rejection_linger_ms=0)
    books, _ = left_open(configured)
    engine = owner_of_two(configured, True, *books)
    engine.on_message(read_tick(book("coinbase", "USD", 2, 300, 100.0, 100.01)), T0 + 300 * MS)
    engine.on_timer(T0 + 900 * MS)
    again = engine.on_message(read_tick(book("coinbase", "USD", 3, 1000, 100.05, 100.06)), T0 + 1000 * MS)
    assert [(event.kind, event.phase) for event in again] == [("rejection", "opened")]


@needs_it
def test_a_rate_ends_what_is_due_in_its_own_place(configured):
    """A rejection whose end is due ends where its rate's turn comes, not with those that time alone ends."""
    said = []
    for general in (False, True):
        engine = engine_of(configured, general)
        for record in (
            usdt(0),
            KRAKEN,
            book("coinbase", "USD", 1, 0, 99.98, 100.0),
            book("binance", "USDT", 1, 1, 100.05, 100.06),
            book("kraken", "USD", 2, 20, 100.06, 100.07),
        ):
            engine.on_message(read_tick(record), T0 + 20 * MS)
        engine.on_timer(T0 + 50 * MS)
        engine.on_message(read_tick(book("coinbase", "USD", 2, 1100, 99.98, 100.0)), T0 + 1100 * MS)
        engine.on_timer(T0 + 1010 * MS)
        engine.on_message(read_tick(usdt(1030, 0.9990, 0.9991)), T0 + 1100 * MS)
        said.append(engine.on_timer(T0 + 1060 * MS))
    assert said[0] == said[1]


# ---------------------------------------------------------------- many


def changed(configured, **values):
    """With other settings of the detector."""
    return configured.model_copy(update={"detector": configured.detector.model_copy(update=values)})


class Out:
    def __init__(self):
        self.published = []

    def publish(self, topic, key, value, *, then=None):
        self.published.append((topic, key, value))
        if then is not None:
            then()
        return True


def run(configured, batches, *, general, hand_over_at=None):
    """What a detector publishes, and what it holds at the end; `general`: without the quiet way.

    Before batch `hand_over_at` it loses all, and takes it over again as a new owner does.
    """
    out, now = Out(), [T0]
    engine = engine_of(configured, general)

    def published():
        return [
            Record(topic, 0, 0, b"", value, 0, [])
            for topic, _, value in out.published
            if topic in ("arbitrage-opportunities", "opportunity-outcomes")
        ]

    def aside(record, error):
        out.publish("dead", b"", record.value)

    detector = Detector(engine, out, published, aside, lambda: now[0], steady=lambda: now[0])
    for number, (at_ns, values) in enumerate(batches):
        now[0] = at_ns
        if number == hand_over_at:
            detector.on_owned(frozenset(range(16)))
            detector.on_owned(frozenset())
            detector.on_owned(frozenset(range(16)))
        detector.take([Record("t", 0, 0, b"", one, at_ns // MS, []) for one in values])
        detector.tick()
        detector.hand_over()
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


SETTINGS = [
    {},
    {"max_skew_ms": 25},
    {"max_book_age_ms": 60, "max_silence_ms": 150},
    {"update_min_ms": 300, "update_max_ms": 100},
    {"update_min_ms": 1000, "update_max_ms": 1200, "persistence_ms": 0},
    {"sanity_cap_bps": Decimal(12), "close_after_ms": 0, "rejection_linger_ms": 100},
]


@needs_it
@pytest.mark.parametrize("seed", range(12))
def test_a_detector_says_the_same_where_something_is_open_all_the_time(configured, seed, monkeypatch):
    """Exchanges that stand apart for seconds, as they do: near what fees eat, rates that go stale, silent books; fees
    that change at midnight, and gates that are reached."""
    later = settings.Fee(valid_from="2026-11-19", taker_bps="6")
    configured = changed(configured, **SETTINGS[seed % len(SETTINGS)]).model_copy(
        update={
            "exchanges": {
                name: one.model_copy(update={"fees": (*one.fees, later)}) for name, one in configured.exchanges.items()
            }
        }
    )
    draw = random.Random(100 + seed)
    day_end_ns = T0 // plain.DAY_NS * plain.DAY_NS + plain.DAY_NS
    now, number, rates = (day_end_ns - 15_000 * MS if seed % 2 else T0), 0, 0
    batches = []
    apart = dict.fromkeys(PLACES, 0.0)
    silent = dict.fromkeys(PLACES, 0)
    for turn in range(400):
        values = []
        now += draw.choice((5, 10, 20, 50)) * MS
        if turn % 20 == 0:
            for place in PLACES:
                apart[place] = draw.choice((0, 0, 0.0003, 0.0006, 0.001, 0.0015))
                if draw.random() < 0.1:
                    apart[place] = draw.choice((0.002002, 0.002003, 0.002004, 0.0025, 0.006))
                silent[place] = now + draw.choice((0,) * 9 + (4_000,)) * MS
        for place in draw.sample(PLACES, draw.randrange(1, 5)):
            if silent[place] > now:
                continue
            number += 1
            exchange, quote = place
            mid = round(100 * (1 + apart[place]) * (1 + draw.choice((0, 0, 0.00001, 0.00003))), 6)
            values.append(
                book_value(exchange, f"BTC-{quote}", number, now, None, [(mid, 1.0)], [(round(mid * 1.0001, 6), 1.0)])
            )
        if turn % 40 == 0 and draw.random() < 0.8:
            for quote in ("USDT", "USDC"):
                rates += 1
                bid = 1 + draw.choice((0, 0, 0.0001, -0.0015))
                values.append(rate_value("kraken", f"{quote}-USD", rates, now, None, bid, bid + 1e-4, "live"))
        batches.append((now, values))
    seen = {"quiet": 0, "all": 0}
    take_quiet = Engine.take_quiet

    def counted(self, values, at, now_ns, sure_ns):
        gaps = any(coin.gaps for coin in self._coins.values())
        end, now_ns = take_quiet(self, values, at, now_ns, sure_ns)
        seen["quiet"] += gaps * (end - at)
        seen["all"] += gaps * (end - at + (end < len(values)))
        return end, now_ns

    monkeypatch.setattr(Engine, "take_quiet", counted)
    compiled_way = run(configured, batches, general=False, hand_over_at=250)
    assert seen["quiet"] > (seen["all"] / 4 if seed % len(SETTINGS) == 0 else 0), seen
    assert compiled_way == run(configured, batches, general=True, hand_over_at=250)


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
