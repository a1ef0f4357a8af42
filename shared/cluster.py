"""The cluster itself: is it there, and are its topics as `shared/topics.py` says."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

import confluent_kafka
from confluent_kafka import (
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    ConsumerGroupType,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ClusterMetadata,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourcePatternType,
    ResourceType,
    TopicMetadata,
)

from shared.acls import PRINCIPALS, Principal, Rule, rules
from shared.errors import BrokerUnavailable, SettingsError, TopicMismatch, UsageError
from shared.kafka.clients import reader
from shared.kafka.groups import Place
from shared.kafka.reading import read_spans, spans
from shared.kafka.refusals import Complaints, is_refusal, no_broker, no_topics, refused
from shared.settings import KafkaSettings
from shared.topics import TOPICS, Topic


@dataclass(frozen=True, slots=True)
class Finding:
    """One topic that is not as the table says. `mendable`: `arb topics apply` can put it right."""

    topic: str
    problem: str
    mendable: bool


def admin(settings: KafkaSettings, heard: Callable[[KafkaError], None] | None = None) -> AdminClient:
    """A client for questions about the cluster.

    Raises:
        SettingsError: librdkafka does not take the options, or a file they name cannot be read.
    """
    config: dict[str, Any] = {"bootstrap.servers": settings.servers, "log_level": 0, **settings.client_options()}
    if heard is not None:
        config["error_cb"] = heard
    try:
        return AdminClient(config)
    except KafkaException as error:
        words = error.args[0].str().removeprefix("Failed to create admin client: ")
        raise SettingsError(f"kafka.options: {words}") from None


def _metadata(settings: KafkaSettings, client: AdminClient, heard: Complaints, timeout_s: float) -> ClusterMetadata:
    """What a broker tells of its cluster.

    Args:
        heard: What `client` was made with.

    Raises:
        BrokerUnavailable: none answers in time. AccessRefused: they do not let us in.
    """
    try:
        return client.list_topics(timeout=timeout_s)
    except KafkaException as error:
        client.poll(0)  # brings the reasons to `heard`
        said = error.args[0]
        raise (refused(said) if is_refusal(said) else heard.failure(settings, said.str())) from None


def wait_for_brokers(settings: KafkaSettings, count: int = 1, timeout_s: float = 10.0) -> int:
    """How many brokers there are, once there are at least `count`.

    Raises:
        BrokerUnavailable: not within `timeout_s`. AccessRefused: there are, but they do not let us in.
        SettingsError: see `admin`.
    """
    heard = Complaints()
    client = admin(settings, heard)
    deadline = time.monotonic() + timeout_s
    words = f"{settings.servers} did not answer within {timeout_s:g} s"
    while True:
        try:
            found = len(client.list_topics(timeout=min(2.0, timeout_s)).brokers)
            if found >= count:
                return found
            words = f"{found} of {count} brokers at {settings.servers}"
        except KafkaException:
            client.poll(0)  # brings the reasons to `heard`
        if time.monotonic() > deadline:
            raise heard.failure(settings, words)
        time.sleep(0.1)  # polling a broker that is coming up: there is no event to wait for


def require_topics(settings: KafkaSettings, names: Iterable[str], timeout_s: float = 10.0) -> None:
    """Fail now, with a clear line, if Kafka does not answer or a topic is missing.

    Raises:
        BrokerUnavailable: no broker answers. AccessRefused: no rule lets us see a topic.
        TopicMismatch: names the missing topics.
    """
    wait_for_brokers(settings, timeout_s=timeout_s)
    heard = Complaints()
    client = admin(settings, heard)
    known = _metadata(settings, client, heard, timeout_s).topics
    missing = [name for name in names if name not in known]
    if missing:
        raise no_topics(missing, _hidden(client, missing, timeout_s))


def _hidden(client: AdminClient, names: list[str], timeout_s: float) -> list[str]:
    """Which of the topics are there, or may be, but not for us."""
    hidden = []
    for name, answer in client.describe_topics(TopicCollection(names), request_timeout=timeout_s).items():
        try:
            answer.result()
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                hidden.append(name)
    return hidden


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
        BrokerUnavailable: no broker answers. AccessRefused: no rule lets us ask.
    """
    wait_for_brokers(settings, timeout_s=timeout_s)
    heard = Complaints()
    client = admin(settings, heard)
    known = _metadata(settings, client, heard, timeout_s).topics
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
    by_name = {resource.name: _answer(future, resource.name) for resource, future in answers.items()}
    for topic in present:
        for name, wanted in topic.settings(_copies(known[topic.name])).items():
            entry = by_name[topic.name].get(name)
            actual = entry.value if entry is not None else None
            if actual != wanted:
                findings.append(Finding(topic.name, f"{name} is {actual}, must be {wanted}", mendable=True))
    return findings


def _copies(topic: TopicMetadata) -> int:
    """Of each partition, also of brokers that are away: settings follow this and not how many brokers are there now, or
    `apply` would lower `min.insync.replicas` in the middle of an outage, or raise it above what a topic has."""
    return min(len(one.replicas) for one in topic.partitions.values())


def _wait_until_visible(
    settings: KafkaSettings, client: AdminClient, heard: Complaints, topics: Iterable[Topic], timeout_s: float
) -> None:
    """A created topic reaches each broker's metadata a moment later, and whoever starts next may ask any of them.

    Raises:
        BrokerUnavailable: not within `timeout_s`. AccessRefused: see `_metadata`.
    """
    deadline = time.monotonic() + timeout_s
    names = {topic.name for topic in topics}
    while late := _late(settings, _metadata(settings, client, heard, timeout_s), names):
        if time.monotonic() > deadline:
            raise BrokerUnavailable(f"created, but not known everywhere within {timeout_s:g} s: {'; '.join(late)}")
        time.sleep(0.05)  # metadata spreads by itself: there is no event to wait for


def _late(settings: KafkaSettings, known: ClusterMetadata, names: Iterable[str]) -> list[str]:
    """Brokers that do not know some of the topics, or do not say, each in words."""
    late = []
    for broker in known.brokers.values():
        host = str(broker.host)
        server = f"[{host}]:{broker.port}" if ":" in host else f"{host}:{broker.port}"
        heard = Complaints()  # a client of its own: one that knows all brokers asks any of them
        asked = admin(settings.model_copy(update={"servers": server}), heard)
        try:
            there = _metadata(settings, asked, heard, 5.0).topics
        except BrokerUnavailable as error:  # also one that does not know our user yet
            late.append(f"broker {server}: {error}")
            continue
        if missing := sorted(name for name in names if name not in there or not there[name].partitions):
            late.append(f"broker {server} does not know {', '.join(missing)}")
    return late


def apply_topics(
    settings: KafkaSettings, topics: Iterable[Topic] = TOPICS, brokers: int = 1, timeout_s: float = 30.0
) -> list[str]:
    """Create what is missing and put settings right; returns one line per change, empty if nothing was to do.

    Partition counts of existing topics are never changed: that would move keys and break co-partitioning.

    Raises:
        BrokerUnavailable: no broker answers.
        AccessRefused: no rule lets us see, create or change a topic.
        TopicMismatch: a topic has another number of partitions, or the cluster does not take one as it is.
    """
    topics = tuple(topics)
    count = wait_for_brokers(settings, brokers, timeout_s)
    heard = Complaints()
    client = admin(settings, heard)
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
                if is_refusal(error.args[0]):
                    raise refused(error.args[0], name) from None
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise TopicMismatch(f"{name}: {error.args[0].str()}") from None
        _wait_until_visible(settings, client, heard, missing, timeout_s)
    wrong = {f.topic for f in findings if f.problem != "is missing"}
    known = _metadata(settings, client, heard, timeout_s).topics if wrong else {}
    for name in sorted(wrong):
        entries = [
            ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
            for key, value in by_name[name].settings(_copies(known[name])).items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        for future in client.incremental_alter_configs([resource], request_timeout=timeout_s).values():
            _answer(future, name)
        done.append(f"corrected the settings of {name}")
    return done


# ---------------------------------------------------------------- rules of access

_OPERATIONS = {operation.name.replace("_", "").lower(): operation for operation in AclOperation}
_RESOURCES = {"topic": ResourceType.TOPIC, "group": ResourceType.GROUP, "cluster": ResourceType.BROKER}
_PATTERNS = {"literal": ResourcePatternType.LITERAL, "prefixed": ResourcePatternType.PREFIXED}


def check_rules(
    settings: KafkaSettings, principals: Iterable[Principal] = PRINCIPALS, timeout_s: float = 10.0
) -> tuple[list[Rule], list[str]]:
    """Rules of the table that the cluster lacks, and lines about what it has for the table's users beyond it. Other
    users' rules are nobody's business here.

    Raises:
        BrokerUnavailable: no broker answers. AccessRefused: we may not ask.
    """
    principals = tuple(principals)
    wait_for_brokers(settings, timeout_s=timeout_s)
    client = admin(settings)
    kinds = (ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY)
    every = AclBindingFilter(*kinds)  # type: ignore[arg-type]  # None is any; the type information does not know it
    try:
        there = client.describe_acls(every, request_timeout=timeout_s).result()
    except KafkaException as error:
        raise _acl_error(error) from None
    ours = {f"User:{principal.name}" for principal in principals}
    wanted = {_binding(rule): rule for rule in rules(principals)}
    found = {one for one in there if one.principal in ours}
    missing = [rule for binding, rule in wanted.items() if binding not in found]
    return missing, sorted(_line(binding) for binding in found.difference(wanted))


def create_rules(settings: KafkaSettings, missing: Iterable[Rule], timeout_s: float = 30.0) -> None:
    """Add rules; those that are there already stay as they are.

    Raises:
        BrokerUnavailable: no broker answers. AccessRefused: we may not change rules.
        UsageError: the cluster has no authorizer.
    """
    wait_for_brokers(settings, timeout_s=timeout_s)
    client = admin(settings)
    try:
        for answer in client.create_acls([_binding(rule) for rule in missing], request_timeout=timeout_s).values():
            answer.result()
    except KafkaException as error:
        raise _acl_error(error) from None


def _acl_error(error: KafkaException) -> UsageError | BrokerUnavailable:
    said = error.args[0]
    if said.code() == KafkaError.SECURITY_DISABLED:
        return UsageError(
            "the cluster has no authorizer, so everybody may do everything: set authorizer.class.name and super.users "
            "on the brokers (docs/security.md)"
        )
    return _failure(said)


def _answer(future: Future[Any], topic: str) -> Any:
    """The answer to a question about a topic.

    Raises:
        AccessRefused: no rule lets us ask. BrokerUnavailable: it did not come.
    """
    try:
        return future.result()
    except KafkaException as error:
        raise _failure(error.args[0], topic) from None


def _failure(error: KafkaError, topic: str = "") -> BrokerUnavailable:
    return refused(error, topic) if is_refusal(error) else BrokerUnavailable(no_broker(error.str()))


def _binding(rule: Rule) -> AclBinding:
    return AclBinding(
        _RESOURCES[rule.resource],
        rule.name,
        _PATTERNS[rule.pattern],
        f"User:{rule.principal}",
        "*",
        _OPERATIONS[rule.operation.lower()],
        AclPermissionType.ALLOW,
    )


def _line(binding: AclBinding) -> str:
    kind = next(name for name, kind in [*_RESOURCES.items(), ("resource", binding.restype)] if kind == binding.restype)
    pattern = " (prefix)" if binding.resource_pattern_type == ResourcePatternType.PREFIXED else ""
    words = [AclPermissionType(binding.permission_type).name, AclOperation(binding.operation).name.replace("_", "")]
    host = "" if binding.host == "*" else f" from {binding.host}"
    return f"{binding.principal} {' '.join(words).lower()} on {kind} {binding.name}{pattern}{host}"


# ---------------------------------------------------------------- looking closer


def client_versions() -> tuple[str, str]:
    """Versions of confluent-kafka and of the librdkafka within."""
    return str(confluent_kafka.__version__), str(confluent_kafka.libversion()[0])


class NoAnswer(BrokerUnavailable):
    """No broker answered; `said` is what the client tells of its attempts, each once, in its own words."""

    def __init__(self, words: str, said: Sequence[str]) -> None:
        super().__init__(no_broker(words))
        self.said = tuple(said)


class Partition(NamedTuple):
    """A partition as the brokers see it. `leader` is -1 if it has none."""

    topic: str
    number: int
    leader: int
    replicas: tuple[int, ...]
    in_sync: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """What a broker tells of its cluster.

    Attributes:
        brokers: Addresses that they advertise, by id.
        partitions: Of all topics, internal ones included.
    """

    cluster_id: str
    brokers: dict[int, tuple[str, int]]
    partitions: tuple[Partition, ...]
    took_ms: int


_REFUSED = ("handshake failed", "uthentication", "Receive failed")
"""Words of the client about what does not become better by trying again."""


def look(settings: KafkaSettings, timeout_s: float) -> Look:
    """Ask whichever broker answers first.

    Raises:
        NoAnswer: none did; with the client's own words about each attempt. SettingsError: see `admin`.
    """
    said: dict[str, None] = {}

    def hear(error: KafkaError) -> None:
        said[error.str()] = None

    client = admin(settings, hear)
    began = time.monotonic()
    while True:
        try:
            found = client.list_topics(timeout=max(0.1, min(1.0, began + timeout_s - time.monotonic())))
            break
        except KafkaException as error:
            client.poll(0)  # serves `error_cb`
            refused = any(word in text for text in said for word in _REFUSED)
            if refused or time.monotonic() - began >= timeout_s:
                raise NoAnswer(error.args[0].str(), list(said)) from None
    took_ms = int((time.monotonic() - began) * 1000)
    partitions = tuple(
        Partition(name, number, one.leader, tuple(one.replicas), tuple(one.isrs))
        for name, topic in sorted(found.topics.items())
        for number, one in sorted(topic.partitions.items())
    )
    brokers = {broker.id: (broker.host or "", broker.port) for broker in found.brokers.values()}
    return Look(found.cluster_id or "", brokers, partitions, took_ms)


def broker_settings(settings: KafkaSettings, broker: int, timeout_s: float) -> dict[str, str | None]:
    """All settings of one broker; None where it does not tell (secrets).

    Raises:
        BrokerUnavailable: it does not answer, or we may not ask.
    """
    client = admin(settings)
    (answer,) = client.describe_configs(
        [ConfigResource(ResourceType.BROKER, str(broker))], request_timeout=timeout_s
    ).values()
    try:
        return {name: entry.value for name, entry in answer.result(timeout_s).items()}
    except (KafkaException, TimeoutError) as error:
        raise BrokerUnavailable(f"broker {broker} does not tell its settings: {_words(error)}") from None


@dataclass(frozen=True, slots=True)
class Member:
    """Of a consumer group: who, from where, and what it was given."""

    client_id: str
    host: str
    places: frozenset[Place]


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group.

    Attributes:
        state: In Kafka's words, small: "stable", "empty", "dead" (there is none), "preparing_rebalancing" ...
        protocol: "classic" or "consumer" (KIP-848), "unknown" where there is no group.
        lag: Records behind the end, where something was committed.
    """

    name: str
    state: str
    protocol: str
    assignor: str
    members: tuple[Member, ...]
    lag: dict[Place, int]


def group(settings: KafkaSettings, name: str, timeout_s: float = 5.0) -> Group:
    """Members, assignment and lag of a consumer group; one that never was is "dead".

    Raises:
        BrokerUnavailable: the brokers do not tell.
    """
    client = admin(settings)  # kept until the answers are there: with the client its futures would die
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return _group(client, name, max(0.1, deadline - time.monotonic()))
        except (KafkaException, TimeoutError) as error:
            code = error.args[0].code() if isinstance(error, KafkaException) else None
            if code == KafkaError.GROUP_ID_NOT_FOUND:
                return Group(name, "dead", "unknown", "", (), {})
            if code not in _NO_COORDINATOR_YET or time.monotonic() > deadline:
                raise BrokerUnavailable(f"group {name}: {_words(error)}") from None
        time.sleep(0.2)  # the first group of a cluster waits until the topic for offsets is there


_NO_COORDINATOR_YET = (
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
)


def _group(client: AdminClient, name: str, timeout_s: float) -> Group:
    found = client.describe_consumer_groups([name], request_timeout=timeout_s)[name].result(timeout_s)
    asked = client.list_consumer_group_offsets([ConsumerGroupTopicPartitions(name)], request_timeout=timeout_s)
    committed = {
        (p.topic, p.partition): p.offset
        for p in asked[name].result(timeout_s).topic_partitions
        if p.error is None and p.offset >= 0
    }
    ends = {
        (p.topic, p.partition): answer.result(timeout_s).offset
        for p, answer in _list_offsets(client, committed, OffsetSpec.latest(), timeout_s).items()  # type: ignore[no-untyped-call]
    }
    members = tuple(
        Member(m.client_id, m.host, frozenset((p.topic, p.partition) for p in m.assignment.topic_partitions))
        for m in found.members
    )
    protocols = {ConsumerGroupType.CLASSIC: "classic", ConsumerGroupType.CONSUMER: "consumer"}
    return Group(
        name,
        found.state.name.lower(),
        protocols.get(found.type, "unknown"),
        found.partition_assignor or "",
        members,
        {place: max(0, end - committed[place]) for place, end in ends.items()},
    )


def newest_ms(settings: KafkaSettings, partitions: Mapping[str, int], timeout_s: float = 5.0) -> dict[str, int | None]:
    """When the newest record of each topic was published (CreateTime); None: the topic is empty.

    Args:
        partitions: How many each topic has.

    Raises:
        BrokerUnavailable: the brokers do not tell.
    """
    client = admin(settings)
    places = [(name, number) for name, count in partitions.items() for number in range(count)]
    found: dict[str, int | None] = dict.fromkeys(partitions)
    try:
        for place, answer in _list_offsets(client, places, OffsetSpec.max_timestamp(), timeout_s).items():  # type: ignore[no-untyped-call]
            at_ms = answer.result(timeout_s).timestamp
            if at_ms >= 0:
                found[place.topic] = max(at_ms, found[place.topic] or 0)
    except (KafkaException, TimeoutError) as error:
        raise BrokerUnavailable(f"the newest records are not known: {_words(error)}") from None
    if silent := [name for name, at_ms in found.items() if at_ms is None]:
        found |= _last_ms(settings, silent, timeout_s)
    return found


def _last_ms(settings: KafkaSettings, names: Sequence[str], timeout_s: float) -> dict[str, int]:
    """The same by reading the last record of each partition: asked for its newest time, a broker says nothing of a busy
    partition whose newest record its followers do not have yet."""
    config = reader(settings, "cluster")
    there = spans(config, names, 0, patience_s=timeout_s)
    last = [span._replace(begin=span.high - 1, end=span.high) for span in there if span.low < span.high]
    found: dict[str, int] = {}
    for record in read_spans(config, last, timeout_s):
        if record is not None:
            found[record.topic] = max(record.timestamp_ms, found.get(record.topic, 0))
    return found


def _list_offsets(client: AdminClient, places: Iterable[Place], spec: OffsetSpec, timeout_s: float) -> dict[Any, Any]:
    asked = {TopicPartition(*place): spec for place in places}
    return client.list_offsets(asked, request_timeout=timeout_s) if asked else {}


def _words(error: Exception) -> str:
    if not isinstance(error, KafkaException):
        return "no answer in time"
    said: KafkaError = error.args[0]
    return f"{said.str()} ({said.name()})"
