"""No cap is ever passed, whatever the providers report."""

from decimal import Decimal
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.decider import budget as money
from services.decider.budget import DAY_NS, MINUTE_NS, Budget
from shared import settings

CONFIGURED = settings.load()
MODEL = CONFIGURED.models["gemini-3.5-flash-lite"]
D = Decimal


def limits(**caps):
    return CONFIGURED.decider.model_copy(update={name: D(value) for name, value in caps.items()})


STEPS = st.lists(
    st.tuples(
        st.decimals("0", "0.012", places=4),
        st.decimals("-1", "5", places=2),
        st.integers(0, 40_000_000_000),
        st.booleans(),
    ),
    max_size=60,
)


@given(STEPS)
def test_i5_spending_stays_within_every_cap_under_any_reported_usage(steps):
    caps = limits(max_call_usd="0.01", max_opportunity_usd="0.02", max_minute_usd="0.05", max_day_usd="0.1")
    budget, now = Budget(caps), 0
    spent: list[tuple[int, list[Decimal]]] = []
    pending = []
    for amount, actual, wait, settle_now in steps:
        now += wait
        reservation = budget.reserve(amount, D(0), now)
        if reservation is not None:
            assert amount <= caps.max_call_usd
            spent.append((now, [amount]))
            pending.append((reservation, actual, spent[-1][1]))
        if settle_now:
            for one, used, cell in pending:
                budget.settle(one, used, now)
                budget.settle(one, used, now)  # twice must not count twice
                cell[0] = min(max(used, D(0)), cell[0])
            pending.clear()
        minute = sum((cell[0] for at, cell in spent if now - at < MINUTE_NS), D(0))
        day = sum((cell[0] for at, cell in spent if now - at < DAY_NS), D(0))
        assert budget.spent(now) == (minute, day)
        assert minute <= caps.max_minute_usd
        assert day <= caps.max_day_usd


@pytest.mark.parametrize(
    ("amount", "on_opportunity", "allowed"),
    [("0.01", "0", True), ("0.0101", "0", False), ("0.01", "0.01", True), ("0.01", "0.0101", False)],
)
def test_caps_per_call_and_opportunity(amount, on_opportunity, allowed):
    assert (Budget(limits()).reserve(D(amount), D(on_opportunity), 0) is not None) is allowed


def test_money_comes_back_with_time():
    budget = Budget(limits(max_minute_usd="0.01"))
    assert budget.reserve(D("0.01"), D(0), 0) is not None
    assert budget.reserve(D("0.001"), D(0), MINUTE_NS - 1) is None
    assert budget.reserve(D("0.01"), D(0), MINUTE_NS) is not None


@pytest.mark.parametrize(
    ("read", "written", "tokens"),
    [
        (10, 5, (10, 5)),
        (-3, -1, (0, 0)),
        (10**12, 10**12, (83, 120)),
        (None, None, (83, 120)),
        ("7", True, (83, 120)),
        (1.5, 2.5, (83, 120)),
    ],
)
def test_reported_usage_is_a_claim(read, written, tokens):
    usage = SimpleNamespace(prompt_tokens=read, completion_tokens=written)
    found = money.clamp(MODEL, "x" * 100, usage)
    assert (found.input, found.out) == tokens
    assert money.cost(MODEL, found) <= money.worst_case(MODEL, "x" * 100)


def test_cost_by_hand():
    usage = SimpleNamespace(
        prompt_tokens=80, completion_tokens=50, prompt_tokens_details=SimpleNamespace(cached_tokens=30)
    )
    found = money.clamp(MODEL, "x" * 100, usage)
    # 50 fresh at 0.30, 30 cached at 0.03, 50 written at 2.50 USD a million
    assert money.cost(MODEL, found) == D("0.0001409")
