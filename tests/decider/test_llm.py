"""Calls against a hostile provider on the loopback interface: always a value, never in the log."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import structlog
from pydantic import SecretStr

from services.decider import llm
from services.decider.prompt import SYSTEM
from shared import settings

GOOD = {"p_edge": 0.62, "view": "hold", "veto": False, "volatility": 0.0, "code": "OK", "note": "fine"}
KEY = "sk-planted-secret-0123456789"
CONFIGURED = settings.load()


def reply(content=None, finish="stop", **changes) -> bytes:
    message = {"role": "assistant", "content": json.dumps(GOOD) if content is None else content}
    message.update(changes.pop("message", {}))
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m-2026",
        "system_fingerprint": "fp",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        **changes,
    }
    return json.dumps(body).encode()


def http(status: int, body: bytes, *headers: str, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {size}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@asynccontextmanager
async def provider(answer: bytes | None, drip: bool = False) -> AsyncIterator[tuple[str, list[bytes]]]:
    requests: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(
                next(line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
            )
            requests.append(head + await reader.readexactly(size))
            if answer is not None and drip:
                writer.write(answer.split(b"\r\n\r\n")[0] + b"\r\n\r\n")
                while True:
                    writer.write(b"\n")
                    await writer.drain()
                    await asyncio.sleep(0.02)
            elif answer is not None:
                writer.write(answer)
                await writer.drain()
            else:
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", requests


async def ask(base_url: str, name: str = "gemini-3.5-flash-lite", timeout_s: float = 5.0) -> llm.CallResult:
    client = llm.make_client(base_url, SecretStr(KEY))
    try:
        async with asyncio.timeout(timeout_s):
            return await llm.ask(client, name, CONFIGURED.models[name], SYSTEM["risk"], '{"role":"risk"}')
    finally:
        await client.close()


@pytest.mark.parametrize(
    ("raw", "outcome"),
    [
        (http(200, reply()), "ok"),
        (http(200, reply(json.dumps({**GOOD, "code": "UNSURE"}))), "unsure"),
        (http(200, b'{"error":{"message":"no"}}'), "invalid"),
        (http(200, b"<html>hello</html>"), "invalid"),
        (http(200, b"null"), "invalid"),
        (http(200, b"[]"), "invalid"),
        (http(200, b""), "invalid"),
        (http(200, reply(choices=[])), "invalid"),
        (http(200, reply(choices=None)), "invalid"),
        (http(200, reply("   ")), "invalid"),
        (http(200, reply('{"p_edge":"0.9"}')), "invalid"),
        (http(200, reply(json.dumps(GOOD).replace("0.62", "1e999"))), "invalid"),
        (http(200, reply(finish="length")), "invalid"),
        (http(200, reply(finish="content_filter")), "invalid"),
        (http(200, reply(message={"content": None, "refusal": "no"})), "invalid"),
        (http(200, reply(usage={"prompt_tokens": -5, "completion_tokens": 10**15, "total_tokens": 0})), "ok"),
        (http(200, reply(usage=None)), "ok"),
        (http(200, b'{"id":', length=900), "network"),
        (http(307, b"", "location: http://127.0.0.1:9/elsewhere"), "bad_request"),
        (http(400, b'{"error":{"message":"bad"}}'), "bad_request"),
        (http(401, b'{"error":{"code":"invalid_api_key"}}'), "auth"),
        (http(403, b""), "auth"),
        (http(402, b""), "quota"),
        (http(404, b""), "bad_request"),
        (http(408, b""), "server"),
        (http(429, b'{"error":{"code":"insufficient_quota"}}'), "quota"),
        (http(429, b'{"error":{"message":"slow down"}}', "retry-after: 2.5"), "rate_limited"),
        (http(500, b"oops"), "server"),
        (http(503, b'{"error":{"message":"all channels busy","type":"one_api_error"}}'), "server"),
    ],
)
async def test_each_answer_has_its_outcome(raw, outcome):
    async with provider(raw) as (base_url, requests):
        result = await ask(base_url)
    assert result.outcome == outcome
    assert result.answered() is (outcome == "ok")
    assert len(requests) == 1, "one call, no retry, no redirect followed"


async def test_a_good_answer_is_kept_with_what_the_provider_said_of_itself():
    async with provider(http(200, reply(), "x-request-id: req-7")) as (base_url, requests):
        result = await ask(base_url)
    assert result.answer is not None
    assert (result.answer.p_edge, result.request_id, result.model_reported, result.fingerprint) == (
        0.62,
        "req-7",
        "m-2026",
        "fp",
    )
    head, _, body = requests[0].partition(b"\r\n\r\n")
    sent = json.loads(body)
    assert sent["max_tokens"] == 120
    assert sent["response_format"]["type"] == "json_schema"
    assert sent["reasoning_effort"] == "minimal"
    assert b"openai-organization" not in head.lower()


async def test_each_model_is_asked_the_way_its_row_says():
    async with provider(http(200, reply())) as (base_url, requests):
        await ask(base_url, "deepseek-flash")
        await ask(base_url, "gpt-6-luna")
    deepseek, luna = (json.loads(request.partition(b"\r\n\r\n")[2]) for request in requests)
    assert deepseek["response_format"] == {"type": "json_object"}
    assert deepseek["thinking"] == {"type": "disabled"}
    assert "max_completion_tokens" in luna
    assert "max_tokens" not in luna


@pytest.mark.parametrize("drip", [False, True])
async def test_one_that_never_answers_costs_no_more_than_the_callers_time(drip):
    async with provider(http(200, b"", length=10_000) if drip else None, drip=drip) as (base_url, _):
        with pytest.raises(TimeoutError):
            await ask(base_url, timeout_s=0.3)


async def test_nobody_there_is_a_network_failure():
    result = await ask("http://127.0.0.1:9/v1")
    assert result.outcome == "network"


async def test_i7_the_key_is_in_no_log_and_no_result():
    with structlog.testing.capture_logs() as logs:
        for raw in (
            http(401, b'{"error":{"message":"Incorrect API key provided: ' + KEY.encode() + b'"}}'),
            http(200, b"x"),
            http(500, KEY.encode()),
        ):
            async with provider(raw) as (base_url, requests):
                result = await ask(base_url)
            assert KEY.encode() in requests[0], "it was sent"
            assert KEY not in repr(result)
    assert KEY not in repr(logs)


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"retry-after-ms": "1500"}, None, 1.5),
        ({"retry-after": "2"}, None, 2.0),
        ({"retry-after": "0.25"}, None, 0.25),
        ({"retry-after": "9999"}, None, 300.0),
        ({"retry-after": "-1"}, None, None),
        ({"retry-after": "nan"}, None, None),
        ({"retry-after": "soon"}, None, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, None, 40.0),
        ({"llm_provider-retry-after": "3"}, None, 3.0),
        ({}, {"error": {"retry_after": 1.2}}, 1.2),
        ({}, {"retry_after": 4}, 4.0),
        ({}, [{"error": {"details": [{"@type": "x"}, {"retryDelay": "37s"}]}}], 37.0),
        ({}, {"error": {"details": [None]}}, None),
        ({}, "text", None),
        ({}, None, None),
    ],
)
def test_how_long_a_provider_asks_us_to_wait(headers, body, seconds):
    assert llm.retry_after_s(headers, body, now_s=60.0) == seconds
