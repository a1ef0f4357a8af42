"""Calls of models: what goes over the wire to each provider, and which outcome each reply has."""

import asyncio
import contextlib
import logging
import socket

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from services.decider import llm
from services.decider.prompt import SCHEMA
from shared import secrets, settings
from tests.decider import hostile
from tests.decider.hostile import GOOD, KEY, OK, Hostile, answer, cut_off, http, reply

CONFIGURED = settings.load()
ROWS = CONFIGURED.models
SYSTEM, USER = "Answer in json.", '{"role":"risk"}'


@pytest.fixture(autouse=True)
def known_key():
    secrets.register(SecretStr(KEY))


async def ask(base_url: str, name: str = "gemini-3.5-flash-lite", timeout_s: float = 5.0) -> llm.CallResult:
    client = llm.make_client(base_url, SecretStr(KEY))
    try:
        async with asyncio.timeout(timeout_s):
            return await llm.ask(client, name, ROWS[name], ROWS[name].request, SYSTEM, USER)
    finally:
        await client.close()


# ---------------------------------------------------------------- what comes back


@pytest.mark.parametrize(
    ("raw", "outcome"),
    [
        (OK, "ok"),
        (http(201, reply()), "ok"),
        (http(200, reply(answer(code="UNSURE"))), "unsure"),
        (http(200, reply('{"p_edge":"0.9"}')), "invalid"),
        (http(200, reply(finish="content_filter")), "content_filter"),
        (http(200, reply(message={"content": None, "refusal": "no"})), "refusal"),
        (cut_off(http(200, b'{"id":', length=900)), "network"),
        (http(301, b"", "location: http://127.0.0.1:9/elsewhere"), "bad_request"),
        (http(304, b""), "bad_request"),
        (http(307, b"", "location: http://127.0.0.1:9/elsewhere"), "bad_request"),
        (http(308, b"", "location: http://127.0.0.1:9/elsewhere"), "bad_request"),
        (http(400, b'{"error":{"message":"bad"}}'), "bad_request"),
        (http(401, b'{"error":{"code":"invalid_api_key"}}'), "auth"),
        (http(402, b""), "quota"),
        (http(402, b'{"error":{"message":"Insufficient Balance"}}'), "quota"),
        (http(403, b""), "auth"),
        (http(404, b""), "bad_request"),
        (http(408, b""), "server"),
        (http(409, b""), "server"),
        (http(422, b""), "bad_request"),
        (http(429, b'{"error":{"code":"insufficient_quota"}}'), "quota"),
        (http(429, b'{"error":{"message":"Insufficient Balance"}}'), "quota"),
        (http(429, b'{"error":{"message":"slow down"}}', "retry-after: 2.5"), "rate_limited"),
        (http(429, b"", "retry-after: soon"), "rate_limited"),
        (http(500, b"oops"), "server"),
        (http(503, b'{"error":{"message":"all channels busy","type":"one_api_error"}}'), "server"),
        (http(529, b""), "server"),
    ],
)
async def test_each_answer_has_its_outcome(raw, outcome):
    async with Hostile([raw]) as server:
        result = await ask(server.base_url)
    assert result.outcome == outcome
    assert result.answered() is (outcome == "ok")
    assert result.billed() is (result.http is not None and result.http < 300), "a refusal costs money, a 500 none"
    assert result.retry_after_s == (2.5 if raw.__class__ is bytes and b"2.5" in raw else None)
    assert len(server.requests) == 1, "one call, no retry, no redirect followed"


async def test_a_good_answer_is_kept_with_what_the_provider_said_of_itself():
    async with Hostile([http(200, reply(), "x-request-id: req-7")]) as server:
        result = await ask(server.base_url)
    assert result.answer is not None
    assert result.answer.model_dump() == GOOD
    assert (result.http, result.request_id, result.model_reported, result.fingerprint) == (200, "req-7", "m-2026", "fp")
    assert result.usage == llm.Usage(10, 5, 15)
    assert result.raw == answer()
    assert result.raw_sha256 == hostile.sha256(answer())


@pytest.mark.parametrize(
    ("usage", "known"),
    [
        (
            {"prompt_tokens": 10, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 4}},
            llm.Usage(prompt_tokens=10, total_tokens=12, prompt_tokens_details=llm.CachedTokens(4)),
        ),
        (
            {"completion_tokens": 3, "prompt_cache_hit_tokens": 7},
            llm.Usage(completion_tokens=3, prompt_cache_hit_tokens=7),
        ),
        ({"prompt_tokens": True, "completion_tokens": 5.0}, llm.Usage()),
    ],
)
async def test_usage_is_read_from_where_each_provider_puts_it(usage, known):
    async with Hostile([http(200, reply(usage=usage))]) as server:
        result = await ask(server.base_url)
    assert result.usage == known


async def test_the_request_id_of_deepseek_has_another_name():
    async with Hostile([http(200, reply(), "x-ds-trace-id: t-1")]) as server:
        assert (await ask(server.base_url)).request_id == "t-1"


async def test_text_that_is_no_answer_is_kept_for_the_audit_cut_and_hashed_in_whole():
    said = "ab\u00e9" * 3000
    page = b"<html>" + b"x" * 9000
    async with Hostile([http(200, reply(said)), http(200, page), http(500, b"out of order")]) as server:
        wordy, html, failed = [await ask(server.base_url) for _ in range(3)]
    assert wordy.raw == said.encode()[:4096].decode(errors="ignore")
    assert wordy.raw_sha256 == hostile.sha256(said)
    assert html.raw == page.decode()[:4096]
    assert html.raw_sha256 == hostile.sha256(page.decode())
    assert (failed.raw, failed.raw_sha256) == ("out of order", hostile.sha256("out of order"))


async def test_a_key_across_the_cut_leaves_no_half_of_it():
    said = "x" * 4090 + KEY
    async with Hostile([http(200, reply(said))]) as server:
        result = await ask(server.base_url)
    assert result.raw == "x" * 4090 + "[key]"
    assert result.raw_sha256 == hostile.sha256(said)


async def test_an_answer_that_takes_longer_than_the_models_slow_ms_counts_and_is_slow():
    async def later(exchange: hostile.Exchange) -> None:
        await asyncio.sleep(0.03)
        await exchange.send(OK)

    model = ROWS["gpt-6-luna"].model_copy(update={"slow_ms": 20})
    async with Hostile([later]) as server:
        client = llm.make_client(server.base_url, SecretStr(KEY))
        result = await llm.ask(client, "m", model, {}, SYSTEM, USER)
        await client.close()
    assert (result.outcome, result.answered()) == ("slow", True)
    assert result.latency_ms >= 30


async def test_nobody_there_is_a_network_failure():
    result = await ask("http://127.0.0.1:9/v1")
    assert (result.outcome, result.http, result.billed(), result.unsent) == ("network", None, False, True)


async def test_one_whose_name_does_not_exist_is_a_network_failure():
    result = await ask("http://nobody.invalid/v1")
    assert (result.outcome, result.unsent) == ("network", True)


async def test_one_that_speaks_no_tls_was_sent_nothing():
    async with Hostile() as server:
        result = await ask(server.base_url.replace("http:", "https:"))
    assert (result.outcome, result.unsent, server.requests) == ("network", True, [])


async def test_one_that_does_not_take_the_connection_was_sent_nothing(monkeypatch):
    monkeypatch.setattr(llm, "CONNECT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        with contextlib.ExitStack() as waiting:
            for _ in range(3):  # nobody accepts: once the queue is full, packets are dropped
                one = waiting.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
            result = await ask(f"http://127.0.0.1:{port}/v1")
    assert (result.outcome, result.unsent) == ("network", True)
    assert result.latency_ms < 1000


@pytest.mark.parametrize("end", [hostile.hang_up, cut_off(hostile.HEAD[:-9]), hostile.never])
async def test_what_goes_wrong_once_the_question_is_out_may_have_cost_money(end, monkeypatch):
    monkeypatch.setattr(llm, "READ_S", 0.1)
    async with Hostile([OK, end]) as server:
        client = llm.make_client(server.base_url, SecretStr(KEY))
        for _ in range(2):  # on a connection that was used before, too
            result = await llm.ask(client, "m", ROWS["gpt-6-luna"], {}, SYSTEM, USER)
        await client.close()
    assert (result.outcome, result.http, result.unsent) == ("network", None, False)
    assert (len(server.requests), server.connections) == (2, 1), "and it is not asked again"


async def test_what_came_before_an_answer_broke_off_is_kept():
    async with Hostile([cut_off(http(200, b'{"id":', length=900))]) as server:
        result = await ask(server.base_url)
    assert (result.outcome, result.raw) == ("network", '{"id":')


@pytest.mark.parametrize("pause_s", [0, 0.02])
async def test_an_answer_that_nobody_asked_for_is_none_to_the_next_question(pause_s):
    async def twice(exchange: hostile.Exchange) -> None:
        exchange.keep = True
        await exchange.send(OK)
        await asyncio.sleep(pause_s)
        await exchange.send(http(200, reply(answer(note="of another question"))))

    async with Hostile([twice]) as server:
        client = llm.make_client(server.base_url, SecretStr(KEY))
        for _ in range(2):
            result = await llm.ask(client, "m", ROWS["gpt-6-luna"], {}, SYSTEM, USER)
            assert result.answer is not None
            assert result.answer.note == ""
            await asyncio.sleep(2 * pause_s)
        await client.close()
    assert server.connections == 2


async def test_a_request_that_cannot_be_written_is_no_exception():
    async with Hostile() as server:
        client = llm.make_client(server.base_url, SecretStr(KEY))
        result = await llm.ask(client, "m", ROWS["gpt-6-luna"], {"odd": object()}, SYSTEM, "\ud800")
        await client.close()
    assert result.outcome == "invalid"
    assert server.requests == []


async def test_i7_the_key_is_in_no_log_and_no_result():
    async with Hostile([hostile.echo, http(200, b"x"), http(500, KEY.encode())]) as server:
        with structlog.testing.capture_logs() as logs:
            results = [await ask(server.base_url) for _ in range(3)]
    assert all(request.header("authorization") == f"Bearer {KEY}" for request in server.requests), "it was sent"
    assert KEY not in repr(results) + repr(logs)


async def test_the_libraries_are_silent_even_if_their_variable_asks_for_all(caplog, monkeypatch):
    monkeypatch.setenv("OPENAI_LOG", "debug")
    logging.getLogger("openai").setLevel(logging.DEBUG)
    caplog.set_level(logging.DEBUG)
    async with Hostile([OK]) as server:
        await ask(server.base_url)
    assert not caplog.records


# ---------------------------------------------------------------- the list of models


@pytest.mark.parametrize(
    ("raw", "listing"),
    [
        (hostile.listed("a", "models/b"), llm.Listing("ok", frozenset({"a", "b"}), 200)),
        (hostile.listed(), llm.Listing("ok", frozenset(), 200)),
        (http(200, b'{"data":[null,{"id":5},{"id":"a"},{}]}'), llm.Listing("ok", frozenset({"a"}), 200)),
        (http(200, b'{"data":{}}'), llm.Listing("invalid", None, 200)),
        (http(200, b"<html>"), llm.Listing("invalid", None, 200)),
        (http(401, b""), llm.Listing("auth", None, 401)),
        (http(404, b""), llm.Listing("bad_request", None, 404)),
        (cut_off(http(200, b"{", length=90)), llm.Listing("network", None, 200)),
        (hostile.gigabytes, llm.Listing("invalid", None, 200)),
    ],
)
async def test_listing(raw, listing):
    async with Hostile(listing=raw) as server:
        client = llm.make_client(server.base_url, SecretStr(KEY))
        assert await llm.list_models(client) == listing
        await client.close()


async def test_a_long_list_is_read_where_an_answer_of_that_size_would_not_be():
    names = [f"model-{number:06}" for number in range(15_000)]
    async with Hostile(listing=hostile.listed(*names)) as server:
        client = llm.make_client(server.base_url, SecretStr(KEY))
        assert (await llm.list_models(client)).names == frozenset(names)
        await client.close()


# ---------------------------------------------------------------- what goes out

PLAIN = {"model", "messages", "n", "response_format"}
STRICT = {"type": "json_schema", "json_schema": SCHEMA}
OBJECT = {"type": "json_object"}
ENVIRONMENT = {
    "OPENAI_API_KEY": "sk-of-the-environment-000",
    "OPENAI_ADMIN_KEY": "sk-admin-of-the-environment",
    "OPENAI_ORG_ID": "org-environment",
    "OPENAI_PROJECT_ID": "proj-environment",
    "OPENAI_BASE_URL": "http://127.0.0.1:9/of-the-environment",
    "OPENAI_CUSTOM_HEADERS": "X-Environment: yes\nauthorization: Bearer environment",
    "OPENAI_WEBHOOK_SECRET": "whsec-environment",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9",
    "ALL_PROXY": "http://127.0.0.1:9",
}


@pytest.mark.parametrize(
    ("provider", "base_path", "model", "path", "fields"),
    [
        (
            "openai",
            "/v1",
            "gpt-6-luna",
            "/v1/chat/completions",
            {"max_completion_tokens": 160, "reasoning_effort": "none", "response_format": STRICT},
        ),
        (
            "openai",
            "/v1",
            "gpt-4.1",
            "/v1/chat/completions",
            {"max_tokens": 160, "temperature": 0, "response_format": STRICT},
        ),
        (
            "gemini",
            "/v1beta/openai/",
            "gemini-3.5-flash-lite",
            "/v1beta/openai/chat/completions",
            {"max_tokens": 160, "reasoning_effort": "minimal", "response_format": STRICT},
        ),
        (
            "deepseek",
            "",
            "deepseek-flash",
            "/chat/completions",
            {"max_tokens": 160, "temperature": 0, "thinking": {"type": "disabled"}, "response_format": OBJECT},
        ),
        (
            "gateway",
            "/v1",
            "the-gateways-own-name",
            "/v1/chat/completions",
            {"max_tokens": 160, "temperature": 0, "thinking": {"type": "disabled"}, "response_format": OBJECT},
        ),
        (
            "custom",
            "/a/path%20of/its/own/",
            "gpt-6-luna",
            "/a/path%20of/its/own/chat/completions",
            {"max_completion_tokens": 160, "reasoning_effort": "none", "response_format": STRICT},
        ),
    ],
)
async def test_what_goes_over_the_wire(provider, base_path, model, path, fields, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    row = ROWS["deepseek-flash"] if provider == "gateway" else ROWS[model]
    async with Hostile() as server:
        client = llm.make_client(server.origin + base_path, SecretStr(KEY))
        result = await llm.ask(client, model, row, row.request, SYSTEM, USER)
        await llm.list_models(client)
        await client.close()
    assert result.outcome == "ok"
    sent, listing = server.requests
    body = sent.json()
    assert (sent.method, sent.path) == ("POST", path)
    assert (listing.method, listing.path) == ("GET", path.removesuffix("chat/completions") + "models")
    assert set(body) == PLAIN | set(fields), "and nothing else: no seed, no temperature, no stream, no tools"
    assert {name: body[name] for name in fields} == fields
    assert body["model"] == model
    assert body["n"] == 1
    assert body["messages"] == [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}]
    for request in server.requests:
        named = [name for name, _ in request.headers if not name.startswith("x-stainless-")]
        expected = {"host", "accept", "accept-encoding", "authorization", "connection", "user-agent"}
        assert set(named) == expected | ({"content-type", "content-length"} if request.method == "POST" else set())
        assert len(named) == len(set(named))
        assert request.header("authorization") == f"Bearer {KEY}"
        assert request.header("accept-encoding") == "identity"
        assert "nvironment" not in repr(request), "nothing is inherited"
    assert sent.header("content-type") == "application/json"


async def test_fields_of_a_models_request_go_out_as_they_stand_known_to_the_client_or_not():
    request = {
        "made_up": {"a": [1, None]},
        "temperature": 0.5,
        "stream": True,
        "extra_body": {"of_the_body": 1},
        "extra_headers": {"X-Title": "arbiter"},
        "extra_query": {"version": "7"},
    }
    async with Hostile() as server:
        client = llm.make_client(server.base_url, SecretStr(KEY))
        result = await llm.ask(client, "m", ROWS["gpt-6-luna"], request, SYSTEM, USER)
        await client.close()
    sent = server.requests[0]
    body = sent.json()
    assert (body["made_up"], body["temperature"], body["of_the_body"]) == ({"a": [1, None]}, 0.5, 1)
    assert sent.header("x-title") == "arbiter"
    assert sent.path == "/v1/chat/completions?version=7"
    assert result.outcome == "ok", "even one that asks for a stream: the reply is what counts"


async def test_what_one_models_request_adds_is_not_sent_for_another():
    mine, its = {"extra_headers": {"X-Title": "a"}, "extra_query": {"v": "1"}}, {"extra_headers": {"x-title": "b"}}
    async with Hostile() as server:
        client = llm.make_client(server.base_url, SecretStr(KEY))
        for request in (mine, its, {}, mine):
            await llm.ask(client, "m", ROWS["gpt-6-luna"], request, SYSTEM, USER)
        await client.close()
    assert [request.header("x-title") for request in server.requests] == ["a", "b", None, "a"]
    assert [request.path.partition("?")[2] for request in server.requests] == ["v=1", "", "", "v=1"]
    assert server.connections == 1


async def test_cookies_are_not_kept():
    async with Hostile([http(200, reply(), "set-cookie: who=you; Path=/")]) as server:
        client = llm.make_client(server.base_url, SecretStr(KEY))
        for _ in range(2):
            await llm.ask(client, "m", ROWS["gpt-6-luna"], {}, SYSTEM, USER)
        await client.close()
    assert server.requests[1].header("cookie") is None
    assert server.connections == 1, "one connection for both"


# ---------------------------------------------------------------- how long to wait


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
        ({}, {"error": {"details": 7}}, None),
        ({}, {"error": {"details": {"retryDelay": "1s"}}}, None),
        ({}, {"error": {"retry_after": 10**400}}, None),
        ({}, {"error": {"retry_after": True}}, None),
        ({}, {"error": {"retry_after": "1e400"}}, None),
        ({"retry-after": "soon", "llm_provider-retry-after-ms": "40"}, None, 0.04),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 -0000"}, None, 40.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:01 GMT"}, None, None),
        ({"retry-after": "Thu, 99 Jan 1970 00:00:01 GMT"}, None, None),
        ({}, "text", None),
        ({}, None, None),
    ],
)
def test_how_long_a_provider_asks_us_to_wait(headers, body, seconds):
    assert llm.retry_after_s(headers, body, now_s=60.0) == seconds


@given(
    st.dictionaries(st.sampled_from(sorted(llm.KEPT_HEADERS)), st.text(max_size=40), max_size=4),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["error", "details", "retry_after", "retryDelay"]), inner, max_size=3)
        ),
    ),
)
def test_whatever_a_provider_sends_the_wait_is_within_bounds_or_unknown(headers, body):
    found = llm.retry_after_s(headers, body, now_s=60.0)
    assert found is None or 0 <= found <= llm.MOST_WAIT_S
