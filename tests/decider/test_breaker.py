"""Every transition of the breaker's table, its opening rules against a model that keeps the whole history, and what
must hold under any interleaving."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.decider.breaker import MOST_CALLS, Breaker, Result, State
from shared.settings import GuardSettings

OK, SLOW, FAILED, LATE, NEUTRAL = Result.OK, Result.SLOW, Result.FAILED, Result.LATE, Result.NEUTRAL
LOST_S = 60.0
T0 = 1000.0
FIRST_S = 5.0  # the default cool-down


@pytest.fixture
def guards(configured) -> GuardSettings:
    return configured.guards


@pytest.fixture
def breaker(guards) -> Breaker:
    return Breaker(guards, LOST_S)


def call(breaker: Breaker, result: Result, now_s: float) -> str | None:
    """A call that is over at once."""
    assert breaker.try_acquire(now_s)
    return breaker.report(result, now_s)


def calls(breaker: Breaker, results: list[Result], now_s: float) -> str | None:
    """Calls of which only the last may open or close it; what that one said."""
    words = None
    for n, result in enumerate(results):
        words = call(breaker, result, now_s)
        assert words is None or n == len(results) - 1, f"already after call {n + 1}: {words}"
    return words


def tripped(guards: GuardSettings) -> Breaker:
    """Opened at T0 by `consecutive` lates in a row."""
    breaker = Breaker(guards, LOST_S)
    assert calls(breaker, [LATE] * guards.consecutive, T0) is not None
    assert breaker.state(T0) == State.OPEN
    return breaker


def tripped_for_slow(guards: GuardSettings) -> Breaker:
    """Opened at T0 by slow answers."""
    breaker = Breaker(guards, LOST_S)
    assert calls(breaker, [SLOW] * guards.slow_min_calls, T0) is not None
    assert breaker.state(T0) == State.OPEN
    return breaker


# ---------------------------------------------------------------- closed -> open


def test_ten_lates_in_a_row_open_it_and_nine_do_not(breaker):
    words = calls(breaker, [LATE] * 9 + [OK] + [LATE] * 10, T0)
    assert words == "breaker opened: 10 failures or late answers in a row; tried again in 5 s"
    assert (breaker.state(T0), breaker.allows(T0)) == (State.OPEN, False)


def test_a_row_of_failures_has_no_window_and_mixes_with_lates(breaker, guards):
    for n in range(9):
        assert call(breaker, FAILED if n % 2 else LATE, T0 + n * 2 * guards.window_s) is None
    words = call(breaker, FAILED, T0 + 18 * guards.window_s)
    assert words is not None
    assert "10 failures or late answers in a row" in words


@pytest.mark.parametrize("between", [OK, SLOW])
def test_any_answer_ends_a_row(guards, between):
    breaker = Breaker(guards.model_copy(update={"slow_min_calls": 100}), LOST_S)
    assert calls(breaker, ([LATE] * 9 + [between]) * 2, T0) is None


def test_a_neutral_call_does_not_end_a_row(breaker):
    assert calls(breaker, [LATE] * 5 + [NEUTRAL] * 20 + [LATE] * 5, T0) is not None


def test_error_rate_above_five_percent_of_forty_opens_it_and_exactly_that_does_not(guards):
    at_the_share = Breaker(guards, LOST_S)
    assert calls(at_the_share, [FAILED, OK] + [OK] * 19 + [FAILED] + [OK] * 18, T0) is None, "2 of 40"
    above = Breaker(guards, LOST_S)
    words = calls(above, [FAILED, OK, FAILED, OK, FAILED] + [OK] * 35, T0)
    assert words == "breaker opened: 3 of 40 calls failed within 60 s; tried again in 5 s"


def test_error_rate_above_half_of_eight_opens_it_and_half_does_not(guards):
    half = Breaker(guards, LOST_S)
    assert calls(half, [OK, FAILED] * 10, T0) is None
    above = Breaker(guards, LOST_S)
    words = calls(above, [OK, OK, OK] + [FAILED] * 5, T0)
    assert words is not None
    assert "5 of 8 calls failed" in words
    seven = Breaker(guards, LOST_S)
    assert calls(seven, [FAILED] * 7, T0) is None


def test_late_calls_neither_raise_nor_hide_an_error_rate(guards):
    only_late = Breaker(guards, LOST_S)
    assert calls(only_late, ([OK] * 5 + [LATE] * 4) * 6, T0) is None, "24 of 54 late, no error"
    hidden = Breaker(guards, LOST_S)
    words = calls(hidden, [OK, LATE, OK, LATE, OK, LATE] + [LATE] * 3 + [OK] + [FAILED] * 5, T0)
    assert words is not None
    assert "5 of 9 calls failed" in words, "of 15 it would be a third"


def test_errors_older_than_the_window_do_not_count(breaker, guards):
    assert calls(breaker, [OK, OK, OK] + [FAILED] * 4, T0) is None
    assert calls(breaker, [FAILED] + [OK] * 38, T0 + guards.window_s) is None, "1 of 39; of 46 it would be 5"
    assert calls(breaker, [FAILED, OK], T0 + guards.window_s) is None, "2 of 41"


def test_more_than_half_of_twenty_slow_or_late_open_it_and_half_do_not(guards):
    half = Breaker(guards, LOST_S)
    assert calls(half, [OK, SLOW] * 20, T0) is None
    few = Breaker(guards, LOST_S)
    assert calls(few, [SLOW] * 19, T0) is None
    above = Breaker(guards, LOST_S)
    words = calls(above, [OK] * 9 + [SLOW] * 6 + [LATE] * 5, T0)
    assert words == "breaker opened: 11 of 20 answers slow or late within 60 s; tried again in 30 s"


def test_a_rule_can_be_met_by_a_good_call(breaker, guards):
    """The fortieth call of which three failed is above five percent, whatever the fortieth was."""
    assert calls(breaker, [FAILED] * 3 + [OK] * 36, T0) is None
    assert call(breaker, OK, T0) is not None


# ---------------------------------------------------------------- open -> half-open -> closed or open


def test_open_refuses_until_the_cooldown_is_over_then_lets_one_call_through(guards):
    breaker = tripped(guards)
    just_before = T0 + FIRST_S - 0.001
    assert (breaker.state(just_before), breaker.try_acquire(just_before)) == (State.OPEN, False)
    at = T0 + FIRST_S
    assert (breaker.state(at), breaker.allows(at)) == (State.HALF_OPEN, True)
    assert [breaker.try_acquire(at) for _ in range(3)] == [True, False, False]
    assert breaker.state(at) == State.HALF_OPEN


def test_three_good_trials_close_it_and_a_slow_one_is_good(guards):
    breaker = tripped(guards)
    at = T0 + FIRST_S
    assert calls(breaker, [OK, SLOW], at) is None
    assert breaker.state(at) == State.HALF_OPEN
    assert call(breaker, OK, at) == "breaker closed: 3 good answers since the last bad one"
    assert breaker.state(at) == State.CLOSED
    assert [breaker.try_acquire(at) for _ in range(5)] == [True] * 5


@pytest.mark.parametrize("bad", [FAILED, LATE])
def test_a_bad_trial_opens_it_again_for_twice_as_long_up_to_the_most(guards, bad):
    breaker, now_s, waits = tripped(guards), T0, []
    for _ in range(9):
        wait_s = next(s for s in (5, 10, 20, 40, 80, 160, 300) if breaker.allows(now_s + s))
        now_s += wait_s
        waits.append(wait_s)
        assert call(breaker, bad, now_s) is None, "an operator was told when it opened"
        assert breaker.state(now_s) == State.OPEN
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]


def test_a_bad_trial_takes_the_good_ones_back(guards):
    breaker = tripped(guards)
    calls(breaker, [OK, OK, FAILED], T0 + 5)
    assert calls(breaker, [OK, OK], T0 + 15) is None
    assert call(breaker, OK, T0 + 15) is not None


def test_once_closed_the_cooldown_the_window_and_the_row_begin_anew(guards):
    breaker = tripped(guards)
    call(breaker, FAILED, T0 + 5)
    call(breaker, FAILED, T0 + 15)
    assert calls(breaker, [OK] * 3, T0 + 35) is not None
    words = calls(breaker, [LATE] * 10, T0 + 35)
    assert words is not None
    assert "in 5 s" in words


def test_a_cooldown_longer_than_the_longest_is_the_longest(guards):
    breaker = tripped(guards.model_copy(update={"cooldown_s": 50.0, "cooldown_max_s": 7.0}))
    assert not breaker.allows(T0 + 6.9)
    assert call(breaker, FAILED, T0 + 7) is None
    assert breaker.allows(T0 + 14)


# ---------------------------------------------------------------- slow


def test_a_slow_model_is_tried_once_per_slow_probe_and_closes_after_three_that_are_not(guards):
    breaker, wait_s = tripped_for_slow(guards), guards.slow_probe_s
    words = None
    for n in (1, 2, 3):
        assert words is None
        assert not breaker.allows(T0 + n * wait_s - 0.001)
        words = call(breaker, OK, T0 + n * wait_s)
        assert breaker.state(T0 + n * wait_s) == (State.OPEN if n < 3 else State.CLOSED)
    assert words == "breaker closed: 3 good answers since the last bad one"


@pytest.mark.parametrize("bad", [SLOW, LATE, FAILED])
def test_a_slow_trial_of_a_slow_model_is_a_bad_one_and_does_not_lengthen_the_wait(guards, bad):
    breaker, wait_s = tripped_for_slow(guards), guards.slow_probe_s
    now_s = T0
    for result in (OK, OK, bad, bad, bad, OK, OK):
        now_s += wait_s
        assert not breaker.allows(now_s - 0.001)
        assert call(breaker, result, now_s) is None
    assert call(breaker, OK, now_s + wait_s) is not None


def test_where_it_fails_and_is_slow_the_failures_decide_how_it_is_tried(guards):
    breaker = Breaker(guards, LOST_S)
    words = calls(breaker, [SLOW] * 10 + [LATE] * 10, T0)
    assert words is not None
    assert "in a row; tried again in 5 s" in words


# ---------------------------------------------------------------- the slot of the trial


def test_a_trial_that_came_to_nothing_gives_its_slot_back_and_counts_for_nothing(guards):
    breaker = tripped(guards)
    at = T0 + FIRST_S
    for result in (OK, NEUTRAL, OK, NEUTRAL, NEUTRAL):
        assert call(breaker, result, at) is None
        assert breaker.state(at) == State.HALF_OPEN
    assert call(breaker, OK, at) is not None


def test_a_trial_that_is_never_reported_is_given_up(guards):
    breaker = tripped(guards)
    at = T0 + FIRST_S
    assert breaker.try_acquire(at)
    assert not breaker.try_acquire(at + LOST_S - 0.001)
    assert breaker.state(at + LOST_S) == State.HALF_OPEN
    assert breaker.try_acquire(at + LOST_S)


def test_reports_of_calls_from_before_it_opened_are_no_trials(guards):
    breaker = Breaker(guards, LOST_S)
    assert all(breaker.try_acquire(T0) for _ in range(13))
    for _ in range(10):
        breaker.report(LATE, T0)
    at = T0 + 2 * FIRST_S
    assert (breaker.state(at), breaker.allows(at)) == (State.OPEN, False), "three calls may still report"
    assert [breaker.report(OK, at) for _ in range(3)] == [None] * 3
    assert breaker.state(at) == State.HALF_OPEN, "and the three good ones did not close it"
    assert calls(breaker, [OK] * 3, at) is not None


def test_calls_from_before_it_opened_that_never_report_hold_it_up_only_so_long(guards):
    breaker = Breaker(guards, LOST_S)
    assert all(breaker.try_acquire(T0) for _ in range(11))
    for _ in range(10):
        breaker.report(LATE, T0)
    assert not breaker.allows(T0 + LOST_S - 0.001)
    assert breaker.try_acquire(T0 + LOST_S)
    breaker.report(FAILED, T0 + LOST_S)
    assert not breaker.allows(T0 + LOST_S + 2 * FIRST_S - 0.001), "that was the report of the trial"
    assert breaker.allows(T0 + LOST_S + 2 * FIRST_S)


def test_calls_lost_long_before_it_opened_do_not_hold_it_up(guards):
    breaker = Breaker(guards, LOST_S)
    assert breaker.try_acquire(T0 - LOST_S)
    assert calls(breaker, [LATE] * 10, T0) is not None
    assert breaker.allows(T0 + FIRST_S)


@pytest.mark.parametrize("result", list(Result))
def test_a_report_that_nobody_waits_for_changes_nothing_while_open(guards, result):
    breaker = tripped(guards)
    for at, state in ((T0, State.OPEN), (T0 + FIRST_S, State.HALF_OPEN)):
        for _ in range(20):
            assert breaker.report(result, at) is None
        assert breaker.state(at) == state
    assert breaker.allows(T0 + FIRST_S)


# ---------------------------------------------------------------- clock and memory


def test_a_clock_set_back_keeps_the_rest_of_a_cooldown_and_no_more(guards):
    breaker = tripped(guards)
    assert not breaker.allows(T0 + 2)
    assert not breaker.allows(0.0), "set back by a thousand seconds, three are left"
    assert not breaker.allows(2.9)
    assert breaker.try_acquire(3.0)
    breaker.report(FAILED, -500.0)
    assert not breaker.allows(-490.5)
    assert breaker.allows(-490.0)


def test_memory_is_bounded_however_many_calls_there_are_in_a_window(breaker):
    now_s = T0

    def many(count: int) -> None:
        nonlocal now_s
        for n in range(count):
            now_s += 1e-5
            call(breaker, NEUTRAL if n % 3 == 0 else OK, now_s)

    many(2 * MOST_CALLS)
    tracemalloc.start()
    try:
        many(2 * MOST_CALLS)
        full, _ = tracemalloc.get_traced_memory()
        many(8 * MOST_CALLS)
        later, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert later - full < 20_000, "one more window would be some 500 kB"


def test_a_minimum_of_calls_beyond_what_is_kept_is_still_reached(guards):
    least = MOST_CALLS + 904
    breaker = Breaker(guards.model_copy(update={"error_min_calls": least, "error_share_few": 1.0}), LOST_S)
    assert calls(breaker, [FAILED, OK] * (least // 2), T0) is not None


# ---------------------------------------------------------------- properties

QUARTERS = st.integers(0, 12).map(lambda n: n / 4)
COUNTED = st.sampled_from([OK, OK, SLOW, FAILED, LATE, NEUTRAL])
SMALL = {
    "window_s": 5.0,
    "consecutive": 4,
    "error_share": 0.25,
    "error_min_calls": 8,
    "error_share_few": 0.5,
    "error_min_calls_few": 5,
    "slow_share": 0.5,
    "slow_min_calls": 6,
    "slow_probe_s": 7.0,
    "cooldown_s": 2.0,
    "cooldown_max_s": 9.0,
    "successes_to_close": 2,
}


def which_rule(history: list[tuple[float, Result]], now_s: float) -> str | None:
    """The rules as the specification says them, on every call since it last closed."""
    row = 0
    for _, result in history:
        row = row + 1 if result in (FAILED, LATE) else 0
    recent = [result for at, result in history if at > now_s - SMALL["window_s"]]
    errors = [result == FAILED for result in recent if result != LATE]
    bad = [result in (SLOW, LATE) for result in recent]
    if row >= SMALL["consecutive"]:
        return "failing"
    if len(errors) >= SMALL["error_min_calls"] and sum(errors) > SMALL["error_share"] * len(errors):
        return "failing"
    if len(errors) >= SMALL["error_min_calls_few"] and sum(errors) > SMALL["error_share_few"] * len(errors):
        return "failing"
    if len(bad) >= SMALL["slow_min_calls"] and sum(bad) > SMALL["slow_share"] * len(bad):
        return "slow"
    return None


@given(steps=st.lists(st.tuples(st.sampled_from([0.0, 0.0, 0.25, 1.0, 2.5]), COUNTED), max_size=120))
def test_it_opens_exactly_when_the_whole_history_says_so(steps):
    breaker = Breaker(GuardSettings.model_construct(**SMALL), LOST_S)
    history: list[tuple[float, Result]] = []
    now_s = T0
    for wait_s, result in steps:
        now_s += wait_s
        words = call(breaker, result, now_s)
        if result == NEUTRAL:
            assert words is None
            continue
        history.append((now_s, result))
        rule = which_rule(history, now_s)
        assert (breaker.state(now_s) == State.OPEN) == (rule is not None) == (words is not None)
        if rule is None:
            continue
        for _ in range(2):
            cooldown_s = SMALL["slow_probe_s"] if rule == "slow" else SMALL["cooldown_s"]
            if breaker.state(now_s) == State.OPEN:
                assert not breaker.allows(now_s + cooldown_s - 0.001)
                now_s += cooldown_s
            words = call(breaker, OK, now_s)
        assert words is not None
        assert breaker.state(now_s) == State.CLOSED
        history = []


Moves = st.lists(
    st.one_of(
        st.just(("ask", 0)),
        st.tuples(st.just("wait"), st.sampled_from([0.25, 1.0, 2.0, 7.0])),
        st.tuples(st.integers(0, 7), st.sampled_from([OK, OK, SLOW, FAILED, FAILED, LATE, LATE, NEUTRAL])),
    ),
    max_size=150,
)


@given(moves=Moves)
def test_at_most_one_trial_is_under_way_and_only_trials_judge_whatever_the_order(moves):
    lost_s = 20.0
    breaker = Breaker(GuardSettings.model_construct(**SMALL), lost_s)
    now_s = T0
    under_way: list[tuple[float, bool]] = []  # since when, and whether it is a trial
    good, for_slow = 0, False
    for what, how in moves:
        state = breaker.state(now_s)
        if what == "wait":
            now_s += how
            under_way = [(since, trial) for since, trial in under_way if now_s - since < lost_s]
        elif what == "ask":
            expected = breaker.allows(now_s)
            assert breaker.try_acquire(now_s) == expected
            if expected:
                under_way.append((now_s, state != State.CLOSED))
        elif under_way:
            _, trial = under_way.pop(what % len(under_way))
            words = breaker.report(how, now_s)
            if state == State.CLOSED:
                assert not trial
                good, for_slow = 0, words is not None and "slow" in words
            elif not trial:
                assert words is None, "a call from before it opened said something"
            elif how != NEUTRAL:
                good = good + 1 if how == OK or (how == SLOW and not for_slow) else 0
                closed = good == SMALL["successes_to_close"]
                assert (words is not None) == closed == (breaker.state(now_s) == State.CLOSED)
                assert good or breaker.state(now_s) == State.OPEN
        trials = sum(trial for _, trial in under_way)
        assert trials <= 1
        if trials:
            assert not breaker.allows(now_s)
            assert len(under_way) == 1, "a trial beside a call from before it opened"
        if breaker.state(now_s) == State.CLOSED:
            assert breaker.allows(now_s)


@given(
    moves=st.lists(
        st.tuples(st.sampled_from([0.0, 0.0, 0.5, 3.0, 100.0, -0.5, -4.0, -1e5]), st.booleans(), COUNTED),
        max_size=150,
    )
)
def test_it_is_never_stuck_whatever_was_reported_lost_or_said_by_the_clock(moves):
    breaker = Breaker(GuardSettings.model_construct(**SMALL), lost_after_s=20.0)
    now_s = T0
    for wait_s, ask, result in moves:
        now_s += wait_s
        if ask:
            breaker.try_acquire(now_s)
        else:
            breaker.report(result, now_s)
    quiet_s = max(SMALL["cooldown_max_s"], SMALL["slow_probe_s"], 20.0)
    assert breaker.try_acquire(now_s + 1 + quiet_s), "one second for a reading that was behind"
