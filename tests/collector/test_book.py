"""The clever book against a naive one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.collector.book import Book

PRICES = st.integers(1, 30).map(lambda n: n / 2)
SIZES = st.sampled_from([0.0, 0.5, 1.0, 2.25])
CHANGES = st.lists(st.tuples(PRICES, SIZES), max_size=8)


class NaiveBook:
    """Two dictionaries, sorted whenever somebody looks."""

    def __init__(self, depth: int | None) -> None:
        self.depth = depth
        self.sides: tuple[dict[float, float], dict[float, float]] = ({}, {})

    def apply(self, bids: list[tuple[float, float]], asks: list[tuple[float, float]]) -> None:
        for side, changes, best_first in ((0, bids, True), (1, asks, False)):
            held = self.sides[side]
            for price, size in changes:
                held.pop(price, None)
                if size > 0:
                    held[price] = size
            if self.depth is not None:
                for price in sorted(held, reverse=best_first)[self.depth :]:
                    del held[price]

    def top(self, side: int, count: int) -> list[tuple[float, float]]:
        held = self.sides[side]
        return [(price, held[price]) for price in sorted(held, reverse=side == 0)[:count]]


@given(st.sampled_from([None, 1, 3, 10]), CHANGES, CHANGES, st.lists(st.tuples(CHANGES, CHANGES), max_size=12))
def test_any_changes_give_what_a_naive_book_gives(depth, bids, asks, deltas):
    book, naive = Book(depth), NaiveBook(depth)
    book.replace(bids, asks)
    naive.apply(bids, asks)
    for bid_changes, ask_changes in deltas:
        before = book.bids.top(3), book.asks.top(3)
        touched = book.apply(bid_changes, ask_changes, 3)
        naive.apply(bid_changes, ask_changes)
        assert book.bids.top(100) == naive.top(0, 100)
        assert book.asks.top(100) == naive.top(1, 100)
        assert (book.bids.best(3), book.asks.best(3)) == (naive.top(0, 3), naive.top(1, 3)), "kept, though it changed"
        if (book.bids.top(3), book.asks.top(3)) != before:
            assert touched, "a change of the watched levels was missed"


def test_a_change_below_the_watched_levels_is_not_reported():
    book = Book()
    book.replace([(10.0, 1.0), (9.0, 1.0), (8.0, 1.0)], [(11.0, 1.0)])
    assert book.apply([(8.0, 2.0)], [], 2) is False
    assert book.apply([(9.0, 2.0)], [], 2) is True


@pytest.mark.parametrize(
    ("bids", "asks", "fault"),
    [
        ([(10.0, 1.0)], [(11.0, 1.0)], None),
        ([(10.0, 1.0)], [(10.0, 1.0)], "bid 10.0 is not below ask 10.0"),
        ([(12.0, 1.0)], [(11.0, 1.0)], "bid 12.0 is not below ask 11.0"),
        ([], [(11.0, 1.0)], "a side is empty"),
        ([(10.0, 1.0)], [], "a side is empty"),
    ],
)
def test_what_cannot_be_a_book_is_named(bids, asks, fault):
    book = Book()
    book.replace(bids, asks)
    assert book.fault() == fault


@pytest.mark.parametrize(
    "level", [(0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (math.inf, 1.0), (1.0, -1.0), (1.0, math.nan)]
)
def test_an_impossible_level_is_refused(level):
    with pytest.raises(ValueError, match="impossible level"):
        Book().replace([level], [])


def test_best_is_none_until_both_sides_are_there():
    book = Book()
    assert book.best() is None
    book.replace([(10.0, 1.0)], [(11.5, 1.0)])
    assert book.best() == (10.0, 11.5)
