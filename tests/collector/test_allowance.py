"""The allowance against a naive one that keeps every booking and looks at every window."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.collector.allowance import Allowance
from services.collector.exchanges import EXCHANGES
from services.collector.exchanges.base import Rule

S = 1_000_000_000
RULES = st.lists(
    st.tuples(st.sampled_from([1, 2, 3, 8]), st.sampled_from([0.5, 1.0, 2.0, 5.0])).map(Rule._make), max_size=3
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from([0, 1, S // 4, S // 2, S - 1, S]) | st.integers(0, 6 * S),  # time that passes
        st.sampled_from([1, 1, 1, 2, 10]),  # cost
        st.none() | st.integers(0, 8 * S),  # the exchange says wait, so long
    ),
    min_size=1,
    max_size=30,
)


class Naive:
    """Every booking, for ever; the next one is at the earliest moment that breaks no rule."""

    def __init__(self, rules: list[tuple[int, int]]) -> None:
        self.rules = rules
        self.booked: list[tuple[int, int]] = []

    def fits(self, at_ns: int, cost: int) -> bool:
        return all(
            self.within(at_ns - window_ns, at_ns, most) + min(cost, most) <= most for most, window_ns in self.rules
        )

    def within(self, after_ns: int, until_ns: int, most: int) -> int:
        """Booked in (after, until]."""
        return sum(min(cost, most) for at_ns, cost in self.booked if after_ns < at_ns <= until_ns)

    def earliest(self, from_ns: int, cost: int) -> int:
        from_ns = max(from_ns, self.booked[-1][0] if self.booked else 0)  # first come, first served
        moments = {from_ns} | {at_ns + window_ns for at_ns, _ in self.booked for _, window_ns in self.rules}
        return min(at_ns for at_ns in moments if at_ns >= from_ns and self.fits(at_ns, cost))


@given(RULES, STEPS)
def test_any_reservations_keep_every_rule_in_every_window_and_wait_no_longer_than_they_must(rules, steps):
    allowance = Allowance(rules)
    naive = Naive([(rule.most, int(rule.seconds * 1e9)) for rule in rules])
    now_ns = blocked_ns = last_ns = 1_700_000_000 * S
    for passed_ns, cost, wait_ns in steps:
        now_ns += passed_ns
        if wait_ns is not None:
            blocked_ns = max(blocked_ns, now_ns + wait_ns)
            allowance.block(now_ns + wait_ns)
        at_ns = allowance.reserve(now_ns, cost)
        assert at_ns >= max(now_ns, blocked_ns, last_ns)
        assert at_ns == naive.earliest(max(now_ns, blocked_ns), cost)
        naive.booked.append((at_ns, cost))
        last_ns = at_ns
    for most, window_ns in naive.rules:
        for at_ns, _ in naive.booked:
            assert naive.within(at_ns - window_ns, at_ns, most) <= most


@given(RULES, st.integers(1, 10))
def test_the_first_reservation_is_for_now(rules, cost):
    assert Allowance(rules).reserve(5 * S, cost) == 5 * S


def test_after_an_idle_window_nothing_waits():
    allowance = Allowance([Rule(2, 1.0), Rule(3, 5.0)])
    assert [allowance.reserve(0) for _ in range(4)] == [0, 0, S, 5 * S]
    assert allowance.reserve(10 * S) == 10 * S


def test_a_booking_counts_until_its_window_is_over_and_not_longer():
    for later_ns, at_ns in ((S // 2, S), (S - 1, S), (S, S), (S + 1, S + 1)):
        allowance = Allowance([Rule(2, 1.0)])
        assert [allowance.reserve(0), allowance.reserve(0)] == [0, 0]
        assert allowance.reserve(later_ns) == at_ns


def test_a_cost_above_the_rule_takes_the_whole_window():
    allowance = Allowance([Rule(10, 1.0)])
    assert [allowance.reserve(0, cost) for cost in (1, 250, 1)] == [0, S, 2 * S]


def test_without_rules_only_a_block_waits():
    allowance = Allowance([])
    assert [allowance.reserve(7, 100) for _ in range(3)] == [7, 7, 7]
    allowance.block(50)
    assert allowance.reserve(8) == 50


def test_a_block_holds_everything_back_and_a_shorter_one_does_not_shorten_it():
    allowance = Allowance([Rule(5, 1.0)])
    allowance.block(30 * S)
    allowance.block(20 * S)
    assert allowance.blocked_until_ns() == 30 * S
    assert allowance.reserve(0) == 30 * S
    assert allowance.reserve(31 * S) == 31 * S


@given(st.integers(1, 6000), st.integers(1, 64))
def test_a_share_is_that_part_of_the_rule_and_never_nothing(most, of):
    allowance = Allowance([Rule(most, 1.0)], 1 / of)
    at_once = next(number for number in range(most + 1) if allowance.reserve(0) > 0)
    assert max(1, most // of - 1) <= at_once <= max(1, most // of)


@pytest.mark.parametrize("of", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES)
def test_processes_that_share_an_address_keep_its_rules_together(exchange, of):
    """Where a rule allows fewer than there are processes, each has its one now and then: all that start at the same
    moment may exceed it that once, and not in the long run."""
    limits = exchange.limits
    for rule in [*limits.connects, *limits.requests]:
        booked = []
        for _ in range(of):
            allowance = Allowance([rule], 1 / of)
            booked += [allowance.reserve(0) for _ in range(rule.most * 4 // of + 4)]
        for windows in (1, 3):
            at_once = of if rule.most < of else 0
            assert sum(at_ns < windows * rule.seconds * 1e9 for at_ns in booked) <= windows * rule.most + at_once
