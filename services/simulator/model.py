"""An OpenAI-compatible endpoint with scripted answers, latencies and faults: models for people without keys.

It reads the numbers of the last user message and answers our role contract (p_edge, view, veto, volatility, code,
note) as a model would: higher edges get higher probabilities, old or thin books a veto. Seeded by the request, so
that the same question gets the same answer.
"""

import asyncio
import fnmatch
import hashlib
import math
import random
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
MODELS = ("gpt-6-luna", "gemini-3.5-flash-lite", "deepseek-flash")


def answer(role: str, numbers: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """A role's answer from the numbers it was given; missing ones count as zero."""

    def number(name: str) -> float:
        try:
            value = float(numbers.get(name) or 0.0)
        except (TypeError, ValueError):
            return 0.0
        return value if math.isfinite(value) else 0.0

    net, volatility = number("net_bps"), number("volatility_bps_1m")
    age_ms = max(number("buy_age_ms"), number("sell_age_ms"))
    p_edge = 1 / (1 + math.exp(-(net - 12) / 12)) - min(0.3, age_ms / 10_000) + draw.uniform(-0.08, 0.08)
    wild = min(1.0, volatility / 25 + draw.uniform(0.0, 0.25))
    found = {
        "p_edge": round(min(0.99, max(0.01, p_edge)), 2),
        "view": "hold",
        "veto": False,
        "volatility": 0.0,
        "code": "OK",
        "note": f"net {net:g} bps",
    }
    if draw.random() < 0.04:
        return found | {"code": "UNSURE", "note": "not enough to judge"}
    if role == "sentiment":
        found["view"] = "buy" if number("buy_share_1m") >= 0.4 or net > 20 else "hold"
    elif role == "risk":
        stale = age_ms > 1500
        found["veto"] = stale or draw.random() < 0.05
        found["code"] = "STALE" if stale else "THIN" if found["veto"] else "OK"
        found["note"] = f"oldest book {age_ms:g} ms"
    elif role == "volatility":
        found["volatility"] = round(wild, 2)
        found["note"] = f"{volatility:g} bps a minute"
    return found


class ModelEndpoint:
    """The application.

    Args:
        faults: Share of calls that are refused, broken, wrong or late.
        speed: Divides all latencies (tests).
    """

    def __init__(self, seed: int, faults: float, speed: float = 1.0) -> None:
        self._seed = seed
        self._faults = faults
        self._speed = speed
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
        self._calls += 1
        call_number = self._calls
        draw = random.Random(hashlib.sha256(body + str(self._seed).encode()).digest())
        fault = draw.choice(FAULTS) if draw.random() < self._faults else None
        low, high = next(span for pattern, span in LATENCY_S.items() if fnmatch.fnmatch(model, pattern))
        wait_s = LATE_S if fault == "late" else draw.uniform(low, high)
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
