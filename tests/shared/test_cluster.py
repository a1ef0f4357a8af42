"""What is asked of a cluster, with answers of the test's own; real brokers are in tests/integration."""

from types import SimpleNamespace

import pytest

from shared import cluster, topics
from shared.kafka import Record, Span
from shared.settings import KafkaSettings

ANYWHERE = KafkaSettings(servers="nowhere:9")
DECISIONS = next(topic for topic in topics.TOPICS if topic.name == topics.DECISIONS)


class Answer:
    def __init__(self, value: object) -> None:
        self._value = value

    def result(self, *_: object) -> object:
        return self._value


@pytest.mark.parametrize(("copies", "there", "wanted"), [(3, 2, "2"), (3, 1, "2"), (1, 3, "1"), (2, 3, "1")])
def test_settings_follow_the_copies_of_a_topic_and_not_the_brokers_that_are_there(monkeypatch, copies, there, wanted):
    """Else `apply` lowers min.insync.replicas in an outage, or asks for more copies in sync than there are."""

    class Client:
        def list_topics(self, timeout):
            part = SimpleNamespace(replicas=list(range(1, copies + 1)))
            known = SimpleNamespace(partitions=dict.fromkeys(range(DECISIONS.partitions), part))
            return SimpleNamespace(brokers=dict.fromkeys(range(there)), topics={DECISIONS.name: known})

        def describe_configs(self, resources, request_timeout):
            held = {**DECISIONS.settings(3), "min.insync.replicas": wanted}
            return {
                one: Answer({name: SimpleNamespace(value=value) for name, value in held.items()}) for one in resources
            }

    monkeypatch.setattr(cluster, "admin", lambda *_: Client())
    assert cluster.check_topics(ANYWHERE, [DECISIONS]) == []


def test_a_busy_partition_of_which_a_broker_tells_no_newest_time_is_not_empty(monkeypatch):
    """Seen on three brokers: the newest record is not with the followers yet, and the answer is -1."""

    def spans(config, names, since_ms, patience_s):
        assert list(names) == ["silent", "empty"]
        return [Span("silent", 0, 0, 9, 4, 9), Span("silent", 1, 0, 0, 0, 0), Span("empty", 0, 7, 7, 7, 7)]

    def read_spans(config, wanted, silence_s):
        assert [(span.topic, span.begin, span.end) for span in wanted] == [("silent", 8, 9)]
        yield None
        yield Record("silent", 0, 8, b"k", b"{}", 1234, [])

    monkeypatch.setattr(cluster, "admin", lambda *_: None)
    monkeypatch.setattr(cluster, "spans", spans)
    monkeypatch.setattr(cluster, "read_spans", read_spans)
    monkeypatch.setattr(
        cluster,
        "_list_offsets",
        lambda client, places, spec, timeout_s: _Places(
            (SimpleNamespace(topic=name), Answer(SimpleNamespace(timestamp={"told": 5678}.get(name, -1))))
            for name, _ in places
        ),
    )
    found = cluster.newest_ms(ANYWHERE, {"told": 1, "silent": 2, "empty": 1})
    assert found == {"told": 5678, "silent": 1234, "empty": None}


class _Places:
    """Answers by place, as of a mapping."""

    def __init__(self, rows):
        self._rows = list(rows)

    def items(self):
        return self._rows
