"""Which broker is taken, and the mock that stands in where nothing else can run."""

import time
import uuid

import pytest

from services.cli import broker
from services.cli.broker import start_broker
from shared import kafka, topics
from shared.errors import DependencyMissing, SettingsError


@pytest.fixture(autouse=True)
def no_servers(monkeypatch):
    monkeypatch.delenv("ARB_KAFKA_SERVERS", raising=False)


def unsuitable(words):
    def start(*_):
        raise broker.Unsuitable(words)

    return start


def test_the_mock_has_our_topics_and_says_what_it_is_and_why_nothing_better(monkeypatch):
    monkeypatch.setattr(broker, "_jars", unsuitable("no Java"))
    monkeypatch.setattr(broker, "_docker", unsuitable("no Docker"))
    with start_broker() as running:
        assert running.kind == "mock"
        assert "NOT a real Kafka" in running.why
        assert "no Java" in running.why
        assert "no Docker" in running.why
        reader = kafka.Reader(kafka.reader(running.kafka, "test"), [topics.DECISIONS], None)
        assert len(kafka.partitions_of(reader._consumer, [topics.DECISIONS, topics.ticks("okx")])) == 8 + 16
        out = kafka.Publisher(kafka.event_producer(running.kafka, "test"), drop_when_full=False)
        value = uuid.uuid4().bytes
        end, records = time.monotonic() + 20, []
        while not records and time.monotonic() < end:
            out.publish(topics.DECISIONS, "BTC", value)
            records = reader.read(10, 0.2)
        assert records[0].value == value
        assert records[0].partition == kafka.partition_of("BTC", 8)
        out.close()
        reader.close()


def test_a_forced_kind_that_cannot_run_says_why():
    with pytest.raises(DependencyMissing, match="external: ARB_KAFKA_SERVERS is not set"):
        with start_broker("external"):
            pass


def test_an_unknown_kind_is_refused():
    with pytest.raises(SettingsError, match="unknown kind of broker 'pigeon'"):
        with start_broker("pigeon"):
            pass
