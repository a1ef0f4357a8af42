"""The decider as a process on a real broker: who is asked, what is paid, what is lost when it is killed, what is written."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from services.cli.jars import free_port
from shared import kafka, messages, topics
from shared.messages import decode
from shared.settings import KafkaSettings
from tests.decider.hostile import KEYS, OK, Exchange, Hostile, answer, echo, echo_in_answer, echo_in_refusal, listed
from tests.integration.test_pipeline import Reader, service, until_assigned

pytestmark = pytest.mark.integration

PROVIDERS = ("OPENAI", "GEMINI", "DEEPSEEK")


def variables(base_urls: dict[str, str], folder: Any, **decider: object) -> dict[str, str]:
    """Environment of `arb decide`: where the models are, keys, a state file of the test's own."""
    found = {f"ARB_PROVIDERS_{name}": json.dumps({"base_url": url}) for name, url in base_urls.items()}
    found |= {f"ARB_DECIDER_{name.upper()}": str(value).lower() for name, value in decider.items()}
    return found | KEYS | {"ARB_DECIDER_STATE_FILE": str(folder / "decider.sqlite"), "ARB_DECIDER_PROBE": "false"}


@contextmanager
def killed(
    broker: KafkaSettings, log: Path, step: str, number: int, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """`arb decide` that ends itself at a step (killed.py); it does not outlive the block."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("ARB_")}
    variables |= {"ARB_KAFKA_SERVERS": broker.servers, **environment}
    program = [sys.executable, str(Path(__file__).with_name("killed.py")), step, str(number)]
    with log.open("wb") as output, subprocess.Popen(program, env=variables, stdout=output, stderr=output) as process:
        try:
            yield process
        finally:
            process.kill()


def opportunity(n: int, identity: str | None = None, phase: str = "opened", base: str = "BTC") -> messages.Opportunity:
    """One of many routes; its profit is its number, by which a model's question tells which one it is."""
    now = time.time_ns()
    pairs = [("kraken", "coinbase", "USD"), ("binance", "okx", "USDT"), ("bybit", "binance", "USDT")]
    bought, sold, quote = pairs[n % 3]
    leg = {
        "exchange": bought,
        "symbol": f"{base}-{quote}",
        "vwap": "1",
        "limit": "1",
        "fee_bps": "10",
        "levels": 1,
        "alive_age_ms": 1,
        "book_age_ms": 1,
        "bids": [[1, 1]],
        "asks": [[1, 1]],
    }
    return messages.Opportunity.model_validate(
        {
            "opportunity_id": identity or uuid.uuid4().hex,
            "phase": phase,
            "base": base,
            "buy": leg,
            "sell": leg | {"exchange": sold},
            "rates": [],
            "size": "1",
            "notional_usd": "100",
            "profit_usd": str(n + 1),
            "naive_bps": "100",
            "net_bps": "80",
            "closed_loop_bps": "80",
            "depth_limited": False,
            "opened_ns": now,
            "detected_ns": now,
            "expires_ns": now + 5_000_000_000,
            "peak_net_bps": "80",
        }
    )


def of_kind(records: list[kafka.Record], kind: str) -> list[Any]:
    found = [decode(record.value) for record in records if not record.topic.endswith(".dlq")]
    return [message for message in found if message.kind == kind]


def about(records: list[kafka.Record], kind: str, one: messages.Opportunity) -> list[Any]:
    return [found for found in of_kind(records, kind) if found.opportunity_id == one.opportunity_id]


async def until(seen: Reader, found: Callable[[list[kafka.Record]], Any], timeout_s: float = 40) -> Any:
    """`Reader.until` beside a server that runs in this loop."""
    return await asyncio.to_thread(seen.until, found, timeout_s)


@pytest.fixture
def reader(broker):
    opened = []

    def make(*names: str) -> Reader:
        opened.append(Reader(broker, list(names)))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def send(out: kafka.Publisher, *found: messages.Opportunity) -> None:
    for one in found:
        out.publish(topics.OPPORTUNITIES, one.base, one.encode())
    out.flush(10)


def page(port: int, path: str) -> bytes:
    """What the decider answers, whatever its status."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as found:
            return bytes(found.read())
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.read()


def user(exchange: Exchange) -> dict[str, Any]:
    return dict(json.loads(exchange.request.json()["messages"][1]["content"]))


async def test_three_models_are_asked_and_a_killed_decider_pays_for_nothing_twice(broker, reader, out, tmp_path):
    seen = reader(topics.DECISIONS, topics.AUDIT, topics.dlq(topics.OPPORTUNITIES))
    async with Hostile(listing=listed("gpt-6-luna", "gemini-3.5-flash-lite", "deepseek-flash")) as server:
        environment = variables(dict.fromkeys(PROVIDERS, server.base_url), tmp_path)
        with service(broker, tmp_path / "first.log", "decide", **environment) as first:
            await asyncio.to_thread(until_assigned, tmp_path / "first.log")
            out.publish(topics.OPPORTUNITIES, "BTC", b'{"kind":"opportunity"}')
            one = opportunity(0)  # now: it must be fresh when it is read
            send(out, one)
            # Other tests may have left some: a new group begins with what is there.
            (decision,) = await until(seen, lambda records: about(records, "decision", one))
            assert decision.outcome == "execute"
            assert [record.role for record in decision.roles] == ["sentiment", "risk", "volatility"]
            assert decision.panel.cost_usd > 0
            (dead,) = await until(seen, lambda records: [r for r in records if r.topic.endswith(".dlq")])
            assert dict(dead.headers)["__dlq.stage"] == b"decode"
            (audit,) = await until(
                seen, lambda records: [a for a in of_kind(records, "audit") if a.decision == decision]
            )
            assert [json.loads(question.user)["profit_usd"] for question in audit.questions] == [1.0] * 3
            assert json.loads(audit.questions[0].raw[0]) == json.loads(answer())
            first.kill()
            first.wait()
        with service(broker, tmp_path / "second.log", "decide", **environment):
            await asyncio.to_thread(until_assigned, tmp_path / "second.log")
            other = opportunity(1)
            send(out, opportunity(0, one.opportunity_id, "updated"), other)
            await until(seen, lambda records: about(records, "decision", other))
        assert len(about(seen.records, "decision", one)) == 1, "the tail of the decisions was read"
        book = sqlite3.connect(tmp_path / "decider.sqlite")
        assert book.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        book.close()


async def test_killed_at_any_moment_it_loses_no_decision_and_pays_again_only_for_what_was_in_flight(
    broker, reader, out, tmp_path
):
    seen = reader(topics.DECISIONS)
    asked: list[tuple[int, str, float]] = []

    async def think(exchange: Exchange) -> None:
        question = user(exchange)
        asked.append((round(question["profit_usd"]) - 1, question["role"], time.monotonic()))
        exchange.keep = True
        await asyncio.sleep(0.15)
        await exchange.send(OK)

    rounds, each = 3, 12
    sent: dict[str, int] = {}
    kills: list[float] = []

    def everything(records: list[kafka.Record]) -> bool:
        return {decision.opportunity_id for decision in of_kind(records, "decision")} >= set(sent)

    async with Hostile(then=think) as server:
        environment = variables(
            dict.fromkeys(PROVIDERS, server.base_url),
            tmp_path,
            max_panels_in_flight=4,
            verdict_ttl_ms=0,
        ) | {"ARB_KAFKA_OPTIONS": '{"session.timeout.ms": 6000, "heartbeat.interval.ms": 1000}'}
        for number in range(rounds):
            log = tmp_path / f"{number}.log"
            with service(broker, log, "decide", **environment) as decider:
                await asyncio.to_thread(until_assigned, log)
                batch = [opportunity(number * each + n, base=("BTC", "ETH", "SOL")[n % 3]) for n in range(each)]
                sent |= {one.opportunity_id: number * each + n for n, one in enumerate(batch)}
                before = len(asked)
                send(out, *batch)
                if number < rounds - 1:
                    # At a different depth each time: while the first panels think, then while later ones do.
                    async with asyncio.timeout(20):
                        while len(asked) < before + 2 + 7 * number:  # noqa: ASYNC110
                            await asyncio.sleep(0.005)
                    decider.send_signal(signal.SIGKILL)
                    kills.append(time.monotonic())
                    decider.wait()
                else:
                    await until(seen, everything)
    decided = Counter(d.opportunity_id for d in of_kind(seen.records, "decision") if d.opportunity_id in sent)
    assert set(decided) == set(sent), "none lost"
    times: dict[tuple[int, str], list[float]] = {}
    for n, role, at in asked:
        times.setdefault((n, role), []).append(at)
    again = {place: at for place, at in times.items() if len(at) > 1}
    for place, at in again.items():
        assert len(at) == 2, f"{place} was asked {len(at)} times"
        assert any(at[0] < kill < at[1] and kill - at[0] < 3.0 for kill in kills), (
            f"{place} was not in flight at a kill"
        )
    assert len(again) <= 3 * 4 * len(kills), "at most the panels in flight"


async def test_no_key_is_written_anywhere(broker, reader, out, tmp_path):
    """Providers that repeat the key in their answers, errors and headers; everything that the run wrote is searched."""
    seen = reader(topics.DECISIONS, topics.AUDIT, topics.dlq(topics.OPPORTUNITIES))
    async with (
        Hostile(then=echo_in_answer, listing=echo) as first,
        Hostile(then=echo, listing=echo) as second,
        Hostile(then=echo_in_refusal, listing=echo) as third,
    ):
        urls = {"OPENAI": first.base_url, "GEMINI": second.base_url, "DEEPSEEK": third.base_url}
        environment = variables(urls, tmp_path) | {"ARB_DECIDER_PROBE": "true", "ARB_LOG_LEVEL": "debug"}
        port = free_port()
        served = {"ARB_METRICS_PORT": str(port)}
        with service(broker, tmp_path / "decider.log", "decide", **environment, **served):
            await asyncio.to_thread(until_assigned, tmp_path / "decider.log")
            ids = set()
            for n in range(6):
                one = opportunity(n, base=("BTC", "ETH", "SOL")[n % 3])
                ids.add(one.opportunity_id)
                send(out, one)
            out.publish(topics.OPPORTUNITIES, "BTC", json.dumps({"kind": "opportunity", **KEYS}).encode())
            out.publish(topics.OPPORTUNITIES, "BTC", json.dumps({"kind": KEYS["OPENAI_API_KEY"]}).encode())
            out.flush()
            await until(seen, lambda records: {d.opportunity_id for d in of_kind(records, "decision")} >= ids)
            await until(seen, lambda records: len(of_kind(records, "audit")) >= len(ids))
            await until(seen, lambda records: sum(record.topic.endswith(".dlq") for record in records) > 1)
            pages = [await asyncio.to_thread(page, port, path) for path in ("metrics", "readyz", "healthz", "")]
    raw = [text for audit in of_kind(seen.records, "audit") for question in audit.questions for text in question.raw]
    assert any(raw), "something was answered, and kept"
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    crossed = b"".join(
        repr((r.key, r.headers)).encode()
        # A dead letter's value is the record as it came, with whatever its sender put there.
        + ((r.value or b"") if not r.topic.endswith(".dlq") else b"")
        for r in seen.records
    )
    assert b"model check" in written
    assert b"__dlq.error.message" in crossed
    assert b"arb_model_calls_total" in pages[0]
    for key in KEYS.values():
        assert key.encode() not in written
        assert key.encode() not in crossed
        assert key.encode() not in b"".join(pages)


@pytest.mark.parametrize("step", ["crash at the start", "crash at a record"])
async def test_an_exception_that_ends_it_is_told_without_keys(step, broker, out, tmp_path):
    """Keys are in the variables of the frames, in the exception's words, and in those of its cause."""
    log = tmp_path / "decider.log"
    async with Hostile() as server:
        environment = variables(dict.fromkeys(PROVIDERS, server.base_url), tmp_path) | {"ARB_LOG_LEVEL": "debug"}
        with killed(broker, log, step, 1, **environment) as decider:
            if step == "crash at a record":
                await asyncio.to_thread(until_assigned, log)
                one = opportunity(0)
                send(out, one.model_copy(update={"expires_ns": one.detected_ns}))  # whoever reads it next asks nobody
            assert await asyncio.to_thread(decider.wait, 30) == 1
    told = log.read_text()
    assert told.count("Traceback (most recent call last)") >= 2, "what it rests on, too"
    assert "in crash" in told
    assert "RuntimeError: unexpected" in told
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for key in KEYS.values():
        assert key.encode() not in written


async def test_a_backlog_of_what_has_expired_drains_without_a_call(broker, reader, out, tmp_path):
    seen = reader(topics.DECISIONS)
    old = [opportunity(n, base=("BTC", "ETH", "SOL")[n % 3]) for n in range(2_000)]
    past = time.time_ns() - 60_000_000_000
    dead = [one.model_copy(update={"detected_ns": past, "opened_ns": past, "expires_ns": past + 1}) for one in old]
    send(out, *dead)
    async with Hostile() as server:
        environment = variables(dict.fromkeys(PROVIDERS, server.base_url), tmp_path)
        with service(broker, tmp_path / "decider.log", "decide", **environment):
            ids = {one.opportunity_id for one in dead}

            def decided(records: list[kafka.Record]) -> bool:
                return sum(record.topic == topics.DECISIONS for record in records) >= len(ids)

            await until(seen, decided)
        assert [request for request in server.requests if request.method == "POST"] == []
    found = of_kind(seen.records, "decision")
    assert {d.opportunity_id for d in found} >= ids
    assert {d.reason for d in found if d.opportunity_id in ids} == {"expired"}
    at_ns = sorted(d.decided_ns for d in found)
    assert (at_ns[-1] - at_ns[0]) / len(found) < 50_000_000, "milliseconds each, on a busy machine"
