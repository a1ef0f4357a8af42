"""A Kafka broker for the demo and the tests: what this machine can run best, and why that one.

In order: the cluster named by ARB_KAFKA_SERVERS; real Apache Kafka (KRaft, one node) from its jars, where Java 17
and Maven are; the official image, where Docker runs; librdkafka's built-in mock, which is no real broker and is
announced as such. The jars are fetched once into the cache folder.
"""

import base64
import contextlib
import ctypes
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from services.cli import jars
from services.cli.jars import GROUP_TIMES_MS, Unsuitable, free_port
from shared import cluster
from shared.errors import DependencyMissing, SettingsError
from shared.settings import KafkaSettings
from shared.topics import TOPICS

KINDS = ("external", "jars", "docker", "mock")
Kind = Literal["external", "jars", "docker", "mock"]
IMAGE = "apache/kafka:4.3.1"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Broker:
    """A running broker.

    Attributes:
        kind: Which of the four it is.
        why: Why this one was taken, in words for the user.
        kafka: How clients reach it.
        pid: Process id of the broker's JVM, where it is ours.
        topics_by_admin: Whether topics can be created by Kafka's admin protocol (the mock has its own way).
    """

    kind: Kind
    why: str
    kafka: KafkaSettings
    pid: int | None = None
    topics_by_admin: bool = True
    refused: tuple[str, ...] = field(default=())


@contextlib.contextmanager
def start_broker(
    kind: str | None = None, say: Say = lambda _: None, *, quick: bool = False, java: Sequence[str] = jars.SMALL
) -> Iterator[Broker]:
    """A broker with all topics of `shared/topics.py`, stopped at the end of the block.

    Args:
        kind: One of `KINDS` to force it; None takes the first that works.
        say: Called with a line for each step that takes time.
        quick: Fastest start instead of the best throughput (tests).
        java: Heap and collector of a broker from its jars.

    Raises:
        SettingsError: unknown kind.
        DependencyMissing: the forced kind cannot run here; says why.
        BrokerUnavailable: ARB_KAFKA_SERVERS is set, but nothing answers there.
    """
    if kind is not None and kind not in KINDS:
        raise SettingsError(f"unknown kind of broker {kind!r}; there are {', '.join(KINDS)}")
    servers = os.environ.get("ARB_KAFKA_SERVERS")
    wanted: tuple[str, ...] = (kind,) if kind else ("external",) if servers else KINDS[1:]
    refused: list[str] = []
    with contextlib.ExitStack() as stack:
        for name in wanted:
            try:
                broker = stack.enter_context(_start(name, say, quick, java, tuple(refused)))
                break
            except Unsuitable as reason:
                refused.append(f"{name}: {reason}")
        else:
            raise DependencyMissing(f"no broker can run here ({'; '.join(refused)}); name one with ARB_KAFKA_SERVERS")
        if broker.topics_by_admin:
            for change in cluster.apply_topics(broker.kafka):
                if broker.kind == "external":
                    say(change)
        yield broker


def _start(
    kind: str, say: Say, quick: bool, java: Sequence[str], refused: tuple[str, ...]
) -> contextlib.AbstractContextManager[Broker]:
    if kind == "external":
        return _external()
    if kind == "jars":
        return _jars(say, quick, java)
    if kind == "docker":
        return _docker(say, refused)
    return _mock(refused)


# ---------------------------------------------------------------- a cluster of the user's


@contextlib.contextmanager
def _external() -> Iterator[Broker]:
    servers = os.environ.get("ARB_KAFKA_SERVERS")
    if not servers:
        raise Unsuitable("ARB_KAFKA_SERVERS is not set")
    kafka = KafkaSettings(servers=servers)
    cluster.wait_for_brokers(kafka)
    yield Broker("external", "ARB_KAFKA_SERVERS is set", kafka)


# ---------------------------------------------------------------- Apache Kafka from its jars


@contextlib.contextmanager
def _jars(say: Say, quick: bool, java: Sequence[str]) -> Iterator[Broker]:
    version = jars.java_version()
    libs = jars.fetch(say)
    with tempfile.TemporaryDirectory(prefix="arb-kafka-") as folder:
        with jars.JarCluster(libs, Path(folder), quick=quick, java=java) as running:
            running.up()
            why = f"real Apache Kafka 4.3.1 from its jars, on Java {version}"
            yield Broker("jars", why, running.kafka, pid=running.pid(1))


# ---------------------------------------------------------------- the official image


@contextlib.contextmanager
def _docker(say: Say, refused: tuple[str, ...]) -> Iterator[Broker]:
    if shutil.which("docker") is None:
        raise Unsuitable("no Docker")
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        raise Unsuitable("no Docker engine is running")
    try:
        from testcontainers.core.config import testcontainers_config  # only where they are used: heavy imports
        from testcontainers.core.container import DockerContainer
    except ImportError:
        raise Unsuitable("the package testcontainers is not installed") from None
    testcontainers_config.ryuk_disabled = True  # we stop it ourselves: one image less to pull
    port = free_port()
    # With variables the image merges nothing from its default file: every required setting is here.
    environment = {
        "CLUSTER_ID": base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("="),
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_LISTENERS": "EXTERNAL://:9092,CONTROLLER://:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"EXTERNAL://127.0.0.1:{port}",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "EXTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_INTER_BROKER_LISTENER_NAME": "EXTERNAL",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        **{f"KAFKA_{name.replace('.', '_').upper()}": str(value) for name, value in GROUP_TIMES_MS.items()},
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_HEAP_OPTS": "-Xms64m -Xmx384m",
    }
    container = DockerContainer(IMAGE)
    # with_bind_ports would listen on every interface; the address is passed on to Docker as it stands
    container.ports["9092/tcp"] = ("127.0.0.1", port)  # type: ignore[assignment]
    for name, value in environment.items():
        container = container.with_env(name, value)
    say(f"starting {IMAGE} in Docker")
    try:
        container.start()
    except Exception as error:  # docker and testcontainers raise a dozen unrelated classes
        raise Unsuitable(f"Docker could not start {IMAGE}: {error}") from None
    try:
        kafka = KafkaSettings(servers=f"127.0.0.1:{port}")
        cluster.wait_for_brokers(kafka, timeout_s=90)
        yield Broker("docker", f"{IMAGE} in Docker ({'; '.join(refused) or 'forced'})", kafka, refused=refused)
    finally:
        container.stop()


# ---------------------------------------------------------------- librdkafka's mock


@contextlib.contextmanager
def _mock(refused: tuple[str, ...]) -> Iterator[Broker]:
    """librdkafka's mock cluster, in this process, by the control functions that the client's library exports.

    It keeps 5 MiB per partition in memory, knows no replication or transactions, and its latency is the
    reader's `fetch.wait.max.ms`: hence the option. Its C interface is not a stable one: a test holds it.
    """
    import confluent_kafka.cimpl as cimpl  # its file is librdkafka: the one place that needs it

    library = ctypes.CDLL(cimpl.__file__)
    pointer = ctypes.c_void_p
    library.rd_kafka_conf_new.restype = pointer
    library.rd_kafka_new.restype = pointer
    library.rd_kafka_new.argtypes = [ctypes.c_int, pointer, ctypes.c_char_p, ctypes.c_size_t]
    library.rd_kafka_destroy.argtypes = [pointer]
    library.rd_kafka_mock_cluster_new.restype = pointer
    library.rd_kafka_mock_cluster_new.argtypes = [pointer, ctypes.c_int]
    library.rd_kafka_mock_cluster_destroy.argtypes = [pointer]
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    library.rd_kafka_mock_cluster_bootstraps.argtypes = [pointer]
    library.rd_kafka_mock_topic_create.argtypes = [pointer, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
    library.rd_kafka_mock_group_initial_rebalance_delay_ms.argtypes = [pointer, ctypes.c_int32]
    library.rd_kafka_conf_set.argtypes = [pointer, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
    words = ctypes.create_string_buffer(512)
    conf = library.rd_kafka_conf_new()
    library.rd_kafka_conf_set(conf, b"log_level", b"2", words, 512)  # it would warn that it has no servers
    client = library.rd_kafka_new(0, conf, words, 512)
    if not client:
        raise Unsuitable(f"librdkafka's mock: {words.value.decode()}")
    mock = library.rd_kafka_mock_cluster_new(client, 1)
    try:
        library.rd_kafka_mock_group_initial_rebalance_delay_ms(mock, 0)
        for topic in TOPICS:
            library.rd_kafka_mock_topic_create(mock, topic.name.encode(), topic.partitions, 1)
        servers = library.rd_kafka_mock_cluster_bootstraps(mock).decode()
        kafka = KafkaSettings(servers=servers, options={"fetch.wait.max.ms": 5})
        why = f"librdkafka's mock, NOT a real Kafka: nothing is kept ({'; '.join(refused) or 'forced'})"
        yield Broker("mock", why, kafka, topics_by_admin=False, refused=refused)
    finally:
        library.rd_kafka_mock_cluster_destroy(mock)
        library.rd_kafka_destroy(client)
