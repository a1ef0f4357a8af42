"""An OpenAI-compatible endpoint with scripted answers, latencies and faults: models for people without keys.

It reads the numbers of the last user message and answers our role contract (`messages.RoleAnswer`) as a model would:
higher edges get higher probabilities, old books a veto. Seeded by the request, so that the same question gets the same
answer.

How long an answer takes is drawn between two times by the model's name (`LATENCY_S`, or the endpoint's own table). A
request may say it itself, which a model's settings can do for all its calls: `request = { extra_body = {
simulated_latency_ms = 250 } }`, or `[100, 400]` to draw between two.
"""

import asyncio
import fnmatch
import hashlib
import math
import random
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

LATENCY_S = {"gpt*": (0.15, 0.45), "gemini*": (0.12, 0.35), "deepseek*": (0.2, 0.7), "*": (0.1, 0.4)}
"""Shortest and longest time of an answer, by model name."""

LATE_S = 3.0
FAULTS = ("rate_limited", "server", "invalid", "late")
MODELS = (*("gpt-6-luna", "gpt-5.4-mini", "gpt-4.1", "gemini-3.5-flash-lite", "gemini-2.5-flash", "deepseek-flash"),)
"""What it says it has; it answers to any name."""

MOST_LATENCY_S = 60.0


def answer(role: str, numbers: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """A role's answer from the numbers of its question (`decider.prompt`); missing ones count as zero."""
    legs = [leg for name in ("buy", "sell", "bridge") if isinstance(leg := numbers.get(name), dict)]
    coin = legs[:2]
    net, volatility = _number(numbers, "net_bps"), _number(numbers, "volatility_bps_1m")
    age_ms = max((_number(leg, "age_ms") for leg in legs), default=0.0)
    fits = min((_number(leg, "fits") for leg in coin if leg.get("fits") is not None), default=0.0)
    spread = max((_number(leg, "spread_bps") for leg in legs), default=0.0)
    peak = max(net, _number(numbers, "peak_net_bps"))
    p_edge = 1 / (1 + math.exp(-_clipped((net - 12) / 12, 30))) - min(0.3, age_ms / 10_000) + draw.uniform(-0.08, 0.08)
    if peak > 0 and net < peak / 2:
        p_edge -= 0.1  # on its way out
    liquidity = "thin" if fits < 1.2 or numbers.get("limited_by") == "depth" else "ample" if fits >= 5 else "enough"
    push = _push(numbers, coin)
    pressure = "buyers" if push > 0.2 else "sellers" if push < -0.2 else "balanced"
    manipulation = "high" if net > 150 else "medium" if net > 80 or spread > 50 else "low"
    found = {
        "p_edge": round(min(0.99, max(0.01, p_edge)), 2),
        "view": "hold",
        "veto": False,
        "volatility": 0.0,
        "code": "OK",
        "pressure": pressure,
        "liquidity": liquidity,
        "manipulation": manipulation,
        "note": f"net {net:g} bps",
    }
    if draw.random() < 0.04:
        return found | {"code": "UNSURE", "note": "not enough to judge"}
    if role == "sentiment":
        found["view"] = "sell" if push < -0.6 else "buy" if push >= -0.2 or net > 20 else "hold"
        found["note"] = f"{pressure}, {_number(numbers, 'trades_1m'):g} trades a minute"
    elif role == "risk":
        stale = age_ms > 1500
        found["veto"] = stale or manipulation == "high" or draw.random() < 0.05
        found["code"] = "STALE" if stale else "EVENT" if manipulation == "high" else "THIN" if found["veto"] else "OK"
        found["note"] = f"oldest book {age_ms:g} ms, size fits {fits:g} times"
    elif role == "volatility":
        found["volatility"] = round(min(1.0, max(0.0, volatility) / 25 + draw.uniform(0.0, 0.25)), 2)
        found["note"] = f"{volatility:g} bps a minute"
    return found


def _number(numbers: dict[str, Any], name: str) -> float:
    """0 for what is missing or no number."""
    value = numbers.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0.0
    return float(value)


def _clipped(value: float, most: float) -> float:
    return min(max(value, -most), most)


def _push(numbers: dict[str, Any], coin: list[dict[str, Any]]) -> float:
    """Who pushes, -1 (sellers) to 1 (buyers): the mean of the takers' side and the books' imbalances, where known."""
    seen = [_number(leg, "imbalance") for leg in coin if leg.get("imbalance") is not None]
    if numbers.get("buy_share_1m") is not None:
        seen.append(2 * _number(numbers, "buy_share_1m") - 1)
    return _clipped(sum(seen) / len(seen), 1) if seen else 0.0


def _latency_s(wanted: object) -> tuple[float, float] | None:
    """`simulated_latency_ms` of a request: a number, or the shortest and the longest; None if it does not say.

    Raises:
        ValueError: it says what is none.
    """
    if wanted is None:
        return None
    span = wanted if isinstance(wanted, list) else [wanted, wanted]
    numbers = [ms / 1000 for ms in span if isinstance(ms, int | float) and not isinstance(ms, bool)]
    if len(span) != 2 or len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1] <= MOST_LATENCY_S:
        raise ValueError(f"simulated_latency_ms: a number, or [shortest, longest], of at most {MOST_LATENCY_S:g} s")
    return numbers[0], numbers[1]


class ModelEndpoint:
    """The application.

    Args:
        faults: Share of calls that are refused, broken, wrong or late.
        speed: Divides all latencies (tests).
        latency_s: Shortest and longest time of an answer by model name (`gpt*`), before those of `LATENCY_S`.
    """

    def __init__(
        self, seed: int, faults: float, speed: float = 1.0, latency_s: Mapping[str, tuple[float, float]] | None = None
    ) -> None:
        self._seed = seed
        self._faults = faults
        self._speed = speed
        self._latency_s = [*(latency_s or {}).items(), *LATENCY_S.items()]
        self._calls = 0
        routes = [
            Route("/v1/chat/completions", self.complete, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
        ]
        self.app = Starlette(routes=routes)

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        refused = _unauthorised(request)
        return refused or JSONResponse(
            {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "simulator"} for name in MODELS]}
        )

    async def complete(self, request: Request) -> Response:
        """`POST /v1/chat/completions`, not streamed."""
        if (refused := _unauthorised(request)) is not None:
            return refused
        body = await request.body()
        try:
            call = orjson.loads(body)
            model, messages = str(call["model"]), call["messages"]
            texts = [str(message["content"]) for message in messages]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return _error(400, "model and messages are required", "invalid_request_error")
        if call.get("stream"):
            return _error(400, "this endpoint does not stream", "invalid_request_error")
        try:
            span = _latency_s(call.get("simulated_latency_ms"))
        except ValueError as error:
            return _error(400, str(error), "invalid_request_error")
        if span is None:
            span = next(found for pattern, found in self._latency_s if fnmatch.fnmatch(model, pattern))
        self._calls += 1
        call_number = self._calls
        draw = random.Random(hashlib.sha256(body + str(self._seed).encode()).digest())
        fault = draw.choice(FAULTS) if draw.random() < self._faults else None
        wait_s = LATE_S if fault == "late" else draw.uniform(*span)
        await asyncio.sleep(wait_s / self._speed)
        if fault == "rate_limited":
            return _error(429, "Rate limit reached", "rate_limit_error", {"retry-after": "1"})
        if fault == "server":
            return _error(503, "The server is overloaded", "server_error")
        try:
            numbers = orjson.loads(texts[-1])
        except (orjson.JSONDecodeError, IndexError):
            numbers = {}
        numbers = numbers if isinstance(numbers, dict) else {}
        text = orjson.dumps(answer(str(numbers.get("role", "")), numbers, draw)).decode()
        if fault == "invalid":
            text = "I think this looks promising, but prices may change."
        used = {"prompt_tokens": sum(len(t) for t in texts) // 4 + 8, "completion_tokens": len(text) // 3}
        used["total_tokens"] = sum(used.values())
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        reply = {
            "id": f"chatcmpl-sim-{call_number}",
            "object": "chat.completion",
            "created": 1_795_000_000,
            "model": f"{model}-simulated",
            "system_fingerprint": "fp_simulator",
            "choices": [choice],
            "usage": used,
        }
        return JSONResponse(reply, headers={"x-request-id": f"sim-{call_number}"})


def _unauthorised(request: Request) -> Response | None:
    kind, _, key = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return None
    return _error(401, "Incorrect API key provided", "invalid_request_error", code="invalid_api_key")


def _error(
    status: int, words: str, kind: str, headers: dict[str, str] | None = None, code: str | None = None
) -> Response:
    body = {"error": {"message": words, "type": kind, "param": None, "code": code}}
    return JSONResponse(body, status_code=status, headers=headers)
