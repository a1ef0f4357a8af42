"""librdkafka's statistics, as real clients of a real broker gave them (Kafka 4, librdkafka 2.16), and Kafka's pulse."""

import copy
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog
from prometheus_client import REGISTRY

from shared.errors import BrokerUnavailable
from shared.kafka.watch import SILENT_S, STATISTICS_MS, Pulse, Statistics

RECORDED = Path(__file__).with_name("statistics")
TOPIC = "arbitrage-opportunities"


def recorded(name: str) -> dict[str, Any]:
    return orjson.loads((RECORDED / f"{name}.json").read_bytes())


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_producers_statistics_become_metrics():
    Statistics("p1")(orjson.dumps(recorded("producer")).decode())
    assert value("arb_kafka_queue_messages", client="p1") == 0
    assert value("arb_kafka_queue_max_messages", client="p1") == 100_000
    assert value("arb_kafka_queue_bytes", client="p1") == 0
    assert value("arb_kafka_rtt_ms", client="p1", quantile="0.5") == 3.359
    assert value("arb_kafka_rtt_ms", client="p1", quantile="0.99") == 17.279
    assert value("arb_kafka_brokers_up", client="p1") == 1
    assert value("arb_kafka_request_errors_total", client="p1") == 0
    assert value("arb_consumer_rebalances_total", client="p1") is None


def test_lag_is_from_what_was_stored_to_the_end_and_partition_minus_one_is_none():
    statistics = Statistics("c1")
    statistics.take(recorded("consumer"))
    assert value("arb_consumer_lag_messages", topic=TOPIC) == (5 - 1) + (3 - 1) + 0 + (3 - 1) + (4 - 1) + (7 - 3) + 3
    assert value("arb_consumer_partitions", topic=TOPIC) == 8
    assert value("arb_consumer_rebalances_total", client="c1") == 1
    assert (statistics.joined, statistics.partitions) == (True, 8)
    assert statistics.assignment() == (True, "8 partitions")
    assert value("arb_kafka_queue_messages", client="c1") is None


def test_a_partition_of_which_nothing_is_known_is_left_out_and_lag_without_any_is_none():
    statistics, found = Statistics("c8"), recorded("consumer")
    places = found["topics"][TOPIC]["partitions"]
    places["0"]["hi_offset"] = -1001
    places["1"] |= {"stored_offset": -1001, "committed_offset": -1001, "next_offset": -1001}
    statistics.take(found)
    assert value("arb_consumer_lag_messages", topic=TOPIC) == 0 + (3 - 1) + (4 - 1) + (7 - 3) + 3
    for place in places.values():
        place["hi_offset"] = -1001
    statistics.take(found)
    assert value("arb_consumer_lag_messages", topic=TOPIC) is None
    assert value("arb_consumer_partitions", topic=TOPIC) == 8


def test_what_was_not_measured_lately_is_not_shown_until_it_is_again():
    statistics, found = Statistics("c9"), recorded("consumer")
    statistics.take(found)
    assert value("arb_kafka_rtt_ms", client="c9", quantile="0.99") is not None
    away = copy.deepcopy(found)
    for broker in away["brokers"].values():
        broker["rtt"]["cnt"] = 0
    for _ in range(2):
        statistics.take(away)
        assert value("arb_kafka_rtt_ms", client="c9", quantile="0.5") is None
        assert value("arb_kafka_rtt_ms", client="c9", quantile="0.99") is None
        assert value("arb_consumer_lag_messages", topic=TOPIC) is None
    statistics.take(found)
    assert value("arb_kafka_rtt_ms", client="c9", quantile="0.99") is not None
    assert value("arb_consumer_lag_messages", topic=TOPIC) == 18


def test_what_was_given_away_in_a_rebalance_is_not_counted_any_more():
    statistics = Statistics("c2")
    statistics.take(recorded("consumer"))
    statistics.take(recorded("consumer-after-a-rebalance"))
    assert value("arb_consumer_partitions", topic=TOPIC) == 4
    assert value("arb_consumer_lag_messages", topic=TOPIC) == 4 + 2 + 0 + 2
    assert value("arb_consumer_rebalances_total", client="c2") == 3


def test_a_topic_of_which_nothing_is_left_shows_zero_and_the_member_is_a_standby():
    statistics = Statistics("c3")
    statistics.take(recorded("consumer"))
    lost = recorded("consumer")
    for partition in lost["topics"][TOPIC]["partitions"].values():
        partition |= {"desired": False, "fetch_state": "stopped"}
    statistics.take(lost)
    assert value("arb_consumer_lag_messages", topic=TOPIC) == 0
    assert value("arb_consumer_partitions", topic=TOPIC) == 0
    ok, words = statistics.assignment()
    assert ok
    assert "standby" in words


def test_counts_that_only_grow_are_added_once_and_brokers_are_not_counted_twice():
    statistics, found = Statistics("c4"), recorded("consumer")
    (name,) = [name for name, broker in found["brokers"].items() if broker["source"] == "learned"]
    found["brokers"][name] |= {"txerrs": 2, "req_timeouts": 3}
    found["brokers"]["bootstrap:9092"] = {**copy.deepcopy(found["brokers"][name]), "nodeid": -1, "txerrs": 0}
    found["brokers"]["bootstrap:9092"]["req_timeouts"] = 0
    found["brokers"]["internal"] = {**copy.deepcopy(found["brokers"][name]), "source": "internal", "txerrs": 50}
    for _ in range(3):
        statistics.take(found)
    assert value("arb_kafka_request_errors_total", client="c4") == 5
    assert value("arb_kafka_brokers_up", client="c4") == 1
    found["brokers"][name]["txerrs"] = 4
    statistics.take(found)
    assert value("arb_kafka_request_errors_total", client="c4") == 7


def test_old_statistics_prove_nothing():
    clock = Clock()
    statistics = Statistics("c5", clock)
    assert statistics.assignment() == (False, "nothing heard of the group")
    statistics.take(recorded("consumer"))
    clock.now += 3 * STATISTICS_MS / 1000 + 1
    assert statistics.assignment() == (False, "nothing heard of the group for 16 s")


def test_a_member_that_is_joining_is_not_ready():
    statistics, found = Statistics("c6"), recorded("consumer")
    found["cgrp"]["join_state"] = "wait-sync"
    statistics.take(found)
    assert statistics.assignment()[0] is False


def test_statistics_that_nobody_can_read_do_not_end_the_poll_that_brought_them():
    with structlog.testing.capture_logs() as logs:
        Statistics("c7")("{")
        Statistics("c7")('{"brokers": {}}')
    assert [line["client"] for line in logs] == ["c7", "c7"]


def test_kafka_is_away_when_it_has_not_answered_for_a_while_and_back_with_the_next_answer():
    clock, down, troubles = Clock(), [], []

    def ask(timeout_s: float) -> int:
        if down:
            raise BrokerUnavailable(down[0])
        return 3

    pulse = Pulse(ask, lambda: troubles[0] if troubles else None, clock)
    assert pulse.look() == (False, "Kafka has not answered yet")
    pulse.ask()
    assert pulse.look() == (True, "3 brokers, answered 0 s ago")
    down.append("timed out")
    clock.now += SILENT_S - 1
    pulse.ask()
    assert pulse.look()[0] is True, "one slow broker of several says nothing"
    clock.now += 2
    assert pulse.look() == (False, "no answer from Kafka for 13 s: timed out")
    down.clear()
    pulse.ask()
    assert pulse.look()[0] is True
    troubles.append("a message was not delivered 2 s ago: t: no")
    assert pulse.look() == (False, troubles[0])


def test_kafka_that_never_answered_is_named_with_the_reason():
    def ask(timeout_s: float) -> int:
        raise BrokerUnavailable("Connection refused")

    pulse = Pulse(ask, lambda: None)
    pulse.ask()
    assert pulse.look() == (False, "Kafka has not answered yet: Connection refused")


def test_asking_goes_on_until_the_end():
    asked: list[float] = []
    with Pulse(lambda timeout_s: asked.append(timeout_s) or 1, lambda: None) as pulse:
        pulse._thread.join(0.01)
        while not asked:
            pulse._thread.join(0.01)
    pulse._thread.join(5)
    assert not pulse._thread.is_alive()


@pytest.mark.parametrize("name", ["producer", "consumer", "consumer-after-a-rebalance"])
def test_recordings_are_of_real_clients(name):
    assert recorded(name)["name"].startswith("decider#")
