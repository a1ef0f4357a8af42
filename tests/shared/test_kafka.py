"""Settings of the clients, and what a member of a group holds; the rest is in tests/integration."""

import pytest
from confluent_kafka import KafkaError, KafkaException

from shared import kafka, metrics, topics
from shared.errors import AccessRefused, BrokerUnavailable, TopicMismatch
from shared.kafka import CoAssignment, reading
from shared.settings import KafkaSettings

NOBODY = "127.0.0.1:1"
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
    config = kafka.event_producer(KafkaSettings(servers=NOBODY), "test")
    publisher, taken = kafka.Publisher({**config, "delivery.timeout.ms": 200}, drop_when_full=False), []
    publisher.publish(topics.OPPORTUNITIES, "BTC", b"{}", then=lambda: taken.append(1))
    with pytest.raises(BrokerUnavailable, match="did not take a message"):
        publisher.confirm(0.01)
    publisher.flush(5.0)
    with pytest.raises(BrokerUnavailable, match=topics.OPPORTUNITIES):
        publisher.confirm()
    publisher.close(0.1)
    assert taken == []


def test_what_is_not_delivered_is_counted_and_told_also_to_who_asked_to_be_told():
    lost = metrics.EVENTS_LOST.labels(topic="ai-trading-decisions")
    before, told = lost._value.get(), []
    config = kafka.event_producer(KafkaSettings(servers=NOBODY), "test")
    publisher = kafka.Publisher({**config, "delivery.timeout.ms": 200}, drop_when_full=False)
    publisher.publish("ai-trading-decisions", "BTC", b"{}", None, told.append)
    assert publisher.flush(10.0) == 0
    publisher.close(1.0)
    assert [error.name() for error in told] == ["_MSG_TIMED_OUT"]
    assert lost._value.get() == before + 1
    assert "ai-trading-decisions" in (publisher.trouble() or "")


def test_what_the_client_does_not_take_is_one_clear_error():
    publisher = kafka.Publisher(kafka.event_producer(KafkaSettings(servers=NOBODY), "test"), drop_when_full=False)
    with pytest.raises(BrokerUnavailable, match=r"did not take a message for a: .*too large"):
        publisher.publish("a", None, bytes(2_000_000))
    publisher.close(0.1)


@pytest.mark.parametrize("error", [BrokerUnavailable("away"), KafkaException(KafkaError(KafkaError._TIMED_OUT))])
def test_what_kafka_cannot_say_yet_is_asked_again_and_what_it_refuses_is_not(error):
    answers = [error, error, 7]

    def ask(deadline: float) -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert reading.patiently(ask, 30.0) == 7
    answers[:] = [error, 7]
    with pytest.raises(BrokerUnavailable, match=r"away|Timed out"):
        reading.patiently(ask, 0.0)
    assert answers == [7]
    for refusal in (AccessRefused("no"), KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))):
        answers[:] = [refusal, 7]
        with pytest.raises(AccessRefused):
            reading.patiently(ask, 30.0)


def test_each_attempt_has_a_client_of_its_own_and_closes_it(monkeypatch):
    """One that has asked a broker that hung may go on saying that it knows no such partition."""
    made = []

    class Client:
        def __init__(self, config):
            self.closed = False
            made.append(self)

        def list_topics(self, *_, timeout):
            assert 0 < timeout <= 10
            if len(made) < 3:
                raise KafkaException(KafkaError(KafkaError._UNKNOWN_PARTITION))
            raise AssertionError("enough")

        def close(self):
            self.closed = True

    monkeypatch.setattr(reading, "Consumer", Client)
    with pytest.raises(AssertionError, match="enough"):
        kafka.spans({}, [topics.DECISIONS], 0)
    assert len(made) == 3
    assert all(client.closed for client in made)


def test_a_dead_letter_always_fits_into_a_record():
    class Out:
        def publish(self, topic, key, value, headers, on_delivery):
            self.sent = (topic, key, value, dict(headers))

    out, value = Out(), bytes(1_048_000)
    record = kafka.Record("fx-rates", 0, 7, b"k", value, 0, [("mine", b"1")])
    kafka.dead_letter(out, record, group="g", stage="decode", error=ValueError("x"))
    topic, key, cut, headers = out.sent
    assert (topic, key, len(cut)) == ("fx-rates.dlq", b"k", kafka.MOST_DEAD_BYTES)
    assert headers["__dlq.cut"] == b"1048000"
    assert headers["mine"] == b"1"
    kafka.dead_letter(out, record._replace(value=b"{"), group="g", stage="decode", error=ValueError("x"))
    assert out.sent[2] == b"{"
    assert "__dlq.cut" not in out.sent[3]
