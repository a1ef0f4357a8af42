"""Three brokers, the real services, a simulated market; and the orchestrator that starts again what ends."""

import contextlib
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson
from confluent_kafka import Consumer, ConsumerGroupState, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from services.cli import demo
from services.cli.jars import JarCluster
from shared import cluster as brokers
from shared import kafka, settings, topics
from shared.errors import ArbiterError, DependencyMissing
from shared.settings import PREFIX
from tools.chaos.ledger import Window
from tools.chaos.watch import Watch

COINS = ("BTC", "ETH", "SOL", "XRP", "ADA", "DOGE", "LTC", "DOT", "LINK", "AVAX")
RATES = {"kraken": ("USDT-USD", "USDC-USD"), "coinbase": ("USDT-USD",)}
EXCHANGES = ("binance", "kraken", "okx")
GROUPS = ("detector", "decider")
KILLED = "killed"
STEP_S = 0.1
"""Between two looks at everything."""

ACCOUNTED = (topics.OPPORTUNITIES, topics.OUTCOMES, topics.DECISIONS)
DEAD = (topics.TICKS_DLQ, topics.dlq(topics.FX_RATES), topics.dlq(topics.OPPORTUNITIES))

START_S = 240.0
"""For brokers and then for services: generous, as the machine may have other work to do."""

STEADY_S = 120.0
"""Within this time after a fault has ended everything must be as before."""

DRAIN_S = 90.0
AGAIN_S = (0.5, 5.0)
"""How long the orchestrator waits before it starts what has ended: first, and at most."""


PATIENT = {
    "broker.session.timeout.ms": "9000",  # as Kafka has it by default; JarCluster has 3 s
    "controller.quorum.fetch.timeout.ms": "6000",
    "controller.quorum.election.timeout.ms": "3000",
    "controller.quorum.request.timeout.ms": "6000",
}
"""For a machine with other work to do: else brokers that only wait for a processor are given up, again and again."""

PATIENCE = 3.0
"""How many times longer everything may take then."""

Tell = Callable[[str, str], None]
"""Told about every second: what is being done, and how things stand."""


class Late(ArbiterError):
    """Something did not come within its time; the text says what was missing."""


@dataclass(frozen=True)
class Plan:
    """What a scenario needs.

    Attributes:
        settings: TOML of the services' settings file, after ours.
        prefixes: By service: a command to run it by.
        market_host: Where the simulator listens; None: the loopback interface.
        broker_host: Where the brokers listen.
        data: Folder of a broker's data, where it is a special one.
    """

    nodes: int = 3
    detectors: int = 2
    deciders: int = 2
    rate: float = 2.0
    pace: float = 6.0
    settings: str = ""
    prefixes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    market_host: str | None = None
    broker_host: str = "127.0.0.1"
    data: Mapping[int, Path] = field(default_factory=dict)


@dataclass
class Member:
    """One service, through all its processes.

    Attributes:
        ends: How each process ended: "killed" by us, else its exit code.
        own_ends: Those that we did not bring about: exit code and last words.
        peak_kib: The most memory that one of them had (VmHWM).
    """

    name: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    ends: list[str] = field(default_factory=list)
    own_ends: list[tuple[str, str]] = field(default_factory=list)
    peak_kib: int = 0
    killed: bool = False
    again_at: float = 0.0
    wait_s: float = AGAIN_S[0]

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass
class Recovery:
    """One fault and what came of it. Times in seconds.

    Attributes:
        flowing_s: From its beginning until an opportunity that opened after it was decided; None: none was.
        steady_s: From its end until everything was as before.
        gap_s: The longest time without any decision, from its beginning until everything was as before.
        wait_s: The longest time from an opening to its decision.
    """

    what: str
    began_ns: int
    lasted_s: float = 0.0
    flowing_s: float | None = None
    steady_s: float = 0.0
    gap_s: float = 0.0
    wait_s: float = 0.0


class Fault:
    """A fault under way; see `Stage.fault`."""

    def __init__(self, stage: "Stage", what: str) -> None:
        self._stage = stage
        self.began, self.began_ns = time.monotonic(), time.time_ns()
        self.recovery = Recovery(what, self.began_ns)
        self.lifted_at: float | None = None

    def until_flowing(self, timeout_s: float = STEADY_S) -> None:
        """Wait until what opened after the beginning is decided, while the fault lasts."""
        self._stage.wait(
            lambda: [] if self._stage.watch.decided_since(self.began_ns) else ["no new opportunity is decided"],
            timeout_s,
        )

    def lifted(self) -> None:
        """What was broken is whole again; from here on the recovery is timed."""
        self.lifted_at = time.monotonic()


class Stage:
    """Everything of one scenario; nothing of it is left at the end of the block.

    Args:
        libs: Kafka's jars.
        folder: For logs and data; data is removed at the end.
        tell: See `Tell`.
        patient: See `PATIENT`.
    """

    def __init__(self, plan: Plan, libs: Path, folder: Path, seed: int, tell: Tell, *, patient: bool = False) -> None:
        self.plan = plan
        self.folder = folder
        self.seed = seed
        self.windows: list[Window] = []
        self.recoveries: list[Recovery] = []
        self.doing = "starting"
        self.since_ns = self.until_ns = 0
        self.members: dict[str, Member] = {}
        self.brokers_kib: Counter[str] = Counter()
        self.problems: list[str] = []
        self.notes: dict[str, object] = {}
        self.musts: list[tuple[str, int]] = []
        self.patience = PATIENCE if patient else 1.0
        self._joined: dict[str, set[str]] = {group: set() for group in GROUPS}
        self._started: dict[str, set[str]] = {group: set() for group in GROUPS}
        self._tell = tell
        self._missing = ""
        self._told = self._measured = 0.0
        self._began = time.monotonic()
        self._stack = contextlib.ExitStack()
        (folder / "brokers").mkdir(parents=True, exist_ok=True)
        self.cluster = JarCluster(
            libs,
            folder / "brokers",
            plan.nodes,
            quick=True,
            host=plan.broker_host,
            data=plan.data,
            extra=PATIENT if patient else None,
        )
        self.settings = self._settings()
        self._services = demo.Services(self._environment(), folder)
        self._truth = folder / "truth.jsonl"

    def __enter__(self) -> "Stage":
        self._stack.callback(self.cluster.stop)
        self._stack.callback(self._end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it behind
        try:
            self._stack.close()
        finally:
            signal.signal(signal.SIGINT, before)

    def _end(self) -> None:
        for member in self.members.values():
            if member.is_running():
                assert member.process is not None
                member.process.send_signal(signal.SIGCONT)
        self.problems += self._services.stop()

    def _settings(self) -> settings.Settings:
        lines = ["[kafka]", f'servers = "{self.cluster.kafka.servers}"']
        for name in topics.EXCHANGES:
            quote = "USD" if name in ("coinbase", "kraken") else "USDT"
            symbols = [*(f"{coin}-{quote}" for coin in COINS), *RATES.get(name, ())]
            lines += [f"[exchanges.{name}]", f"enabled = {str(name in EXCHANGES).lower()}", f"symbols = {symbols}"]
        file = self.folder / "arb.toml"
        file.write_text("\n".join([*lines, self.plan.settings, ""]))
        return settings.load(file)

    def _environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        return {**clean, "ARB_CONFIG": str(self.folder / "arb.toml"), f"{PREFIX}METRICS_PORT": "0"}

    # ------------------------------------------------ start and end

    def up(self) -> None:
        """Brokers, topics, market, services; until everything is steady.

        Raises:
            Late, BrokerUnavailable: not within its time. Unsuitable: no Kafka can run here.
        """
        self.cluster.up(START_S * self.patience)
        brokers.apply_topics(self.cluster.kafka, brokers=self.plan.nodes, timeout_s=START_S * self.patience)
        self._admin: AdminClient = brokers.admin(self.cluster.kafka)
        self.watch = Watch(self.cluster.kafka)
        self._stack.callback(self.watch.close)
        words = ["--seed", str(self.seed), "--rate", f"{self.plan.rate:g}", "--pace", f"{self.plan.pace:g}"]
        if self.plan.market_host is not None:
            words += ["--host", self.plan.market_host]
        market = self._services.start("simulator", "simulate", *words, "--truth", str(self._truth))
        assert market.stdout is not None
        said = market.stdout.readline()
        if not said:
            market.wait(5)
            raise DependencyMissing("; ".join(self._services.failed()))
        self._market: subprocess.Popen[bytes] | None = market
        environment = demo.simulated(orjson.loads(said), self.settings, self.folder)
        for number in range(1, self.plan.detectors + 1):
            self._add(f"detector-{number}", ("detect",), {})
        for number in range(1, self.plan.deciders + 1):
            state = {f"{PREFIX}DECIDER_STATE_FILE": str(self.folder / f"decider-{number}.sqlite")}
            self._add(f"decider-{number}", ("decide",), environment | state)
        for name in EXCHANGES:
            self._add(f"collector-{name}", ("collect", name), environment)
        self.until_steady(time.time_ns(), START_S)
        self.since_ns = time.time_ns()

    def _add(self, name: str, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
        member = self.members[name] = Member(name, arguments, environment)
        self._start(member)

    def _start(self, member: Member) -> None:
        prefix = self.plan.prefixes.get(member.name, ())
        member.process = self._services.start(
            member.name, *member.arguments, environment=member.environment, prefix=prefix
        )
        kind, _, which = member.name.partition("-")
        if kind == "collector":
            self.watch.forget(which)
        elif kind in GROUPS:
            self._started[kind].add(member.name)

    def finish(self) -> list[kafka.Record]:
        """Stop in the order of the data, each stage after all of the one before is dealt with; all that was published.

        Raises:
            BrokerUnavailable: it cannot be read.
        """
        self.doing = "ending"
        self.until_ns = time.time_ns()
        self._market = None
        self._stop("simulator", *(name for name in self.members if name.startswith("collector-")))
        self._drain("detector")
        self._stop(*(name for name in self.members if name.startswith("detector-")))
        self._drain("decider")
        self._stop(*(name for name in self.members if name.startswith("decider-")))
        config = kafka.reader(self.cluster.kafka, "chaos")
        return kafka.read_range(config, (*ACCOUNTED, *DEAD), 0, 120.0 * self.patience)

    def _drain(self, group: str) -> None:
        """What is not dealt with in time is a problem, and the rest still counts."""
        try:
            self.wait(lambda: self._lag(group), DRAIN_S)
        except Late as late:
            self.problems.append(str(late))

    def _stop(self, *names: str) -> None:
        self._measure()
        self.problems += self._services.stop(*names)
        for name in names:
            if (member := self.members.get(name)) is None:
                continue
            member.again_at = float("inf")  # also of one that is down now: it must not come back
            if member.process is not None:
                member.ends.append(str(member.process.returncode))
                member.process = None

    def truth(self) -> list[dict[str, Any]]:
        """The simulator's log; whole once it has stopped."""
        return [orjson.loads(line) for line in self._truth.read_bytes().splitlines() if line.strip()]

    # ------------------------------------------------ time

    def pump(self) -> None:
        """Everything that must go on while a scenario waits; about ten times a second.

        Raises:
            BrokerUnavailable, TopicMismatch: the watch cannot go on. DependencyMissing: the market has ended.
        """
        now = time.monotonic()
        for member in self.members.values():
            self._keep(member, now)
        self.watch.check()
        if self._market is not None and self._market.poll() is not None:
            raise DependencyMissing("; ".join(self._services.failed()))
        if now - self._measured > 1.0:
            self._measured = now
            self._measure()
        if now - self._told > 1.0:
            self._told = now
            ticks, opened, waiting = self.watch.counts()
            running = sum(member.is_running() for member in self.members.values())
            self._tell(
                self.doing,
                f"{now - self._began:.0f} s, brokers {len(self.cluster.running())} of {self.plan.nodes}, "
                f"services {running} of {len(self.members)}, ticks {ticks}, opportunities {opened}, undecided {waiting}"
                + (f"; waiting: {self._missing}" if self._missing else ""),
            )

    def _keep(self, member: Member, now: float) -> None:
        """As an orchestrator does: what has ended is started again, ever later if it ends at once."""
        if member.process is not None and member.process.poll() is not None:
            member.ends.append(KILLED if member.killed else str(member.process.returncode))
            if not member.killed:
                member.own_ends.append((member.ends[-1], self._services.last_words(member.name)))
            self._services.stop(member.name)
            member.process, member.again_at = None, now + member.wait_s
            member.wait_s = min(2 * member.wait_s, AGAIN_S[1])
        elif member.process is None and now >= member.again_at:
            member.killed = False
            self._start(member)

    def _measure(self) -> None:
        for member in self.members.values():
            if member.is_running():
                assert member.process is not None
                member.peak_kib = max(member.peak_kib, _peak_kib(member.process.pid))
        for node in self.cluster.running():
            name = f"kafka-{node}"
            self.brokers_kib[name] = max(self.brokers_kib[name], _peak_kib(self.cluster.pid(node)))

    def hold(self, seconds: float) -> None:
        """Let time pass: the length of an outage."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.pump()
            time.sleep(STEP_S)

    def wait(self, missing: Callable[[], Sequence[str]], timeout_s: float) -> None:
        """Until nothing is missing.

        Raises:
            Late: not within `timeout_s`; says what was missing.
        """
        timeout_s *= self.patience
        end = time.monotonic() + timeout_s
        while words := missing():
            self._missing = "; ".join(words)
            if time.monotonic() > end:
                raise Late(f"{self.doing}: within {timeout_s:g} s not all came: {self._missing}")
            self.pump()
            time.sleep(STEP_S)
        self._missing = ""

    # ------------------------------------------------ conditions

    def until_steady(self, since_ns: int, timeout_s: float = STEADY_S) -> None:
        """All brokers, copies, services, members and books are there, and something opened after `since_ns` is decided.

        Raises:
            Late: not within `timeout_s`.
        """
        self.wait(lambda: self._unsteady(since_ns), timeout_s)
        for member in self.members.values():
            member.wait_s = AGAIN_S[0]
        for group in GROUPS:
            self._joined[group] = self._members(group) or self._joined[group]
            self._started[group].clear()

    def until_decided(self, count: int, timeout_s: float = 60.0) -> None:
        """So many more opportunities are opened and decided."""
        since_ns = time.time_ns()

        def missing() -> list[str]:
            done = self.watch.decided_since(since_ns)
            return [] if done >= count else [f"{done} of {count} new opportunities are decided"]

        self.wait(missing, timeout_s)

    def _unsteady(self, since_ns: int) -> list[str]:
        """What is missing, the cheap questions first."""
        if down := [member.name for member in self.members.values() if not member.is_running()]:
            return [f"not running: {', '.join(down)}"]
        books = sum(len(self.settings.exchanges[name].symbols) for name in EXCHANGES)
        if (live := self.watch.live()) < books:
            return [f"{live} of {books} books are live"]
        if missing := self._uncopied():
            return missing
        wanted = {"detector": self.plan.detectors, "decider": self.plan.deciders}
        for group, count in wanted.items():
            if (found := self._members(group)) is None:
                return [f"group {group} is not stable"]
            # A killed member stays one until its session ends: what was started since must be there under new ids.
            new = len(found - self._joined[group])
            if len(found) != count or new < len(self._started[group]):
                return [
                    f"group {group}: {len(found)} of {count} members, {new} of {len(self._started[group])} new ones"
                ]
        return [] if self.watch.decided_since(since_ns) else ["no new opportunity is decided"]

    def _uncopied(self) -> list[str]:
        """Brokers that are away, and partitions that are not on all their brokers."""
        try:
            known = self._admin.list_topics(timeout=2.0)
        except KafkaException as error:
            return [f"brokers: {error.args[0].str()}"]
        if len(known.brokers) < self.plan.nodes:
            return [f"{len(known.brokers)} of {self.plan.nodes} brokers"]
        short = sum(
            len(one.isrs) < len(one.replicas) for topic in known.topics.values() for one in topic.partitions.values()
        )
        return [f"{short} partitions lack copies"] if short else []

    def _renew(self) -> None:
        """A client that is asked again and again keeps to a coordinator that is none any more (seen: for minutes)."""
        self._admin = brokers.admin(self.cluster.kafka)

    def _members(self, group: str) -> set[str] | None:
        """Ids of a group's members; None: it is not stable."""
        try:
            found = self._admin.describe_consumer_groups([group], request_timeout=5.0)[group].result(5.0)
        except (KafkaException, TimeoutError):
            self._renew()
            return None
        return {one.member_id for one in found.members} if found.state == ConsumerGroupState.STABLE else None

    def _lag(self, group: str) -> list[str]:
        """What a group of ours has not committed yet."""
        try:
            ends = self.ends(*self._read_by(group))
        except KafkaException as error:
            return [f"offsets: {error}"]
        return self.uncommitted(group, ends)

    def uncommitted(self, group: str, ends: Mapping[tuple[str, int], int]) -> list[str]:
        """What a group has not committed of what is before `ends`."""
        try:
            behind = self.behind(group, ends)
        except (KafkaException, TimeoutError) as error:
            self._renew()
            return [f"offsets: {error}"]
        return [f"{behind} messages are not committed by {group}"] if behind else []

    @staticmethod
    def _read_by(group: str) -> Sequence[str]:
        return (topics.OPPORTUNITIES,) if group == "decider" else topics.tick_topics(EXCHANGES)

    def lag(self, group: str) -> int:
        """Messages that a group has not committed.

        Raises:
            KafkaException, TimeoutError: no answer.
        """
        return self.behind(group, self.ends(*self._read_by(group)))

    def ends(self, *names: str) -> dict[tuple[str, int], int]:
        """Where the partitions of these topics end now.

        Raises:
            KafkaException: no answer.
        """
        spare = Consumer(kafka.reader(self.cluster.kafka, "chaos"))
        try:
            return {
                (name, number): spare.get_watermark_offsets(TopicPartition(name, number), timeout=5.0)[1]
                for name in names
                for number in range(topics.TICK_PARTITIONS if name in topics.tick_topics() else topics.EVENT_PARTITIONS)
            }
        finally:
            spare.close()

    def behind(self, group: str, ends: Mapping[tuple[str, int], int]) -> int:
        """Messages before `ends` that a group has not committed; nothing has been deleted before them in such a run.

        Raises:
            KafkaException, TimeoutError: no answer.
        """
        asked = [ConsumerGroupTopicPartitions(group, [TopicPartition(*place) for place in ends])]
        committed = self._admin.list_consumer_group_offsets(asked, request_timeout=5.0)[group].result(5.0)
        return sum(
            max(0, ends[(place.topic, place.partition)] - max(0, place.offset)) for place in committed.topic_partitions
        )

    # ------------------------------------------------ what is broken

    @contextlib.contextmanager
    def fault(self, what: str, exchanges: Sequence[str] | None = None, *, ticks: bool = True) -> Iterator[Fault]:
        """Break something in the block; at its end everything must become steady.

        Args:
            exchanges: Whose books it concerns; None: of all.
            ticks: Whether gaps may be missed meanwhile; False: only decisions are late.

        Raises:
            Late: it did not become steady.
        """
        self.doing = what
        fault = Fault(self, what)
        found = fault.recovery
        self.recoveries.append(found)
        try:
            yield fault
            lifted = fault.lifted_at or time.monotonic()
            found.lasted_s = lifted - fault.began
            self.doing = f"recovering from {what}"
            self.until_steady(time.time_ns())
            found.steady_s = time.monotonic() - lifted
        finally:
            now = time.monotonic()
            first = self.watch.first_decided(fault.began_ns)
            found.flowing_s = None if first is None else first - fault.began
            found.gap_s = self.watch.longest_gap_s(fault.began, now)
            found.wait_s = self.watch.longest_wait_s(fault.began, now)
            if ticks:
                concerned = None if exchanges is None else frozenset(exchanges)
                self.windows.append(Window(fault.began_ns, time.time_ns(), concerned))

    def must(self, what: str, count: int) -> None:
        """Something of this scenario's own that must be 0."""
        self.musts.append((what, count))

    def kill(self, name: str) -> None:
        """SIGKILL; the orchestrator starts it again."""
        member = self.members[name]
        assert member.process is not None
        member.killed = True
        member.process.kill()

    def signal(self, name: str, number: int) -> None:
        process = self.members[name].process
        assert process is not None
        process.send_signal(number)

    def leader(self, topic: str, key: str = "BTC") -> int:
        """The node that leads the partition of a key."""
        self._renew()
        known = self._admin.list_topics(topic, timeout=10.0).topics[topic].partitions
        return int(known[kafka.partition_of(key, len(known))].leader)

    def coordinator(self, group: str) -> int:
        """The node that coordinates a group."""
        self._renew()
        found = self._admin.describe_consumer_groups([group], request_timeout=10.0)[group].result(10.0)
        return int(found.coordinator.id)


def _peak_kib(pid: int) -> int:
    """The most memory that a process has had; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
