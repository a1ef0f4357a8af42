"""What a simulated model answers, and how long it takes. Through the real client: test_service.py."""

import asyncio
import random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from services.simulator import model
from services.simulator.model import ModelEndpoint, answer
from shared.messages import RoleAnswer

CALM = {
    "role": "risk",
    "net_bps": 30.0,
    "peak_net_bps": 31.0,
    "limited_by": "margin",
    "volatility_bps_1m": 4.0,
    "trades_1m": 120,
    "buy_share_1m": 0.5,
    "buy": {"age_ms": 20, "spread_bps": 1.0, "imbalance": 0.0, "fits": 9.0},
    "sell": {"age_ms": 40, "spread_bps": 1.0, "imbalance": 0.0, "fits": 7.0},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["age_ms", "fits", "x"]), inner),
    max_leaves=6,
)


def answers(role: str = "risk", count: int = 60, **changes: Any) -> list[dict[str, Any]]:
    """To the same numbers with many seeds."""
    return [answer(role, {**CALM, **changes}, random.Random(seed)) for seed in range(count)]


@given(
    st.sampled_from(["sentiment", "risk", "volatility", "", "other"]),
    st.dictionaries(st.sampled_from([*CALM, "bridge", "junk"]), JSON),
    st.integers(),
)
def test_whatever_is_asked_the_answer_keeps_the_contract(role, numbers, seed):
    found = RoleAnswer.model_validate_json(orjson.dumps(answer(role, numbers, random.Random(seed))))
    assert None not in (found.pressure, found.liquidity, found.manipulation)


@pytest.mark.parametrize(
    ("field", "value", "changes"),
    [
        ("liquidity", "ample", {}),
        ("liquidity", "enough", {"sell": {"fits": 2.0}}),
        ("liquidity", "thin", {"limited_by": "depth"}),
        ("liquidity", "thin", {"buy": {"fits": 1.1}}),
        ("pressure", "balanced", {}),
        ("pressure", "buyers", {"buy_share_1m": 0.9}),
        ("pressure", "sellers", {"buy": {"imbalance": -0.8, "fits": 9}, "sell": {"imbalance": -0.6, "fits": 9}}),
        ("manipulation", "low", {}),
        ("manipulation", "medium", {"net_bps": 90.0}),
        ("manipulation", "high", {"net_bps": 180.0}),
    ],
)
def test_the_lists_follow_the_numbers(field, value, changes):
    assert {found[field] for found in answers(**changes)} == {value}


def test_the_risk_role_vetoes_old_books_also_of_the_third_order():
    fresh = answers()
    assert sum(found["veto"] for found in fresh) < len(fresh) / 4
    assert all(found["veto"] or found["code"] == "UNSURE" for found in answers(bridge={"age_ms": 1900}))


def test_a_better_edge_gets_a_higher_probability_and_a_dying_one_a_lower():
    def mean(**changes: Any) -> float:
        return sum(found["p_edge"] for found in answers(**changes)) / 60

    assert mean(net_bps=5.0, peak_net_bps=5.0) < mean() < mean(net_bps=60.0)
    assert mean(peak_net_bps=90.0) < mean() - 0.05


# ---------------------------------------------------------------- how long it takes


async def waited(
    monkeypatch: pytest.MonkeyPatch, endpoint: ModelEndpoint, name: str, **fields: Any
) -> tuple[int, float]:
    """HTTP status, and what the endpoint slept."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def receive() -> dict[str, Any]:
        call = {"model": name, "messages": [{"role": "user", "content": "{}"}], **fields}
        return {"type": "http.request", "body": orjson.dumps(call), "more_body": False}

    scope = {"type": "http", "method": "POST", "headers": [(b"authorization", b"Bearer k")]}
    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "sleep", sleep)
        reply = await endpoint.complete(Request(scope, receive))
    return reply.status_code, sum(slept)


async def test_a_request_says_how_long_it_takes_or_the_endpoints_table_or_the_default(monkeypatch):
    endpoint = ModelEndpoint(1, 0.0, latency_s={"gpt-6*": (7.0, 7.0)})
    assert await waited(monkeypatch, endpoint, "gpt-6-luna", simulated_latency_ms=250) == (200, 0.25)
    assert await waited(monkeypatch, endpoint, "gpt-6-luna") == (200, 7.0)
    low, high = model.LATENCY_S["gpt*"]
    assert low <= (await waited(monkeypatch, endpoint, "gpt-4.1"))[1] <= high
    _, drawn = await waited(monkeypatch, endpoint, "any", simulated_latency_ms=[1000, 2000])
    assert 1 <= drawn <= 2
    assert await waited(monkeypatch, ModelEndpoint(1, 0.0, speed=10), "any", simulated_latency_ms=500) == (200, 0.05)


@pytest.mark.parametrize("wrong", ["250", True, -1, [1], [2, 1], [1, 2, 3], [1, "2"], 1e9, {}])
async def test_a_latency_that_is_none_is_refused(monkeypatch, wrong):
    assert await waited(monkeypatch, ModelEndpoint(1, 0.0), "any", simulated_latency_ms=wrong) == (400, 0)
