"""Every misbehaviour of a provider, through the whole of the door: in time, never an answer, nothing left behind, no key."""

import asyncio
import json
import logging
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.decider import llm
from services.decider.llm import CallResult
from services.decider.models import Models
from shared.settings import ModelChoice
from tests.decider import hostile
from tests.decider.hostile import GOOD, KEY, Behaviour, Hostile, answer, http, reply, settings_at, spelled

CHOICE = ModelChoice(provider="openai", model="gpt-6-luna")
DEADLINE_S = 0.5
MANY_S = 2.0
"""For many calls at once: all have connected by then."""
IN_TIME_S = 3.0
"""Within the deadline, on a machine that has something else to do."""

LATE = "late"
"""Stands for our own deadline."""

DEEP = 100_000

ATTACKS: dict[str, tuple[Behaviour, str]] = {
    # time
    "never_answers": (hostile.never, LATE),
    "blank_line_drip": (hostile.blank_lines, LATE),
    "byte_drip_of_a_valid_answer": (hostile.byte_by_byte, LATE),
    "headers_drip": (hostile.headers_for_ever, LATE),
    "100_continue_storm": (hostile.continues, LATE),
    # the connection
    "closes_at_once": (hostile.hang_up, "network"),
    "truncated_body": (hostile.cut_off(http(200, b'{"id":', length=900)), "network"),
    "truncated_but_complete_json": (hostile.cut_off(http(200, reply(), length=9000)), "network"),
    "truncated_and_left_open": (http(200, reply(), length=9000), LATE),
    "truncated_401": (hostile.cut_off(http(401, b"{", length=900)), "auth"),
    "truncated_head": (hostile.cut_off(hostile.HEAD[:-9]), "network"),
    "chunks_of_bad_size": (hostile.HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", "network"),
    "chunks_of_negative_size": (hostile.HEAD + b"transfer-encoding: chunked\r\n\r\n-5\r\n{}\r\n", "network"),
    "two_lengths": (hostile.HEAD + b"content-length: 5\r\ncontent-length: 7\r\n\r\n{}", "network"),
    "no_http_at_all": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", "network"),
    "switching_protocols": (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "network"),
    # size
    "gigabytes": (hostile.gigabytes, "invalid"),
    "gigabytes_after_a_401": (hostile.gigabytes_of_refusal, "auth"),
    "compressed_bomb": (hostile.bomb(), "invalid"),
    "enormous_headers": (http(200, reply(), *(f"x-{n}: {'y' * 5000}" for n in range(100))), "network"),
    "headers_without_end": (hostile.headers_without_end, "network"),
    # status
    "redirect_elsewhere": (b"", "bad_request"),  # made in the test: it needs the other server's address
    "status_999": (http(999, b""), "server"),
    "status_000": (http("000", b""), "network"),
    "status_599": (http(599, b"\xff\xfe"), "server"),
    "status_418": (http(418, b""), "bad_request"),
    "status_204": (b"HTTP/1.1 204 No\r\n\r\n", "invalid"),
    "list_shaped_429": (http(429, b'[{"error":{"code":429,"details":[{"retryDelay":"37s"}]}}]'), "rate_limited"),
    "strange_429": (http(429, b'{"error":{"details":7,"retry_after":1' + b"0" * 400 + b"}}"), "rate_limited"),
    # not a completion
    "error_with_200": (http(200, b'{"error":{"message":"no"}}'), "invalid"),
    "error_beside_an_answer": (http(200, reply(error={"message": "no"})), "invalid"),
    "html": (http(200, b"<html><body>hello</body></html>", "content-type: text/html"), "invalid"),
    "null": (http(200, b"null"), "invalid"),
    "list": (http(200, b"[" + reply() + b"]"), "invalid"),
    "nothing": (http(200, b""), "invalid"),
    "invalid_utf8": (http(200, reply().replace(b"m-2026", b"m-\xff\xfe")), "invalid"),
    "utf_16": (http(200, reply().decode().encode("utf-16")), "invalid"),
    "event_stream": (http(200, b"data: " + reply() + b"\n\ndata: [DONE]\n\n"), "invalid"),
    "duplicate_choices": (http(200, reply()[:-1] + b',"choices":[]}'), "invalid"),
    "deep_lists": (http(200, b"[" * DEEP + b"]" * DEEP), "invalid"),
    "deep_objects": (http(200, b'{"a":' * (DEEP // 3) + b"1" + b"}" * (DEEP // 3)), "invalid"),
    "objects_without_end": (http(200, b'{"choices":[' + b"{}," * 80_000 + b"{}]}"), "invalid"),
    "deep_error": (http(500, b"[" * DEEP + b"]" * DEEP), "server"),
    "integer_without_end": (http(200, b'{"usage":' + b"9" * 100_000 + b"}"), "invalid"),
    "no_choices": (http(200, reply(choices=[])), "invalid"),
    "choices_null": (http(200, reply(choices=None)), "invalid"),
    "choices_of_text": (http(200, reply(choices=["x"])), "invalid"),
    "message_null": (http(200, reply(choices=[{"message": None}])), "invalid"),
    "content_list": (http(200, reply([{"type": "text", "text": answer()}])), "invalid"),
    "content_number": (http(200, reply(0.8)), "invalid"),
    "content_object": (http(200, reply(GOOD)), "invalid"),
    # gives no answer
    "spaces": (http(200, reply("     \n\n  ")), "invalid"),
    "refusal": (http(200, reply(message={"content": None, "refusal": "I cannot"})), "refusal"),
    "refusal_beside_an_answer": (http(200, reply(message={"refusal": "I cannot"})), "refusal"),
    "length": (http(200, reply(finish="length")), "invalid"),
    "content_filter": (http(200, reply(finish="content_filter")), "content_filter"),
    "insufficient_system_resource": (http(200, reply(finish="insufficient_system_resource")), "invalid"),
    "unsure": (http(200, reply(answer(code="UNSURE"))), "unsure"),
    # nearly an answer
    "nan": (spelled("p_edge", "NaN"), "invalid"),
    "infinity": (spelled("p_edge", "Infinity"), "invalid"),
    "1e999": (spelled("p_edge", "1e999"), "invalid"),
    "number_as_text": (spelled("p_edge", '"0.9"'), "invalid"),
    "true_for_a_number": (spelled("p_edge", "true"), "invalid"),
    "one_for_true": (spelled("veto", "1"), "invalid"),
    "field_twice": (spelled("veto", 'true, "veto": false'), "invalid"),
    "another_field": (spelled("veto", 'false, "size": 5'), "invalid"),
    "half_a_surrogate_pair": (http(200, reply("\ud800")), "invalid"),
    "half_a_surrogate_pair_in_the_note": (spelled("note", '"\\ud800"'), "invalid"),
    "answer_too_long": (http(200, reply(answer() + " " * 9000)), "invalid"),
    "deep_answer": (http(200, reply("[" * 4000)), "invalid"),
    # an answer, and something odd beside it
    "fence": (http(200, reply(f"```json\n{answer()}\n```")), "ok"),
    "usage_negative": (http(200, reply(usage={"prompt_tokens": -5, "completion_tokens": -1})), "ok"),
    "usage_huge": (http(200, reply(usage={"prompt_tokens": 10**300, "completion_tokens": 10**15})), "ok"),
    "usage_nan": (http(200, reply(usage={"prompt_tokens": float("nan"), "completion_tokens": float("inf")})), "ok"),
    "usage_text": (http(200, reply(usage={"prompt_tokens": "10", "prompt_tokens_details": "x"})), "ok"),
    "usage_list": (http(200, reply(usage=[1, 2])), "ok"),
    "usage_null": (http(200, reply(usage=None)), "ok"),
    "another_content_type": (http(200, reply()).replace(b"application/json", b"text/html; charset=klingon"), "ok"),
    "headers_not_text": (http(200, reply()).replace(b"\r\n\r\n", b"\r\nx-request-id: \xff\xfe\r\n\r\n", 1), "ok"),
    "strange_names": (http(200, reply(model={"a": 1}, system_fingerprint=["\ud800"])), "ok"),
    # the key comes back
    "echo_of_the_key": (hostile.echo, "auth"),
    "echo_in_the_answer": (hostile.echo_in_answer, "ok"),
    "echo_in_the_refusal": (hostile.echo_in_refusal, "refusal"),
    "echo_in_html": (hostile.echo_in_html, "invalid"),
}


async def judged(models: Models, deadline_s: float = DEADLINE_S) -> CallResult:
    try:
        async with asyncio.timeout(deadline_s):
            return await models.ask(CHOICE, "Answer in json.", '{"role":"risk"}')
    except TimeoutError:
        return CallResult(LATE)


async def settled() -> set[asyncio.Task[object]]:
    """The tasks that are left once those that have only to end have ended."""
    for _ in range(20):
        await asyncio.sleep(0)
    return asyncio.all_tasks()


@pytest.mark.parametrize("name", ATTACKS)
async def test_attack(name, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    behaviour, outcome = ATTACKS[name]
    tasks = await settled()
    tracemalloc.start()
    try:
        async with Hostile() as elsewhere, Hostile() as server:
            server.script = [hostile.redirect(elsewhere.origin) if name == "redirect_elsewhere" else behaviour]
            models = Models(settings_at({"openai": server.base_url}), {"OPENAI_API_KEY": KEY})
            try:
                began = time.monotonic()
                tracemalloc.reset_peak()
                before, _ = tracemalloc.get_traced_memory()
                result = await judged(models)
                _, peak = tracemalloc.get_traced_memory()
                took_s = time.monotonic() - began
                again = await judged(models)
            finally:
                await models.close()
            await server.closed()
            assert elsewhere.connections == 0, "nobody else is told anything, least of all the key"
    finally:
        tracemalloc.stop()

    assert result.outcome == outcome
    assert took_s < IN_TIME_S
    assert result.answered() is (outcome == "ok")
    if result.answer is not None:
        assert {**result.answer.model_dump(), "note": ""} == GOOD, "and it is the answer that was given"
    assert again.outcome == "ok", "the next call is as good as ever"
    assert peak - before < 12_000_000, "at most some copies of what is read"

    sent = server.requests[0].header("authorization")
    assert sent == f"Bearer {KEY}", "the guard of the guards below: it was there to be echoed"
    assert len(server.requests) == 2, "one call, one request: no retry"
    shown = [result.raw or "", repr(result), caplog.text, *capfd.readouterr()]
    assert not [text for text in shown if KEY in text]
    assert not [text for text in shown if KEY[3:] in text], "not without its prefix, either"
    assert not caplog.records, "a call logs nothing"
    assert result.raw is None or len(result.raw.encode()) <= llm.MOST_RAW
    json.dumps(result.raw).encode("utf-8", "strict")
    del behaviour
    assert await settled() == tasks


async def test_usage_is_a_number_of_tokens_or_nothing():
    for name in ("usage_negative", "usage_huge", "usage_nan", "usage_text"):
        async with Hostile([ATTACKS[name][0]]) as server:
            models = Models(settings_at({"openai": server.base_url}), {"OPENAI_API_KEY": KEY})
            result = await judged(models)
            await models.close()
        assert result.usage == llm.Usage(), f"{name}: not told, so it is charged in full"
        assert result.billed()


async def test_what_a_provider_says_again_of_its_own_key_is_blacked_out_where_it_stood():
    async with Hostile([hostile.echo_in_answer, hostile.echo]) as server:
        models = Models(settings_at({"openai": server.base_url}), {"OPENAI_API_KEY": KEY})
        good, bad = await judged(models), await judged(models)
        await models.close()
    assert good.answer is not None
    assert good.answer.note == "[key]", "it would have been published"
    assert (good.request_id, good.fingerprint) == ("[key]", "[key]")
    assert bad.raw is not None
    assert "Incorrect API key provided: [key]" in bad.raw


async def test_many_attacks_at_once_leave_nothing_behind():
    tasks = await settled()
    attacks = [hostile.never, hostile.gigabytes, hostile.continues, hostile.hang_up, hostile.blank_lines] * 6
    async with Hostile(list(attacks)) as server:
        models = Models(settings_at({"openai": server.base_url}), {"OPENAI_API_KEY": KEY})
        results = await asyncio.gather(*(judged(models, MANY_S) for _ in attacks))
        assert {result.outcome for result in results} <= {LATE, "invalid", "network"}
        again = await judged(models)
        await models.close()
        await server.closed()
    assert again.outcome == "ok"
    assert await settled() == tasks


async def test_more_calls_than_connections_are_saturated_and_that_is_no_failure_of_the_network():
    async with Hostile(then=hostile.never) as server:
        models = Models(settings_at({"openai": server.base_url}), {"OPENAI_API_KEY": KEY})
        results = await asyncio.gather(*(judged(models, MANY_S) for _ in range(40)))
        await models.close()
    assert sorted({result.outcome for result in results}) == [LATE, "saturated"]
    assert sum(result.outcome == "saturated" for result in results) == 8


async def test_a_cancellation_passes_and_closes_the_connection():
    async with Hostile(then=hostile.blank_lines) as server:
        models = Models(settings_at({"openai": server.base_url}), {"OPENAI_API_KEY": KEY})
        call = asyncio.create_task(models.ask(CHOICE, "json", "{}"))
        await server.until(lambda: len(server.requests) == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await server.closed()
        await models.close()


# ---------------------------------------------------------------- any body at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = ("choices", "message", "content", "refusal", "finish_reason", "usage", "error", "model", "prompt_tokens")
TREES = st.recursive(
    JSON,
    lambda inner: st.dictionaries(st.sampled_from(NAMES), inner, max_size=4) | st.lists(inner, max_size=3),
    max_leaves=20,
)
HEADERS = st.dictionaries(st.sampled_from(sorted(llm.KEPT_HEADERS)), st.text(max_size=30), max_size=3)


@given(
    status=st.integers(100, 999),
    headers=HEADERS,
    body=TREES.map(lambda tree: json.dumps(tree).encode()) | st.binary(max_size=200),
    whole=st.booleans(),
    broken=st.booleans(),
)
def test_any_reply_becomes_a_result_and_only_a_valid_answer_an_answer(status, headers, body, whole, broken):
    reply = llm._Reply(status, headers, body, whole, broken)
    good = 200 <= status < 300
    result = llm._judge(reply, 5, 100) if good else llm._refused(reply, 5)
    assert result.answer is None, "none of these trees is one"
    assert result.billed() is good
    assert result.retry_after_s is None or 0 <= result.retry_after_s <= llm.MOST_WAIT_S
    for text in (result.raw, result.request_id, result.model_reported, result.fingerprint):
        assert text is None or len(text.encode()) <= llm.MOST_RAW
    assert result.usage is None or all(
        count is None or 0 <= count <= llm.MOST_TOKENS
        for count in (
            result.usage.prompt_tokens,
            result.usage.completion_tokens,
            result.usage.total_tokens,
            result.usage.prompt_cache_hit_tokens,
            result.usage.prompt_tokens_details.cached_tokens,
        )
    )


@given(most=st.integers(1, 500), body=st.binary(max_size=1000), packed=st.booleans())
def test_unpacking_never_gives_more_than_the_most(most, body, packed):
    found, whole = llm._unpacked(
        hostile.gzip.compress(body) if packed else body, "gzip" if packed else "identity", most
    )
    assert found == body[:most]
    assert whole is (len(body) <= most)


def test_bodies_in_an_encoding_that_nobody_asked_for_are_none():
    assert llm._unpacked(b"x", "br", 10) == (b"", False)
    assert llm._unpacked(b"not gzip", "gzip", 10) == (b"", False)
