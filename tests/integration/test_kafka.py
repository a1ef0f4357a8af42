"""Our Kafka parts on a real broker."""

import asyncio
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer

from shared import cluster, kafka, topics
from shared.client import decisions
from shared.errors import BrokerUnavailable, TopicMismatch
from shared.kafka import reading
from shared.messages import Decision
from shared.settings import KafkaSettings
from shared.topics import Topic

pytestmark = pytest.mark.integration


def publisher(broker: KafkaSettings) -> kafka.Publisher:
    return kafka.Publisher(kafka.event_producer(broker, "test"), drop_when_full=False)


def decision(base: str, decision_id: str) -> bytes:
    leg = {
        "exchange": "binance",
        "symbol": f"{base}-USD",
        "vwap": "1",
        "limit": "1",
        "fee_bps": "10",
        "levels": 1,
        "alive_age_ms": 1,
        "book_age_ms": 1,
        "bids": [],
        "asks": [],
    }
    return Decision.model_validate(
        {
            "decision_id": decision_id,
            "opportunity_id": "o",
            "base": base,
            "outcome": "hold",
            "mode": "rules_only",
            "reason": "no_keys",
            "score": {"low": 0, "high": 0, "threshold": 600},
            "p_edge": None,
            "p_low": 0,
            "rules": {"result": "pass", "codes": []},
            "roles": [],
            "panel": {"version": "1", "deadline_ms": 0, "elapsed_ms": 0, "cost_usd": "0"},
            "buy": leg,
            "sell": leg,
            "size": "1",
            "net_bps": "1",
            "profit_usd": "1",
            "detected_ns": 1,
            "decided_ns": 1,
            "expires_ns": 1,
        }
    ).encode()


def test_the_clusters_topics_are_as_the_table_says(broker):
    assert cluster.check_topics(broker) == []
    assert cluster.apply_topics(broker) == []


def test_a_missing_topic_is_created_and_a_wrong_setting_corrected(broker):
    name = f"test-{uuid.uuid4()}"
    topic = Topic(name, 3, 3_600_000, 1, "k", "test", "test")
    assert cluster.apply_topics(broker, [topic]) == [f"created {name}"]
    changed = Topic(name, 3, 7_200_000, 1, "k", "test", "test")
    (finding,) = cluster.check_topics(broker, [changed])
    assert finding.problem == "retention.ms is 3600000, must be 7200000"
    assert cluster.apply_topics(broker, [changed]) == [f"corrected the settings of {name}"]
    assert cluster.check_topics(broker, [changed]) == []


def test_a_number_of_partitions_is_never_changed(broker):
    name = f"test-{uuid.uuid4()}"
    cluster.apply_topics(broker, [Topic(name, 3, 3_600_000, 1, "k", "test", "test")])
    with pytest.raises(TopicMismatch, match="has 3 partitions, must have 4"):
        cluster.apply_topics(broker, [Topic(name, 4, 3_600_000, 1, "k", "test", "test")])


def test_a_broker_that_is_not_there_is_one_clear_line():
    with pytest.raises(BrokerUnavailable, match=r"no Kafka answers: 127\.0\.0\.1:1 .*ARB_KAFKA_SERVERS"):
        cluster.wait_for_brokers(KafkaSettings(servers="127.0.0.1:1"), timeout_s=0.5)


def test_a_missing_topic_stops_a_service_with_its_cure(broker):
    with pytest.raises(TopicMismatch, match="no topic nothing-here; create the topics with `arb topics apply`"):
        cluster.require_topics(broker, ["nothing-here"])


def test_keys_lie_where_every_reader_expects_them(broker):
    out = publisher(broker)
    delivered = []
    before = int(time.time() * 1000) - 1000
    for base in ("BTC", "ETH", f"T{uuid.uuid4().hex[:6].upper()}"):
        out.publish(topics.DECISIONS, base, decision(base, uuid.uuid4().hex), None, on_delivery=delivered.append)
        assert out.flush() == 0
    assert delivered == [None] * 3
    out.publish(topics.REJECTIONS, "BTC", b"{}", then=lambda: delivered.append("taken"))
    out.confirm()
    assert delivered[3:] == ["taken"]
    out.close()
    for record in kafka.read_range(kafka.reader(broker, "test"), [topics.DECISIONS, topics.AUDIT], before):
        assert record.key is not None
        assert record.partition == kafka.partition_of(record.key.decode(), topics.EVENT_PARTITIONS)


async def test_the_readme_subscriber_gets_each_decision_once(broker):
    out, base, ids = publisher(broker), f"T{uuid.uuid4().hex[:6].upper()}", [uuid.uuid4().hex for _ in range(3)]
    for value in (
        decision(base, ids[0]),
        decision(base, ids[1]),
        decision(base, ids[1]),
        b"not ours",
        decision(base, ids[2]),
    ):
        out.publish(topics.DECISIONS, base, value)
    out.close()
    seen = []
    async with asyncio.timeout(20):
        async for one in decisions(broker.servers, since_s=60):
            if one.base == base:
                seen.append(one.decision_id)
            if len(seen) == 3:
                break
    assert seen == ids


def test_the_readmes_own_program_prints_a_decision(broker):
    text = (Path(__file__).parents[2] / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0].replace("127.0.0.1:29092", broker.servers)
    base, out = f"T{uuid.uuid4().hex[:6].upper()}", publisher(broker)
    program = subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True)
    lines: list[str] = []
    thread = threading.Thread(target=lambda: lines.extend(iter(program.stdout.readline, "")), daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 30
        while not any(line.startswith(base) for line in lines):
            assert time.monotonic() < end, lines
            out.publish(topics.DECISIONS, base, decision(base, uuid.uuid4().hex))
            out.flush()
            thread.join(0.2)
    finally:
        program.kill()
        program.wait()
        thread.join(5)
        program.stdout.close()
        out.close()
    assert next(line for line in lines if line.startswith(base)).split() == [base, "hold", "no_keys", "1", "1"]


async def test_a_group_of_subscribers_resumes_where_it_stopped(broker):
    out, base, group = publisher(broker), f"T{uuid.uuid4().hex[:6].upper()}", f"test-{uuid.uuid4()}"
    ids = [uuid.uuid4().hex for _ in range(4)]
    for one in ids[:2]:
        out.publish(topics.DECISIONS, base, decision(base, one))
    out.flush()

    async def take(count: int) -> list[str]:
        seen: list[str] = []
        async with asyncio.timeout(30):
            stream = decisions(broker.servers, group=group)
            async for found in stream:
                if found.base != base:
                    continue
                seen.append(found.decision_id)
                if len(seen) == count:
                    break
            await stream.aclose()
        return seen

    assert await take(2) == ids[:2]
    for one in ids[2:]:
        out.publish(topics.DECISIONS, base, decision(base, one))
    out.close()
    again = await take(3)
    assert again == ids[1:], "the last one was handed out but not confirmed: at least once"


async def test_back_pressure_pauses_and_nothing_is_lost(broker, monkeypatch):
    out, base, sent, high_water = publisher(broker), f"T{uuid.uuid4().hex[:6].upper()}", 1200, 50
    started_ms = int(time.time() * 1000) - 1000
    for number in range(sent):
        out.publish(topics.REJECTIONS, base, str(number).encode())
    out.close()
    reads: list[int] = []

    def counted(reader: Consumer) -> list[kafka.Record]:
        found = reading.read(reader)
        reads.append(len(found))
        return found

    async def nothing_in(more: int) -> None:
        before = len(reads)
        while len(reads) < before + more:  # noqa: ASYNC110  # the owner thread's: it has no event
            await asyncio.sleep(0.01)
        assert not any(reads[before:]), "paused"

    monkeypatch.setattr("shared.kafka.thread.read", counted)
    consumer = kafka.ConsumerThread(
        kafka.reader(broker, "test"),
        [topics.REJECTIONS],
        since_ms=started_ms,
        high_water=high_water,
        auto_release=False,
    )
    seen: list[int] = []

    async def take(stream: AsyncIterator[list[kafka.Record]]) -> int:
        batch = await anext(stream)
        seen.extend(int(record.value or b"") for record in batch if record.key == base.encode())
        return len(batch)

    async with consumer, asyncio.timeout(60):
        stream, held, pauses = consumer.batches(), 0, 0
        while len(seen) < sent:
            held += await take(stream)
            if held <= high_water or len(seen) == sent:
                continue
            await nothing_in(5)
            consumer.release(held - high_water // 2 - 1)
            await nothing_in(10)  # more than half is still held
            consumer.release(1)
            held, pauses = high_water // 2, pauses + 1
    assert pauses > 1
    assert seen == list(range(sent))
