"""Real Apache Kafka (KRaft) from its jars: one node or several, each a JVM of its own on the loopback interface.

The demo and the tests take one node; drills take three, because killing a JVM with -9 is what a broker's crash is.
The jars are fetched once into the cache folder, by Maven.
"""

import base64
import contextlib
import fcntl
import hashlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from shared import cluster
from shared.errors import ArbiterError, BrokerUnavailable
from shared.settings import KafkaSettings, cache_dir

POM = Path(__file__).parents[2] / "deploy" / "kafka" / "pom.xml"
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"

SMALL = ("-Xms64m", "-Xmx384m", "-Xss512k", "-XX:+UseSerialGC", "-XX:ActiveProcessorCount=2")
"""Few threads and a small heap: the broker shares a laptop with everything else."""

ROOMY = ("-Xms256m", "-Xmx512m", "-XX:+UseG1GC", "-XX:ActiveProcessorCount=2")
"""As in docker-compose.yml, where latencies are measured: with the small heap its collections are most of the tail."""

JAVA_OPTIONS = (
    *("-Xshare:auto", "-Djava.awt.headless=true"),
    *("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"),
)

UP_S = 60.0
"""A cluster of three is up in some 10 s here; all nodes must be started before one is ready."""

Say = Callable[[str], None]


class Unsuitable(ArbiterError):
    """This kind of broker cannot run here; the text says why."""


def java_version() -> int:
    """Java's major version.

    Raises:
        Unsuitable: there is none, or it is older than 17.
    """
    java = shutil.which("java")
    if java is None:
        raise Unsuitable("no Java")
    text = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', text)
    if found is None or int(found[1]) < 17:
        raise Unsuitable("Java is older than 17")
    return int(found[1])


def fetch(say: Say = lambda _: None) -> Path:
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
        out = f"-DoutputDirectory={folder}/libs"
        command = [maven, "-q", "-B", "-f", str(POM), COPY, "-DincludeScope=runtime", out]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stdout + done.stderr).strip().splitlines()
            raise Unsuitable(f"Maven could not fetch Kafka's jars: {last[0] if last else 'no output'}")
        Path(folder, "libs").rename(libs)
    return libs


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [probe.getsockname()[1] for probe in probes]


def free_port() -> int:
    """A port of the loopback interface that was free a moment ago."""
    return free_ports(1)[0]


def tied_to_parent(command: list[str]) -> list[str]:
    """The command, ended by the kernel if this process dies without saying goodbye (where `setpriv` is)."""
    return ["setpriv", "--pdeathsig", "KILL", *command] if shutil.which("setpriv") else command


GROUP_TIMES_MS = {
    "group.consumer.min.session.timeout.ms": 6000,
    "group.consumer.session.timeout.ms": 10_000,
    "group.consumer.min.heartbeat.interval.ms": 1000,
    "group.consumer.heartbeat.interval.ms": 1000,
}
"""With kafka.group_protocol = "consumer" the broker decides when a member is gone: as soon as our clients do with the
classic protocol, not after its 45 s."""


class JarCluster:
    """A cluster of combined nodes (broker and controller), numbered from 1; stopped at the end of the block.

    Args:
        libs: Folder of the jars; see `fetch`.
        root: An empty folder for settings, data and logs.
        nodes: How many.
        quick: Fastest start instead of the best throughput (tests).
        java: Options of the heap and its collector.
        host: Address that clients and nodes use.
        data: Node -> folder of its data, where it is not below `root`.
        extra: Kafka properties of every node, which win over ours (`{port}` in a value is the node's client port,
            `{controller}` its controller port).
        format_arguments: For `kafka-storage format`, such as `--add-scram`.
        options: librdkafka's options that clients need, such as those for SASL.

    Raises:
        Unsuitable: (format, up) Kafka did not start; its last line says why.
    """

    def __init__(
        self,
        libs: Path,
        root: Path,
        nodes: int = 1,
        *,
        quick: bool = False,
        java: Sequence[str] = SMALL,
        host: str = "127.0.0.1",
        data: Mapping[int, Path] | None = None,
        extra: Mapping[str, str] | None = None,
        format_arguments: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._root = root
        self._host = host
        self._data = dict(data or {})
        self._extra = dict(extra or {})
        self._format_arguments = tuple(format_arguments)
        self._java = ["java", *java, *JAVA_OPTIONS, *(["-XX:TieredStopAtLevel=1"] if quick else []), "-cp", f"{libs}/*"]
        self._cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._paused: set[int] = set()
        self.nodes = tuple(range(1, nodes + 1))
        ports = free_ports(2 * nodes, host)
        self._ports = dict(zip(self.nodes, ports[:nodes], strict=True))
        self._controllers = dict(zip(self.nodes, ports[nodes:], strict=True))
        servers = ",".join(f"{host}:{port}" for port in self._ports.values())
        self.kafka = KafkaSettings(servers=servers, options=dict(options or {}))

    def __enter__(self) -> "JarCluster":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def up(self, timeout_s: float = UP_S) -> None:
        """Format, start every node, and wait until all of them are ready."""
        self.format()
        for node in self.nodes:
            self.start(node)
        self.wait(timeout_s=timeout_s)

    def format(self, nodes: Iterable[int] | None = None) -> None:
        """Prepare the data folders of the nodes (None: all)."""
        for node in nodes or self.nodes:
            self._conf(node).write_text(self._properties(node))
            words = [f"--cluster-id={self._cluster_id}", f"--config={self._conf(node)}", *self._format_arguments]
            with self.log(node).open("ab") as log:
                command = [*self._java, "kafka.tools.StorageTool", "format", *words]
                done = subprocess.run(command, stdout=log, stderr=log, check=False, timeout=120)
            if done.returncode != 0:
                raise Unsuitable(f"Kafka could not format its storage: {_tail(self.log(node))}")

    def start(self, node: int) -> None:
        """Start a node that is not running; `wait` tells when it is ready."""
        with self.log(node).open("ab") as log:
            # Its own session: Ctrl-C in the terminal must reach the services first and the broker last.
            self._processes[node] = subprocess.Popen(
                tied_to_parent([*self._java, "kafka.Kafka", str(self._conf(node))]),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, count: int | None = None, timeout_s: float = UP_S) -> None:
        """Wait until `count` nodes (None: those that were started) are in the cluster."""
        deadline = time.monotonic() + timeout_s
        while True:
            dead = [node for node, process in self._processes.items() if process.poll() is not None]
            if dead:
                raise Unsuitable(f"Kafka did not come up: {_tail(self.log(dead[0]))}")
            try:
                cluster.wait_for_brokers(self.kafka, count or len(self._processes), timeout_s=1.0)
                return
            except BrokerUnavailable:
                if time.monotonic() > deadline:
                    raise Unsuitable(f"Kafka did not come up: {_tail(self.log(self.nodes[0]))}") from None

    def running(self) -> tuple[int, ...]:
        """The nodes whose process is there, paused ones included."""
        return tuple(node for node, process in sorted(self._processes.items()) if process.poll() is None)

    def pid(self, node: int) -> int:
        return self._processes[node].pid

    def log(self, node: int) -> Path:
        """What the node prints."""
        return self._root / f"kafka-{node}.log"

    def kill(self, node: int) -> None:
        """End a node as a crash does (SIGKILL)."""
        process = self._processes.pop(node)
        self._paused.discard(node)
        process.kill()
        process.wait()

    def pause(self, node: int) -> None:
        """Let a node hang: it holds its connections and does nothing (SIGSTOP)."""
        self._processes[node].send_signal(signal.SIGSTOP)
        self._paused.add(node)

    def resume(self, node: int) -> None:
        self._processes[node].send_signal(signal.SIGCONT)
        self._paused.discard(node)

    def stop(self) -> None:
        """End all that run: by SIGTERM, and by SIGKILL what does not listen."""
        for node in tuple(self._paused):
            self.resume(node)
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 15
        for process in self._processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def _conf(self, node: int) -> Path:
        return self._root / f"server-{node}.properties"

    def _properties(self, node: int) -> str:
        count = len(self.nodes)
        copies, in_sync = str(min(3, count)), str(max(1, min(3, count) - 1))
        host, port, controller = self._host, self._ports[node], self._controllers[node]
        values = {
            "process.roles": "broker,controller",
            "node.id": str(node),
            "controller.quorum.voters": ",".join(f"{n}@{host}:{p}" for n, p in self._controllers.items()),
            "listeners": f"PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller}",
            "advertised.listeners": f"PLAINTEXT://{host}:{port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self._data.get(node, self._root / f"data-{node}")),
            "auto.create.topics.enable": "false",
            "default.replication.factor": copies,
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": "3",
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": in_sync,
            "transaction.state.log.num.partitions": "3",
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": in_sync,
            "share.coordinator.state.topic.num.partitions": "3",
            "group.initial.rebalance.delay.ms": "0",
            **{name: str(value) for name, value in GROUP_TIMES_MS.items()},
            "num.network.threads": "2",
            "num.io.threads": "2",
            "background.threads": "2",
            "log.cleaner.threads": "1",
            "log.cleaner.dedupe.buffer.size": "4194304",
            "log.retention.check.interval.ms": "10000",
        }
        if count > 1:  # the controller notices a dead broker after 9 s by default
            values |= {"broker.heartbeat.interval.ms": "500", "broker.session.timeout.ms": "3000"}
        for name, value in self._extra.items():
            values[name] = value.replace("{port}", str(port)).replace("{controller}", str(controller))
        return "".join(f"{name}={value}\n" for name, value in values.items())


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "no output"
