"""The generated market and its truth."""

import datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.market import LEVELS, BookEvent, Market, TradeEvent
from services.simulator.truth import Truth, net_edge_bps
from shared import settings, symbols

SERVED = ("binance", "coinbase", "kraken")
MINUTE_NS = 60_000_000_000
CONFIGURED = settings.load()
TODAY = datetime.date(2026, 11, 21)


def market(seed: int = 1) -> Market:
    return Market(CONFIGURED, SERVED, seed, 5.0)


def test_the_same_seed_gives_the_same_events_at_the_same_moments():
    assert list(market().step(MINUTE_NS // 4)) == list(market().step(MINUTE_NS // 4))
    assert list(market(1).step(MINUTE_NS // 4)) != list(market(2).step(MINUTE_NS // 4))


def test_how_often_it_is_stepped_does_not_matter():
    often, once = market(), market()
    events = [event for at in range(0, MINUTE_NS // 6, 70_000_000) for event in often.step(at)]
    last = range(0, MINUTE_NS // 6, 70_000_000)[-1]
    assert events == list(once.step(last))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_books_never_cross_and_events_tell_the_whole_change(seed):
    one = market(seed)
    copies = {key: (dict(book.bids), dict(book.asks)) for key, book in one.books.items()}
    last_trade: dict[tuple[str, str], int] = {}
    for _, event in one.step(MINUTE_NS // 2):
        key = (event.exchange, event.symbol)
        book = one.books[key]
        if isinstance(event, TradeEvent):
            assert event.trade_id == last_trade.get(key, event.trade_id - 1) + 1
            last_trade[key] = event.trade_id
            assert event.size > 0
            continue
        assert max(book.bids) < min(book.asks)
        assert len(book.bids) == len(book.asks) == LEVELS
        for copy, changes in zip(copies[key], (event.bids, event.asks), strict=True):
            for price, size in changes:
                if size == 0:
                    del copy[price]
                else:
                    copy[price] = size
        assert copies[key] == (book.bids, book.asks)


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_what_pays_pays_clearly_and_what_does_not_does_not(seed):
    """Five minutes: every gap of the log is far above the threshold, and there are long ones, soon and often."""
    one = market(seed)
    truth, gaps = Truth(CONFIGURED, one, TODAY), []
    for at, event in one.step(5 * MINUTE_NS):
        if isinstance(event, BookEvent) and not symbols.is_rate(event.symbol):
            gaps += truth.look(symbols.base_of(event.symbol), at)
    gaps += truth.still_open(5 * MINUTE_NS)
    assert min(gap["edge_bps"] for gap in gaps) > 10
    assert max(gap["edge_bps"] for gap in gaps) < float(CONFIGURED.detector.sanity_cap_bps)
    lasting = [gap for gap in gaps if gap["end_ns"] - gap["start_ns"] > 500_000_000]
    assert len(lasting) > 30
    assert min(gap["start_ns"] for gap in lasting) < 30_000_000_000
    flickers = [gap for gap in gaps if gap["end_ns"] - gap["start_ns"] < 100_000_000]
    assert flickers


def test_a_gap_that_is_still_there_is_written_as_open():
    one = market()
    truth = Truth(CONFIGURED, one, TODAY)
    for at, event in one.step(MINUTE_NS):
        if isinstance(event, BookEvent) and not symbols.is_rate(event.symbol):
            truth.look(symbols.base_of(event.symbol), at)
            if truth.still_open(at):
                break
    (gap, *_) = truth.still_open(at + 5)
    assert (gap["open"], gap["end_ns"]) == (True, at + 5)
    assert set(gap) == {"base", "buy", "sell", "start_ns", "end_ns", "edge_bps", "open"}


@pytest.mark.parametrize(
    ("asks", "bids", "buy", "sell", "most", "edge"),
    [
        ([(100, 1)], [(101, 1)], 1.0, 1.0, 1e9, 100.0),
        ([(100, 1)], [(101, 1)], 1.001, 0.999, 1e9, (100.899 / 100.1 - 1) * 1e4),
        ([(100, 1), (100.9, 1)], [(101, 2)], 1.0, 1.0, 1e9, (202 / 200.9 - 1) * 1e4),
        ([(100, 1), (101.1, 1)], [(101, 2)], 1.0, 1.0, 1e9, 100.0),
        ([(100, 1), (100.9, 1)], [(101, 2)], 1.0, 1.0, 100, 100.0),
        ([(100, 1)], [(100, 1)], 1.0, 1.0, 1e9, float("-inf")),
        ([], [(100, 1)], 1.0, 1.0, 1e9, float("-inf")),
    ],
)
def test_the_truths_walk_by_hand(asks, bids, buy, sell, most, edge):
    assert net_edge_bps(asks, bids, buy, sell, most, 1.0) == pytest.approx(edge)


BOOK = st.lists(st.tuples(st.integers(95, 105), st.integers(1, 5)), min_size=1, max_size=5)


@given(BOOK, BOOK)
def test_the_truths_walk_against_every_breakpoint(asks, bids):
    asks, bids = sorted(asks), sorted(bids, reverse=True)
    best, edge = Fraction(0), None
    for size in range(1, min(sum(s for _, s in asks), sum(s for _, s in bids)) + 1):
        cost = sum(sorted(p for p, s in asks for _ in range(s))[:size])
        proceeds = sum(sorted((p for p, s in bids for _ in range(s)), reverse=True)[:size])
        if proceeds - cost > best:
            best, edge = Fraction(proceeds - cost), (Fraction(proceeds, cost) - 1) * 10_000
    found = net_edge_bps(asks, bids, 1.0, 1.0, 1e12, 1.0)
    assert found == (pytest.approx(float(edge)) if edge is not None else float("-inf"))
