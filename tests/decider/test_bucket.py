"""A bucket never gives more than it may in any interval, gives all that it may, and survives a clock set back."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.decider.bucket import JITTER_S, Bucket, Steady


def test_full_at_first_then_refused_then_filled_again():
    bucket = Bucket(capacity=2, per_s=0.5)
    assert [bucket.try_acquire(1, 100.0) for _ in range(3)] == [True, True, False]
    assert not bucket.try_acquire(1, 101.75)
    assert bucket.try_acquire(1, 102.0), "one in two seconds"
    assert not bucket.try_acquire(1, 102.0)
    assert [bucket.try_acquire(1, 1e6) for _ in range(3)] == [True, True, False], "never more than the capacity"


def test_more_than_the_capacity_is_refused_however_long_one_waits_and_takes_nothing():
    bucket = Bucket(capacity=10, per_s=5)
    assert not bucket.try_acquire(10.5, 0)
    assert not bucket.try_acquire(10.5, 1e9)
    assert bucket.try_acquire(10, 1e9)


@pytest.mark.parametrize("amount", [-1, -0.001, math.nan, math.inf, -math.inf])
def test_amounts_that_are_none_are_refused_and_fill_nothing(amount):
    bucket = Bucket(capacity=3, per_s=0.25)
    assert bucket.try_acquire(3, 0)
    assert not bucket.try_acquire(amount, 0)
    assert not bucket.try_acquire(1, 0)
    assert bucket.try_acquire(0, 0), "nothing is always there"
    assert bucket.try_acquire(1, 4)


@pytest.mark.parametrize(("capacity", "per_s"), [(0, 1), (-1, 1), (math.nan, 1), (math.inf, 1), (1, 0), (1, math.nan)])
def test_a_bucket_that_could_never_give_or_never_refuse_is_not_made(capacity, per_s):
    with pytest.raises(ValueError, match="must be above 0 and finite"):
        Bucket(capacity, per_s)


def test_looking_takes_nothing():
    bucket = Bucket(capacity=1, per_s=1)
    assert all(bucket.has(1, 0) for _ in range(5))
    assert bucket.try_acquire(1, 0)
    assert not bucket.has(1, 0)


eighths = st.integers(0, 80).map(lambda n: n / 8)  # exact in binary, so that the model below can be exact too


@given(
    capacity=st.integers(1, 96).map(lambda n: n / 8),
    per_s=st.sampled_from([0.125, 0.5, 1.0, 4.0]),
    requests=st.lists(st.tuples(eighths, eighths), max_size=60),
)
def test_gives_exactly_what_the_whole_history_allows(capacity, per_s, requests):
    """The model has no level: it looks at every interval that begins with something given."""
    bucket = Bucket(capacity, per_s)
    given_out: list[tuple[Fraction, Fraction]] = []
    now = Fraction(0)
    for wait_s, amount in requests:
        now += Fraction(wait_s) / 8
        wanted = Fraction(amount)
        allowed = wanted <= capacity and all(
            sum(given for _, given in given_out[first:]) + wanted
            <= Fraction(capacity) + Fraction(per_s) * (now - given_out[first][0])
            for first in range(len(given_out))
        )
        assert bucket.has(amount, float(now)) == allowed
        assert bucket.try_acquire(amount, float(now)) == allowed
        if allowed:
            given_out.append((now, wanted))


@given(
    capacity=st.floats(0.5, 1e6),
    per_s=st.floats(0.01, 1e5),
    requests=st.lists(st.tuples(st.floats(-JITTER_S, 5), st.floats(0, 1)), min_size=1, max_size=80),
)
def test_no_interval_gets_more_than_capacity_and_refill_even_if_readings_are_out_of_order(capacity, per_s, requests):
    bucket = Bucket(capacity, per_s)
    newest, given_out = 1e6, []
    assert bucket.try_acquire(0, newest)
    for wait_s, share in requests:
        now = newest + wait_s
        newest = max(newest, now)
        if bucket.try_acquire(share * capacity, now):
            given_out.append((newest, share * capacity))
    for first in range(len(given_out)):
        total = 0.0
        for at, amount in given_out[first:]:
            total += amount
            assert total <= (capacity + per_s * (at - given_out[first][0])) * (1 + 1e-9)


def test_a_clock_set_back_neither_fills_nor_stops_the_bucket():
    bucket = Bucket(capacity=2, per_s=1)
    assert bucket.try_acquire(2, 5000.0)
    assert not bucket.try_acquire(1, 1000.0), "going back fills nothing"
    assert not bucket.try_acquire(1, 1000.5)
    assert bucket.try_acquire(1, 1001.0), "and time goes on from there"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_a_steady_clock_never_goes_back_and_always_goes_on(readings):
    steady = Steady()
    seen = [steady.at(reading) for reading in readings]
    assert seen == sorted(seen)
    assert steady.at(readings[-1] + JITTER_S + 10) >= seen[-1] + 10 - 1e-6, "after any history ten seconds are ten"


def test_a_steady_clock_is_the_clock_itself_while_that_goes_forward():
    steady = Steady()
    assert [steady.at(now_s) for now_s in (3.0, 3.5, 100.0)] == [3.0, 3.5, 100.0]
    assert [steady.at(now_s) for now_s in (99.5, 100.25)] == [100.0, 100.25], "an old reading moves nothing"
