"""Calls of language models: the only importer of `openai`. A call gives a value, never an exception.

Whatever goes wrong becomes an outcome code, and every code but `ok` and `slow` is an abstention. No exception of the
client is logged or kept: they can carry prompts and headers.
"""

import asyncio
import email.utils
import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
from openai import AsyncOpenAI, DefaultAsyncHttpx2Client
from pydantic import SecretStr

from services.decider.prompt import SCHEMA, NoAnswer, parse_answer
from shared.messages import RoleAnswer
from shared.settings import ModelSettings

Client = AsyncOpenAI
"""A provider's client, as `make_client` makes it."""

MOST_WAIT_S = 300.0
SLOW_MS = 1200


@dataclass(frozen=True, slots=True)
class CallResult:
    """What became of one call. `usage` is as reported, untrusted."""

    outcome: str
    answer: RoleAnswer | None = None
    http: int | None = None
    request_id: str | None = None
    model_reported: str | None = None
    fingerprint: str | None = None
    usage: object = None
    raw_sha256: str | None = None
    retry_after_s: float | None = None

    def answered(self) -> bool:
        return self.answer is not None

    def billed(self) -> bool:
        """Whether the provider did the work (and will want money)."""
        return self.http == 200


def make_client(base_url: str, api_key: SecretStr) -> AsyncOpenAI:
    """A client that inherits nothing from the environment, follows no redirect and never retries by itself."""
    timeout = httpx2.Timeout(3.0, connect=0.5, pool=0.1)
    return AsyncOpenAI(
        base_url=base_url,
        api_key=api_key.get_secret_value(),
        max_retries=0,
        timeout=timeout,
        # Typed as texts, but the client's documentation names Omit() for what must not be inherited.
        default_headers={"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()},  # type: ignore[dict-item]
        http_client=DefaultAsyncHttpx2Client(
            follow_redirects=False,
            trust_env=False,
            timeout=timeout,
            limits=httpx2.Limits(max_connections=32, max_keepalive_connections=32, keepalive_expiry=90.0),
        ),
    )


async def ask(client: AsyncOpenAI, name: str, model: ModelSettings, system: str, user: str) -> CallResult:
    """One question to one model; cancelled from outside when its time is over.

    Raises:
        CancelledError: nothing else.
    """
    request: dict[str, Any] = {
        "model": name,
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
        model.token_param: model.max_out,
        "n": 1,
        **model.request,
    }
    if model.structured == "json_schema":
        request["response_format"] = {"type": "json_schema", "json_schema": SCHEMA}
    else:
        request["response_format"] = {"type": "json_object"}
    began = time.monotonic()
    try:
        raw = await client.chat.completions.with_raw_response.create(**request)
        status, headers = raw.status_code, raw.headers
        return _judge(status, headers, raw.parse(), (time.monotonic() - began) * 1000)
    except asyncio.CancelledError:
        raise
    except openai.APIStatusError as error:
        return _refused(error.status_code, error.response.headers, error.body)
    except openai.APIConnectionError as error:  # timeouts too
        pool = isinstance(error.__cause__, httpx2.PoolTimeout)
        return CallResult("saturated" if pool else "network")
    except Exception:  # the client leaks JSON, type and attribute errors on broken bodies: all are no answer
        return CallResult("invalid", http=200)


def _judge(status: int, headers: Mapping[str, str], reply: Any, elapsed_ms: float) -> CallResult:
    """A reply with a good status: is there an answer in it?"""
    request_id = _text(headers.get("x-request-id") or headers.get("x-ds-trace-id"))
    usage = getattr(reply, "usage", None)
    reported, fingerprint = _text(getattr(reply, "model", None)), _text(getattr(reply, "system_fingerprint", None))

    def result(outcome: str, answer: RoleAnswer | None = None, content: object = None) -> CallResult:
        digest = hashlib.sha256(content.encode()).hexdigest() if isinstance(content, str) else None
        return CallResult(outcome, answer, status, request_id, reported, fingerprint, usage, digest)

    choices = getattr(reply, "choices", None)
    if not isinstance(choices, list) or not choices:
        return result("invalid")
    message, finish = getattr(choices[0], "message", None), getattr(choices[0], "finish_reason", None)
    content = getattr(message, "content", None)
    if getattr(message, "refusal", None) or finish in ("length", "content_filter", "insufficient_system_resource"):
        return result("invalid", content=content)
    try:
        answer = parse_answer(content)
    except NoAnswer:
        return result("invalid", content=content)
    if answer.code == "UNSURE":
        return result("unsure", content=content)
    return result("slow" if elapsed_ms > SLOW_MS else "ok", answer, content)


def _text(value: object) -> str | None:
    return value[:200] if isinstance(value, str) else None


def _refused(status: int, headers: Mapping[str, str], body: object) -> CallResult:
    """A bad status, sorted by what it asks of us."""
    request_id = _text(headers.get("x-request-id"))
    words = json.dumps(body, default=str).lower()[:4096] if body is not None else ""
    quota = "insufficient_quota" in words or "insufficient balance" in words
    if status in (401, 403):
        outcome = "auth"
    elif status == 402 or (status == 429 and quota):
        outcome = "quota"
    elif status == 429:
        wait_s = retry_after_s(headers, body)
        return CallResult(
            "rate_limited", http=status, request_id=request_id, retry_after_s=1.0 if wait_s is None else wait_s
        )
    elif status in (408, 409) or status >= 500:
        outcome = "server"
    else:
        outcome = "bad_request"
    return CallResult(outcome, http=status, request_id=request_id)


def retry_after_s(headers: Mapping[str, str], body: object, now_s: float | None = None) -> float | None:
    """How long a provider asks us to wait, in seconds up to five minutes; None if it does not say usefully."""
    for name, unit in (
        ("retry-after-ms", 1000.0),
        ("retry-after", 1.0),
        ("llm_provider-retry-after-ms", 1000.0),
        ("llm_provider-retry-after", 1.0),
    ):
        found = _seconds(headers.get(name), unit, now_s)
        if found is not None:
            return found
    for error in body if isinstance(body, list) else [body]:
        inner = error.get("error", error) if isinstance(error, dict) else None
        if not isinstance(inner, dict):
            continue
        found = _seconds(inner.get("retry_after"), 1.0, now_s)
        if found is not None:
            return found
        for detail in inner.get("details") or []:
            delay = detail.get("retryDelay") if isinstance(detail, dict) else None
            found = _seconds(delay.removesuffix("s") if isinstance(delay, str) else None, 1.0, now_s)
            if found is not None:
                return found
    return None


def _seconds(value: object, unit: float, now_s: float | None) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value) / unit
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(str(value)).timestamp()
        except ValueError:
            return None
        number = moment - (time.time() if now_s is None else now_s)
    if not math.isfinite(number) or number < 0:
        return None
    return min(number, MOST_WAIT_S)
