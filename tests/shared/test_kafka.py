"""Settings of the clients, and what a member of a group holds; the rest is in tests/integration."""

import pytest

from shared import kafka, topics
from shared.errors import BrokerUnavailable, TopicMismatch
from shared.kafka import CoAssignment
from shared.settings import KafkaSettings

NAMES = topics.tick_topics(["binance", "kraken"])
OF_THE_BROKER = {"partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms"}
MEMBERS = [kafka.tick_consumer, kafka.event_consumer, kafka.share_consumer]


def both(*numbers: int) -> list[tuple[str, int]]:
    return [(name, number) for name in NAMES for number in numbers]


@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_uses_the_range_assignor_by_the_protocol_of_the_settings(member):
    classic = member(KafkaSettings(servers="x"), "test", "group")
    assert classic["partition.assignment.strategy"] == "range"
    assert classic["session.timeout.ms"] == 10_000
    assert not kafka.is_incremental(classic)
    assert "group.protocol" not in classic
    new = member(KafkaSettings(servers="x", group_protocol="consumer"), "test", "group")
    assert (new["group.protocol"], new["group.remote.assignor"]) == ("consumer", "range")
    assert kafka.is_incremental(new)
    assert not OF_THE_BROKER & set(new), "librdkafka refuses them with this protocol"
    assert set(classic) - OF_THE_BROKER == set(new) - {"group.protocol", "group.remote.assignor"}


def test_options_of_the_user_win():
    settings = KafkaSettings(servers="x", options={"session.timeout.ms": 6000})
    for member in MEMBERS:
        assert member(settings, "test", "group")["session.timeout.ms"] == 6000


def test_the_classic_protocol_deals_everything_anew():
    held = CoAssignment(NAMES, incremental=False)
    assert held.assigned(both(1, 2)) == {1, 2}
    assert held.revoked(both(1, 2)) == frozenset()
    assert held.assigned(both(2, 3)) == {2, 3}
    with pytest.raises(TopicMismatch, match="other partitions on one exchange"):
        held.assigned([*both(1), (NAMES[0], 2)])


def test_the_new_protocol_adds_and_removes():
    held = CoAssignment(NAMES, incremental=True)
    assert held.assigned(both(1, 2)) == {1, 2}
    assert held.assigned([]) == {1, 2}
    assert held.assigned(both(3)) == {1, 2, 3}
    assert held.revoked(both(1)) == {2, 3}
    held.check()


def test_the_new_protocol_may_hand_over_in_steps_but_not_for_long():
    now = 100.0
    held = CoAssignment(NAMES, incremental=True, clock=lambda: now)
    assert held.assigned([*both(1), (NAMES[0], 2)]) == {1}, "only what is held on every topic counts"
    now += kafka.UNEQUAL_S
    held.check()
    assert held.assigned([(NAMES[1], 2)]) == {1, 2}
    now += 100
    held.check()
    held.revoked([(NAMES[1], 1)])
    now += kafka.UNEQUAL_S - 1
    held.revoked([(NAMES[1], 2)])  # another step, still unequal: the time runs on
    now += 2
    with pytest.raises(TopicMismatch, match="other partitions on one exchange"):
        held.check()


def test_what_is_not_delivered_is_not_confirmed():
    config = kafka.event_producer(KafkaSettings(servers="127.0.0.1:1"), "test")
    publisher = kafka.Publisher({**config, "delivery.timeout.ms": 200}, drop_when_full=False)
    publisher.publish(topics.OPPORTUNITIES, "BTC", b"{}")
    with pytest.raises(BrokerUnavailable, match="did not take a message"):
        publisher.confirm(0.01)
    publisher.flush(5.0)
    with pytest.raises(BrokerUnavailable, match=topics.OPPORTUNITIES):
        publisher.confirm()
    publisher.close(0.1)
