"""A Kafka broker for the demo and the tests: what this machine can run best, and why that one.

In order: the cluster named by ARB_KAFKA_SERVERS; real Apache Kafka (KRaft, one node) from its jars, where Java 17
and Maven are; the official image, where Docker runs; librdkafka's built-in mock, which is no real broker and is
announced as such. The jars are fetched once into the cache folder.
"""

import base64
import contextlib
import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared import cluster
from shared.errors import ArbiterError, BrokerUnavailable, DependencyMissing, SettingsError
from shared.settings import KafkaSettings, cache_dir
from shared.topics import TOPICS

KINDS = ("external", "jars", "docker", "mock")
Kind = Literal["external", "jars", "docker", "mock"]
IMAGE = "apache/kafka:4.3.1"
POM = Path(__file__).parents[2] / "deploy" / "kafka" / "pom.xml"
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"

# Few threads and a small heap: the broker shares a laptop with everything else.
JAVA_OPTIONS = (
    *("-Xms64m", "-Xmx384m", "-Xss512k", "-XX:+UseSerialGC", "-XX:ActiveProcessorCount=2"),
    *("-Xshare:auto", "-Djava.awt.headless=true"),
    *("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"),
)

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


class Unsuitable(ArbiterError):
    """This kind of broker cannot run here; the text says why."""


@contextlib.contextmanager
def start_broker(kind: str | None = None, say: Say = lambda _: None, *, quick: bool = False) -> Iterator[Broker]:
    """A broker with all topics of `shared/topics.py`, stopped at the end of the block.

    Args:
        kind: One of `KINDS` to force it; None takes the first that works.
        say: Called with a line for each step that takes time.
        quick: Fastest start instead of the best throughput (tests).

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
                broker = stack.enter_context(_start(name, say, quick, tuple(refused)))
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


def _start(kind: str, say: Say, quick: bool, refused: tuple[str, ...]) -> contextlib.AbstractContextManager[Broker]:
    if kind == "external":
        return _external()
    if kind == "jars":
        return _jars(say, quick)
    if kind == "docker":
        return _docker(say, refused)
    return _mock(refused)


def free_port() -> int:
    """A port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def tied_to_parent(command: list[str]) -> list[str]:
    """The command, ended by the kernel if this process dies without saying goodbye (where `setpriv` is)."""
    return ["setpriv", "--pdeathsig", "KILL", *command] if shutil.which("setpriv") else command


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


def _java_version() -> int:
    java = shutil.which("java")
    if java is None:
        raise Unsuitable("no Java")
    text = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', text)
    if found is None or int(found[1]) < 17:
        raise Unsuitable("Java is older than 17")
    return int(found[1])


def fetch_jars(say: Say) -> Path:
    """Folder of Kafka's jars, fetched by Maven if it is not in the cache yet.

    Raises:
        Unsuitable: no Maven, no pom.xml (not a checkout), or Maven could not fetch them.
    """
    if not POM.exists():
        raise Unsuitable("deploy/kafka/pom.xml is not here (not a checkout)")
    pinned = hashlib.sha256(POM.read_bytes()).hexdigest()[:12]
    libs = cache_dir() / f"kafka-{pinned}"
    if libs.is_dir():
        return libs
    maven = shutil.which("mvn")
    if maven is None:
        raise Unsuitable("no Maven to fetch Kafka's jars")
    libs.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(libs.with_suffix(".lock"), "w") as lock,
        tempfile.TemporaryDirectory(dir=libs.parent, prefix="fetching-") as folder,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)  # Maven's own cache does not bear two that fetch the same
        if libs.is_dir():
            return libs
        say("fetching Apache Kafka's jars into the cache (44 MB, once, about a minute)")
        command = [
            maven,
            "-q",
            "-B",
            "-f",
            str(POM),
            COPY,
            "-DincludeScope=runtime",
            f"-DoutputDirectory={folder}/libs",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stdout + done.stderr).strip().splitlines()
            raise Unsuitable(f"Maven could not fetch Kafka's jars: {last[0] if last else 'no output'}")
        Path(folder, "libs").rename(libs)
    return libs


GROUP_TIMES_MS = {
    "group.consumer.min.session.timeout.ms": 6000,
    "group.consumer.session.timeout.ms": 10_000,
    "group.consumer.min.heartbeat.interval.ms": 1000,
    "group.consumer.heartbeat.interval.ms": 1000,
}
"""With kafka.group_protocol = "consumer" the broker decides when a member is gone: as soon as our clients do with the
classic protocol, not after its 45 s."""


def _group_properties() -> str:
    return "\n".join(f"{name}={value}" for name, value in GROUP_TIMES_MS.items())


def _properties(port: int, controller_port: int, data: Path) -> str:
    return f"""process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=3
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=3
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=3
group.initial.rebalance.delay.ms=0
{_group_properties()}
num.network.threads=2
num.io.threads=2
background.threads=2
log.cleaner.threads=1
log.cleaner.dedupe.buffer.size=4194304
log.retention.check.interval.ms=10000
"""


@contextlib.contextmanager
def _jars(say: Say, quick: bool) -> Iterator[Broker]:
    version = _java_version()
    libs = fetch_jars(say)
    java = ["java", *JAVA_OPTIONS, *(["-XX:TieredStopAtLevel=1"] if quick else []), "-cp", f"{libs}/*"]
    with tempfile.TemporaryDirectory(prefix="arb-kafka-") as folder, contextlib.ExitStack() as stack:
        root = Path(folder)
        port, controller_port = free_port(), free_port()
        conf = root / "server.properties"
        conf.write_text(_properties(port, controller_port, root / "data"))
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        log = stack.enter_context((root / "kafka.log").open("ab"))
        format_it = [*java, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", f"--config={conf}"]
        done = subprocess.run(format_it, stdout=log, stderr=log, check=False, timeout=120)
        if done.returncode != 0:
            raise Unsuitable(f"Kafka could not format its storage: {_tail(root / 'kafka.log')}")
        # Its own session: Ctrl-C in the terminal must reach the services first and the broker last.
        process = subprocess.Popen(
            tied_to_parent([*java, "kafka.Kafka", str(conf)]), stdout=log, stderr=log, start_new_session=True
        )
        stack.callback(_stop, process)
        kafka = KafkaSettings(servers=f"127.0.0.1:{port}")
        try:
            cluster.wait_for_brokers(kafka, timeout_s=60)
        except BrokerUnavailable:
            raise Unsuitable(f"Kafka did not come up: {_tail(root / 'kafka.log')}") from None
        why = f"real Apache Kafka 4.3.1 from its jars, on Java {version}"
        yield Broker("jars", why, kafka, pid=process.pid)


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


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
