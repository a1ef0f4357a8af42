"""`arb doctor` against a broker of its own, which is broken in one way after the other."""

import asyncio
import json
import threading
import time

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from services.cli import jars
from services.cli.doctor import gather
from services.cli.doctor.finding import Part, Result
from services.cli.doctor.gather import Asked
from shared import cluster, messages, settings, topics
from tests.cli.test_commands import arb

pytestmark = pytest.mark.integration

KAFKA = (Part.KAFKA, Part.TOPICS)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    try:
        libs = jars.fetch()
        jars.java_version()
    except jars.Unsuitable as reason:
        pytest.skip(f"no Kafka of its own can run here: {reason}")
    with jars.JarCluster(libs, tmp_path_factory.mktemp("kafka"), 1, quick=True) as running:
        running.up()
        cluster.apply_topics(running.kafka)
        yield running


def configured(own, **options):
    loaded = settings.load()
    kafka = loaded.kafka.model_copy(update={"servers": own.kafka.servers, "options": options})
    return loaded.model_copy(update={"kafka": kafka})


async def look(own, *parts, **options):
    """What is not well, by check."""
    found = await gather.examine(configured(own, **options), Asked(parts, timeout_s=30))
    bad = [one for one in found if one.result in (Result.FAIL, Result.WARN)]
    assert all(one.fix for one in bad)
    return {one.check: one for one in bad}


def done(futures):
    for future in futures.values():
        future.result(20)


async def test_topics_that_are_missing_uneven_or_set_otherwise_and_what_mends_them(own):
    assert not await look(own, *KAFKA)
    admin = AdminClient({"bootstrap.servers": own.kafka.servers})
    done(admin.delete_topics([topics.ticks("okx"), topics.FX_RATES]))
    entry = ConfigEntry("min.insync.replicas", "2", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topics.DECISIONS, incremental_configs=[entry])
    done(admin.incremental_alter_configs([resource]))
    end = time.monotonic() + 20
    while topics.ticks("okx") in admin.list_topics(timeout=5).topics:
        assert time.monotonic() < end
        await asyncio.sleep(0.1)  # deletion spreads by itself: there is no event to wait for
    done(admin.create_topics([NewTopic(topics.ticks("okx"), 8, 1, config=topics.TOPICS[0].settings(1))]))
    found = await look(own, *KAFKA)
    assert found["missing"].words == "1 missing: fx-rates"
    assert "tick-data-okx has 8 partitions, must have 16" in found["partitions"].words
    assert "--delete --topic tick-data-okx" in found["partitions"].fix
    assert found["setting"].words == "ai-trading-decisions min.insync.replicas is 2, must be 1"
    assert {found[check].fix for check in ("missing", "setting")} == {"arb topics apply"}
    done(admin.delete_topics([topics.ticks("okx")]))
    cluster.apply_topics(own.kafka)
    end = time.monotonic() + 20
    while left := await look(own, *KAFKA):  # a broker learns of a changed setting a moment after the controller
        assert time.monotonic() < end, f"the fixes that it names do not mend it: {left}"


async def test_listeners_without_tls_or_sasl(own):
    found = await look(own, Part.KAFKA, **{"security.protocol": "SSL"})
    assert "TLS was tried on a listener without it" in found["broker"].words
    assert "PLAINTEXT" in found["broker"].fix
    sasl = {"sasl.mechanism": "SCRAM-SHA-512", "sasl.username": "a", "sasl.password": "planted-password"}
    found = await look(own, Part.KAFKA, **{"security.protocol": "SASL_PLAINTEXT", **sasl})
    assert "wants no SASL" in found["broker"].words
    assert "planted-password" not in str(found)


async def test_groups_without_members_and_with_a_wrong_assignor(own):
    found = await look(own, Part.GROUPS)
    assert "arb detect" in found["detector"].fix
    assert "arb decide" in found["decider"].fix
    options = {"bootstrap.servers": own.kafka.servers, "session.timeout.ms": 6000}
    wrong = Consumer(options | {"group.id": "detector", "partition.assignment.strategy": "roundrobin"})
    right = Consumer(options | {"group.id": "decider", "partition.assignment.strategy": "range"})
    wrong.subscribe(topics.tick_topics())
    right.subscribe([topics.OPPORTUNITIES])
    over = threading.Event()

    def poll():
        while not over.is_set():
            wrong.poll(0.1)
            right.poll(0.1)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        end = time.monotonic() + 60
        while not all(cluster.group_is_stable(own.kafka, name) for name in ("detector", "decider")):
            assert time.monotonic() < end
            await asyncio.sleep(0.1)  # a rebalance of another client: there is no event to wait for
        found = await look(own, Part.GROUPS)
    finally:
        over.set()
        thread.join()
        wrong.close()
        right.close()
    assert set(found) == {"detector"}
    assert "'roundrobin'" in found["detector"].words
    assert "partition.assignment.strategy" in found["detector"].fix


async def test_ticks_that_are_not_there_stale_or_live(own):
    assert "there is none" in (await look(own, Part.TICKS))["all"].words
    loaded, producer = configured(own), Producer({"bootstrap.servers": own.kafka.servers})
    now_ms = time.time_ns() // 1_000_000
    for name, exchange in loaded.enabled_exchanges().items():
        at_ms = now_ms - (60_000 if name == "okx" else 0)
        for symbol in exchange.symbols:
            state = "gap" if (name, symbol) == ("kraken", "ETH-USD") else "live"
            at_ns = at_ms * 1_000_000
            value = messages.health_value(name, symbol, at_ms, at_ns, state, None, at_ns, at_ns)
            producer.produce(topics.ticks(name), value, symbol.split("-")[0], timestamp=at_ms)
        producer.produce(topics.FX_RATES, b"{}", "USDT-USD", timestamp=now_ms)
    assert producer.flush(20) == 0
    found = await look(own, Part.TICKS)
    if time.time_ns() // 1_000_000 - now_ms > 2000:
        pytest.skip("this machine was so slow that the fresh ticks became old")
    assert set(found) == {"okx", "kraken books"}
    assert "arb collect okx" in found["okx"].fix
    assert "ETH-USD gap" in found["kraken books"].words


def test_the_command_ends_three_where_no_broker_answers_and_says_what_to_do(own):
    here = {"ARB_KAFKA_SERVERS": own.kafka.servers}
    with_protocol = {"ARB_KAFKA_SERVERS": f"PLAINTEXT://{own.kafka.servers}"}  # as the client takes it, too
    there = arb("doctor", "--only", "kafka,topics", "--timeout", "30", "--json", **with_protocol)
    assert there.returncode == 0, there.stdout + there.stderr
    assert json.loads(there.stdout)["ok"]
    own.stop()
    gone = arb("doctor", "--only", "kafka", **here)
    assert gone.returncode == 3, gone.stdout + gone.stderr
    assert "nothing listens there" in gone.stdout
    assert "fix: start Kafka there" in gone.stdout
    wrong = arb("doctor", ARB_KAFKA_NOPE="1", **here)
    assert wrong.returncode == 2
    assert "no setting kafka.nope" in wrong.stdout
