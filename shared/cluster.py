"""The cluster itself: is it there, and are its topics as `shared/topics.py` says."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from shared.errors import BrokerUnavailable, TopicMismatch
from shared.kafka import no_broker
from shared.settings import KafkaSettings
from shared.topics import TOPICS, Topic


@dataclass(frozen=True, slots=True)
class Finding:
    """One topic that is not as the table says. `mendable`: `arb topics apply` can put it right."""

    topic: str
    problem: str
    mendable: bool


def admin(settings: KafkaSettings) -> AdminClient:
    return AdminClient({"bootstrap.servers": settings.servers, "log_level": 0, **settings.client_options()})


def wait_for_brokers(settings: KafkaSettings, count: int = 1, timeout_s: float = 10.0) -> int:
    """How many brokers there are, once there are at least `count`.

    Raises:
        BrokerUnavailable: not within `timeout_s`.
    """
    client = admin(settings)
    deadline = time.monotonic() + timeout_s
    words = f"{settings.servers} did not answer within {timeout_s:g} s"
    while True:
        try:
            found = len(client.list_topics(timeout=min(2.0, timeout_s)).brokers)
            if found >= count:
                return found
            words = f"{found} of {count} brokers at {settings.servers}"
        except KafkaException:
            pass
        if time.monotonic() > deadline:
            raise BrokerUnavailable(no_broker(words))
        time.sleep(0.1)  # polling a broker that is coming up: there is no event to wait for


def require_topics(settings: KafkaSettings, names: Iterable[str], timeout_s: float = 10.0) -> None:
    """Fail now, with a clear line, if Kafka does not answer or a topic is missing.

    Raises:
        BrokerUnavailable: no broker answers.
        TopicMismatch: names the missing topics.
    """
    wait_for_brokers(settings, timeout_s=timeout_s)
    known = admin(settings).list_topics(timeout=timeout_s).topics
    missing = [name for name in names if name not in known]
    if missing:
        raise TopicMismatch(f"no topic {', '.join(missing)}; create the topics with `arb topics apply`")


def group_is_stable(settings: KafkaSettings, group: str, timeout_s: float = 5.0) -> bool:
    """Whether a consumer group has members and all of them have their partitions."""
    client = admin(settings)  # kept until the answer is there: with the client its futures would die
    found = client.describe_consumer_groups([group], request_timeout=timeout_s)
    try:
        described = found[group].result(timeout_s)
    except (KafkaException, TimeoutError):
        return False
    return bool(described.state == ConsumerGroupState.STABLE and described.members)


def check_topics(settings: KafkaSettings, topics: Iterable[Topic] = TOPICS, timeout_s: float = 10.0) -> list[Finding]:
    """What differs between the cluster and the table; empty if nothing.

    Raises:
        BrokerUnavailable: no broker answers.
    """
    brokers = wait_for_brokers(settings, timeout_s=timeout_s)
    client = admin(settings)
    known = client.list_topics(timeout=timeout_s).topics
    findings = []
    present = []
    for topic in topics:
        if topic.name not in known:
            findings.append(Finding(topic.name, "is missing", mendable=True))
            continue
        there = len(known[topic.name].partitions)
        if there != topic.partitions:
            findings.append(
                Finding(topic.name, f"has {there} partitions, must have {topic.partitions}", mendable=False)
            )
        present.append(topic)
    resources = {t.name: ConfigResource(ResourceType.TOPIC, t.name) for t in present}
    if not resources:
        return findings
    answers = client.describe_configs(list(resources.values()), request_timeout=timeout_s)
    by_name = {resource.name: future.result() for resource, future in answers.items()}
    for topic in present:
        for name, wanted in topic.settings(brokers).items():
            entry = by_name[topic.name].get(name)
            actual = entry.value if entry is not None else None
            if actual != wanted:
                findings.append(Finding(topic.name, f"{name} is {actual}, must be {wanted}", mendable=True))
    return findings


def _wait_until_visible(client: AdminClient, topics: Iterable[Topic], timeout_s: float) -> None:
    """A created topic reaches each broker's metadata a moment later; whoever starts next must find it."""
    deadline = time.monotonic() + timeout_s
    waiting = {topic.name for topic in topics}
    while waiting:
        known = client.list_topics(timeout=timeout_s).topics
        waiting = {name for name in waiting if name not in known or not known[name].partitions}
        if waiting and time.monotonic() > deadline:
            raise BrokerUnavailable(f"created, but not visible within {timeout_s:g} s: {', '.join(sorted(waiting))}")
        if waiting:
            time.sleep(0.05)  # metadata spreads by itself: there is no event to wait for


def apply_topics(
    settings: KafkaSettings, topics: Iterable[Topic] = TOPICS, brokers: int = 1, timeout_s: float = 30.0
) -> list[str]:
    """Create what is missing and put settings right; returns one line per change, empty if nothing was to do.

    Partition counts of existing topics are never changed: that would move keys and break co-partitioning.

    Raises:
        BrokerUnavailable: no broker answers.
        TopicMismatch: a topic has another number of partitions, or the cluster refused.
    """
    topics = tuple(topics)
    count = wait_for_brokers(settings, brokers, timeout_s)
    client = admin(settings)
    by_name = {topic.name: topic for topic in topics}
    done = []
    findings = check_topics(settings, topics, timeout_s)
    fixed = [f for f in findings if not f.mendable]
    if fixed:
        lines = "; ".join(f"{f.topic} {f.problem}" for f in fixed)
        raise TopicMismatch(f"{lines}: stop all services, delete and create again, or use another cluster")
    missing = [by_name[f.topic] for f in findings if f.problem == "is missing"]
    if missing:
        new = [NewTopic(t.name, t.partitions, t.replication(count), config=t.settings(count)) for t in missing]
        for name, future in client.create_topics(new, operation_timeout=timeout_s, request_timeout=timeout_s).items():
            try:
                future.result()
                done.append(f"created {name}")
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise TopicMismatch(f"{name}: {error.args[0].str()}") from None
        _wait_until_visible(client, missing, timeout_s)
    wrong = {f.topic for f in findings if f.problem != "is missing"}
    for name in sorted(wrong):
        entries = [
            ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
            for key, value in by_name[name].settings(count).items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        for future in client.incremental_alter_configs([resource], request_timeout=timeout_s).values():
            future.result()
        done.append(f"corrected the settings of {name}")
    return done
