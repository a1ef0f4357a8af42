"""A detector and a decider on a real broker that stops and goes on: live all the time, ready when they do their job."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from services.cli import jars
from services.cli.jars import JarCluster
from shared import cluster, kafka, messages, topics
from tests.integration.test_pipeline import service

pytestmark = pytest.mark.integration

WAIT_S = 150.0
"""Generous: other tests share the machine."""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[JarCluster]:
    """A broker that nobody else uses: it is stopped for a while."""
    try:
        libs = jars.fetch()
    except jars.Unsuitable as reason:
        pytest.skip(f"no real Kafka can run here: {reason}")
    with JarCluster(libs, tmp_path, 1, quick=True) as running:
        running.format()
        running.start(1)
        running.wait(timeout_s=WAIT_S)
        cluster.apply_topics(running.kafka)
        yield running


def ask(port: int, path: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.loads(refused.read())
    except OSError as error:
        return 0, str(error)


def until(found: Callable[[], Any], what: str) -> float:
    """Wait for it; how long that took, in seconds."""
    began = time.monotonic()
    while not found():
        assert time.monotonic() - began < WAIT_S, what
        time.sleep(0.1)  # another process's state: there is no event to wait for
    return time.monotonic() - began


def samples(port: int) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {(one.name, *one.labels.values()): one.value for family in parse(text) for one in family.samples}


@pytest.mark.timeout(600)
def test_readiness_follows_kafka_and_life_does_not(own, tmp_path):
    ports = dict(zip(("detector", "decider"), jars.free_ports(2), strict=True))
    variables = {"ARB_DECIDER_STATE_FILE": str(tmp_path / "decider.sqlite"), "OPENAI_API_KEY": ""}
    with (
        service(own.kafka, tmp_path / "detector.log", "detect", ARB_METRICS_PORT=str(ports["detector"])),
        service(own.kafka, tmp_path / "decider.log", "decide", ARB_METRICS_PORT=str(ports["decider"]), **variables),
    ):

        def all_ready() -> bool:
            return all(ask(port, "/readyz")[0] == 200 for port in ports.values())

        def none_ready() -> bool:
            alive = [ask(port, "/healthz") for port in ports.values()]
            assert [status for status, _ in alive] == [200, 200], alive
            return all(ask(port, "/readyz")[0] == 503 for port in ports.values())

        until(lambda: all(ask(port, "/healthz")[0] == 200 for port in ports.values()), "live")
        until(all_ready, f"ready: {[ask(port, '/readyz') for port in ports.values()]}")
        for name, port in ports.items():
            body = ask(port, "/readyz")[1]
            assert body["service"] == name
            assert {"loop", "kafka", "assignment"} <= {check["check"] for check in body["checks"] if check["ok"]}

        with_ticks = kafka.Publisher(kafka.tick_producer(own.kafka, "test"), drop_when_full=True)
        now_ns = time.time_ns()
        value = messages.book_value("kraken", "BTC-USD", 1, now_ns, None, [(99.0, 1.0)], [(100.0, 1.0)])
        with_ticks.publish(topics.ticks("kraken"), "BTC", value)
        with_ticks.publish(topics.OPPORTUNITIES, "BTC", b"no opportunity")
        with_ticks.confirm()
        with_ticks.close()
        until(lambda: samples(ports["detector"]).get(("arb_books", "kraken", "live"), 0) == 1, "the book is held")
        aside = ("arb_dead_letters_total", "decode", topics.OPPORTUNITIES)  # labels come sorted
        until(lambda: samples(ports["decider"]).get(aside) == 1, "the record that is none is put aside")
        lag = ("arb_consumer_lag_messages", topics.OPPORTUNITIES)
        until(lambda: samples(ports["decider"]).get(lag) == 0, "nothing is left to do")
        detector, decider = samples(ports["detector"]), samples(ports["decider"])
        assert detector["arb_consumer_partitions", topics.ticks("kraken")] == topics.TICK_PARTITIONS
        assert detector["arb_co_partitioned",] == 1
        assert detector["arb_kafka_brokers_up", "events"] == 1
        assert detector["arb_kafka_queue_messages", "events"] == 0
        assert decider["arb_kafka_queue_max_messages", "events"] > 0
        assert decider["arb_ready", "kafka"] == 1

        own.pause(1)
        try:
            away_s = until(none_ready, "not ready while Kafka is away")
            assert away_s < 60 * 2
            words = {check["check"]: check for check in ask(ports["decider"], "/readyz")[1]["checks"]}
            assert not words["kafka"]["ok"]
            assert "no answer from Kafka" in words["kafka"]["words"]
        finally:
            own.resume(1)
        back_s = until(all_ready, "ready again when Kafka is back")
        print(f"not ready after {away_s:.1f} s, ready again after {back_s:.1f} s")  # noqa: T201
