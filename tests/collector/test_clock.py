"""Offsets and lags against a world whose true clocks are known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.collector.clock import BUCKET_NS, WINDOW_NS, ClockOffset, FeedLag, Offset, offset

S = 1_000_000_000
COARSE_NS = st.sampled_from([1, 2, 3, 1_000, 1_000_000, S]) | st.integers(1, 3 * S)
DELAY_NS = st.integers(0, 10) | st.integers(0, 30 * S)


@given(st.integers(-3600 * S, 3600 * S), DELAY_NS, DELAY_NS, COARSE_NS, st.integers(0, 2**61))
def test_the_truth_is_within_the_error_whatever_the_delays_and_however_coarse_the_answer(
    true_ns, out_ns, back_ns, coarse_ns, sent_ns
):
    exact_ns = sent_ns + out_ns + true_ns  # what the server's clock shows when the question arrives
    sample = offset(sent_ns, exact_ns // coarse_ns * coarse_ns, sent_ns + out_ns + back_ns, coarse_ns)
    assert abs(sample.offset_ns - true_ns) <= sample.error_ns
    assert sample.round_trip_ns == out_ns + back_ns
    assert sample.at_ns == sent_ns + out_ns + back_ns


@given(st.integers(-3600 * S, 3600 * S), DELAY_NS, DELAY_NS, COARSE_NS, st.integers(0, 2**61))
def test_an_answer_finer_than_it_is_said_to_be_keeps_the_bound(true_ns, out_ns, back_ns, coarse_ns, sent_ns):
    sample = offset(sent_ns, sent_ns + out_ns + true_ns, sent_ns + out_ns + back_ns, coarse_ns)
    assert abs(sample.offset_ns - true_ns) <= sample.error_ns


@pytest.mark.parametrize(
    ("sent_ns", "server_ns", "received_ns", "coarse_ns", "offset_ns", "error_ns"),
    [
        (1_000, 1_050, 1_100, 1, 0, 51),  # rounded up
        (1_000, 1_150, 1_100, 1, 100, 51),
        (1_000, 950, 1_100, 1, -100, 51),
        (0, 5 * S, 0, S, 5 * S + S // 2, S // 2),  # asked in no time: only the second cut off is unknown
        (0, 0, 200, 10, -95, 105),
    ],
)
def test_a_sample_by_hand(sent_ns, server_ns, received_ns, coarse_ns, offset_ns, error_ns):
    sample = offset(sent_ns, server_ns, received_ns, coarse_ns)
    assert (sample.offset_ns, sample.error_ns) == (offset_ns, error_ns)


@given(st.lists(st.integers(1, 20), max_size=30), st.integers(1, 12))
def test_the_shortest_round_trip_of_the_last_samples_wins(round_trips, keep):
    known = ClockOffset(keep)
    for at_ns, round_trip_ns in enumerate(round_trips):
        known.add(Offset(at_ns, 1, round_trip_ns, at_ns))
    best = known.best()
    assert (best and best.round_trip_ns) == (min(round_trips[-keep:]) if round_trips else None)


def test_the_best_sample_leaves_when_it_is_old():
    known = ClockOffset(3)
    for round_trip_ns in (5, 9, 8, 7):
        known.add(Offset(round_trip_ns, 1, round_trip_ns, 0))
    assert known.best() == Offset(7, 1, 7, 0)


def test_without_samples_there_is_no_offset():
    assert ClockOffset().best() is None


def test_a_sample_across_a_step_of_our_own_clock_does_not_win():
    known = ClockOffset()
    known.add(offset(100 * S, 100 * S + 5, 100 * S + 10, 1))
    known.add(offset(200 * S, 200 * S + 5, 195 * S, 1))  # our clock was set back while we waited
    best = known.best()
    assert best is not None
    assert best.offset_ns == 0


# ---------------------------------------------------------------- lag


class NaiveLag:
    """Keeps everything; a bucket is 30 s from the frame that begins it."""

    def __init__(self) -> None:
        self.buckets: list[tuple[int, list[int]]] = []
        self.frames: list[tuple[int, int]] = []

    def seen(self, received_ns: int, exchange_ns: int) -> None:
        self.frames.append((received_ns, received_ns - exchange_ns))
        if not self.buckets or received_ns - self.buckets[-1][0] >= BUCKET_NS:
            self.buckets.append((received_ns, []))
        self.buckets[-1][1].append(received_ns - exchange_ns)

    def lag_ns(self, now_ns: int, within_ns: int) -> int | None:
        if not self.frames or now_ns - self.frames[-1][0] > within_ns:
            return None
        began_ns = self.buckets[-1][0]  # old ones leave when a new one begins
        kept = [bucket for start_ns, bucket in self.buckets if start_ns > began_ns - WINDOW_NS]
        return self.frames[-1][1] - min(raw_ns for bucket in kept for raw_ns in bucket)

    def least_since(self, since_ns: int) -> int:
        return min(raw_ns for received_ns, raw_ns in self.frames if received_ns >= since_ns)


def frames(longest_gap_ns: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Pauses before frames, and how long each took to come (by two clocks: below zero as well)."""
    return st.lists(
        st.tuples(
            st.sampled_from([0, S, longest_gap_ns]) | st.integers(0, longest_gap_ns),
            st.integers(-4 * S // 10, 5 * S // 10) | st.integers(-20, 20),
        ),
        max_size=80,
    )


@given(frames(40 * S), st.integers(0, 4 * S), st.integers(-3600 * S, 3600 * S))
def test_lag_is_what_a_model_that_keeps_everything_gives_whatever_the_constant_offset(seen, later_ns, constant_ns):
    lag, apart, naive = FeedLag(), FeedLag(), NaiveLag()
    now_ns = 1_700_000_000 * S
    assert lag.lag_ns(now_ns) is None
    for pause_ns, raw_ns in seen:
        now_ns += pause_ns
        lag.seen(now_ns, now_ns - raw_ns)
        apart.seen(now_ns, now_ns - raw_ns - constant_ns)
        naive.seen(now_ns, now_ns - raw_ns)
        assert lag.lag_ns(now_ns) == naive.lag_ns(now_ns, 2 * S)
        assert lag.raw_ns() == raw_ns
        assert apart.lag_ns(now_ns) == lag.lag_ns(now_ns), "a constant offset changed the lag"
        assert (lag.lag_ns(now_ns) or 0) >= 0
    assert lag.lag_ns(now_ns + later_ns) == naive.lag_ns(now_ns + later_ns, 2 * S)
    assert lag.negative == sum(raw_ns < 0 for _, raw_ns in seen)


@given(frames(10 * S).filter(bool))
def test_in_a_feed_that_flows_the_floor_is_that_of_four_and_a_half_minutes_to_seven(seen):
    lag, naive = FeedLag(), NaiveLag()
    now_ns = 1_700_000_000 * S
    for pause_ns, raw_ns in seen:
        now_ns += pause_ns
        lag.seen(now_ns, now_ns - raw_ns)
        naive.seen(now_ns, now_ns - raw_ns)
        found = lag.lag_ns(now_ns)
        assert found is not None
        at_least = raw_ns - naive.least_since(now_ns - (WINDOW_NS - BUCKET_NS - 10 * S))
        at_most = raw_ns - naive.least_since(now_ns - (WINDOW_NS + BUCKET_NS + 10 * S))
        assert at_least <= found <= at_most


def test_frames_from_before_they_were_sent_are_counted_and_not_clamped():
    lag = FeedLag()
    for received_ns, raw_ns in ((1 * S, -4), (2 * S, 0), (3 * S, -1)):
        lag.seen(received_ns, received_ns - raw_ns)
    assert lag.negative == 2
    assert lag.raw_ns() == -1
    assert lag.lag_ns(3 * S) == 3, "clamped at zero the floor would have been 0"


def test_a_feed_that_falls_behind_shows_it_at_once_and_is_used_to_it_after_five_minutes():
    lag = FeedLag()
    for second in range(10):
        lag.seen(second * S, second * S - 7)
    lags = []
    for second in range(10, 400):
        lag.seen(second * S, second * S - 7 - S)
        lags.append(lag.lag_ns(second * S))
    assert lags[0] == S
    assert lags[270] == S
    assert lags[-1] == 0


def test_when_the_floor_leaves_the_least_of_each_later_bucket_counts():
    lag = FeedLag()
    lag.seen(0, 0)
    floors = []
    for bucket in range(1, 12):
        for second, raw_ns in ((0, 100), (10, 40 + bucket), (20, 100)):
            now_ns = bucket * BUCKET_NS + second * S
            lag.seen(now_ns, now_ns - raw_ns)
        floors.append(100 - (lag.lag_ns(now_ns) or 0))
    assert floors == [0] * 9 + [41, 42]


def test_nothing_recent_is_no_lag():
    lag = FeedLag()
    assert lag.lag_ns(5) is None
    assert lag.raw_ns() is None
    lag.seen(10 * S, 9 * S)
    assert lag.lag_ns(12 * S) == 0
    assert lag.lag_ns(12 * S + 1) is None
    assert lag.lag_ns(60 * S, 50 * S) == 0


def test_what_was_before_a_long_silence_is_no_floor_any_more():
    lag = FeedLag()
    lag.seen(0, 0)
    lag.seen(3600 * S, 3595 * S)
    assert lag.lag_ns(3600 * S) == 0, "nothing of the last five minutes was faster"


def test_after_our_clock_was_set_what_was_seen_before_says_nothing():
    lag = FeedLag()
    lag.seen(3600 * S, 3600 * S)
    lag.forget()
    lag.seen(10 * S, 5 * S)
    assert lag.lag_ns(10 * S) == 0
    lag.seen(11 * S, 5 * S + S // 2)
    assert lag.lag_ns(11 * S) == S // 2


@pytest.mark.parametrize("wrong_s", [7000, 30, -30, -7000])
def test_one_wrong_time_is_not_believed_and_does_no_harm(wrong_s):
    lag = FeedLag()
    for second in range(20):
        sent_ns = (1000 + second) * S + (wrong_s * S if second == 10 else 0)
        lag.seen((1000 + second) * S, sent_ns)
        assert lag.lag_ns((1000 + second) * S) == 0


@pytest.mark.parametrize("step_s", [7000, 30, -30, -7000])
def test_an_exchange_that_sets_its_clock_is_believed_after_some_frames(step_s):
    lag = FeedLag()
    for second in range(40):
        sent_ns = (10_000 + second) * S + (step_s * S if second >= 10 else 0)
        lag.seen((10_000 + second) * S, sent_ns)
        assert lag.lag_ns((10_000 + second) * S, within_ns=10 * S) == 0
    lag.seen(10_041 * S, (10_040 + step_s) * S)
    assert lag.lag_ns(10_041 * S) == S, "and a real lag is seen again"


def test_a_backlog_that_grows_as_fast_as_time_passes_is_a_lag_and_no_step():
    lag = FeedLag()
    for tick in range(200):
        lag.seen(1000 * S + tick * S // 10, 1000 * S + min(tick, 20) * S // 10)
    assert lag.lag_ns(1000 * S + 199 * S // 10) == 179 * S // 10
