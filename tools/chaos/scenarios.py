"""What is broken, and what must come of it. Each scenario runs between a steady time before and one after."""

import asyncio
import contextlib
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from shared import client, topics
from shared.errors import ArbiterError
from tools.chaos.machine import Disk, Namespace, namespace, small_disk
from tools.chaos.stage import EXCHANGES, RATES, Plan, Stage

OUTAGE_S = 15.0
PAUSE_S = 30.0
CUT_S = 20.0
SLOW_S = 30.0
BETWEEN_S = (2.0, 6.0)
"""Between a recovery and the next kill."""

TWO_AT_ONCE = 0.25
"""Share of kills that strike two services."""

DISK_MIB = 192
"""Of the small disk: four times what a broker writes in such a run."""


@dataclass
class Settings:
    """What the command line says of the scenarios."""

    minutes: float = 10.0
    seed: int = 1
    patient: bool = False


Prepare = Callable[[Path], AbstractContextManager[tuple[Plan, Callable[[Stage, Settings], None]]]]


@dataclass(frozen=True)
class Scenario:
    """One of the suite.

    Attributes:
        prepare: Given a folder: the plan, and what breaks things; may raise `machine.NotHere`.
        about: One line for people.
    """

    name: str
    about: str
    prepare: Prepare = field(repr=False)


def plain(strike: Callable[[Stage, Settings], None], plan: Plan | None = None) -> Prepare:
    """A scenario that needs nothing of the machine."""

    @contextlib.contextmanager
    def prepare(folder: Path) -> Iterator[tuple[Plan, Callable[[Stage, Settings], None]]]:
        yield plan or Plan(), strike

    return prepare


# ---------------------------------------------------------------- brokers


def kill_broker(stage: Stage, node: int, what: str) -> None:
    """SIGKILL; the others must go on without it, and it must come back."""
    with stage.fault(f"kill -9 of broker {node}, {what}") as fault:
        stage.cluster.kill(node)
        fault.until_flowing()
        fault.lifted()
        stage.cluster.start(node)


def leader(stage: Stage, settings: Settings) -> None:
    kill_broker(stage, stage.leader(topics.DECISIONS), "leader of decisions")
    kill_broker(stage, stage.leader(topics.OPPORTUNITIES), "leader of opportunities")


def coordinator(stage: Stage, settings: Settings) -> None:
    for group in ("decider", "detector"):
        kill_broker(stage, stage.coordinator(group), f"coordinator of group {group}")


def short(stage: Stage, settings: Settings) -> None:
    """The test's: a broker, a detector and a decider at once."""
    node = stage.leader(topics.DECISIONS)
    with stage.fault(f"kill -9 of broker {node}, leader of decisions, detector-1 and decider-1") as fault:
        stage.cluster.kill(node)
        stage.kill("detector-1")
        stage.kill("decider-1")
        fault.until_flowing()
        fault.lifted()
        stage.cluster.start(node)


def two_brokers(stage: Stage, settings: Settings) -> None:
    """Two of three combined nodes: no quorum, no in-sync majority; nothing can be written until one is back."""
    kept = stage.leader(topics.TICKS_DLQ)
    gone = [node for node in stage.cluster.nodes if node != kept]
    with stage.fault(f"kill -9 of brokers {gone[0]} and {gone[1]}") as fault:
        for node in gone:
            stage.cluster.kill(node)
        stage.hold(OUTAGE_S)
        fault.lifted()
        for node in gone:
            stage.cluster.start(node)


def pause(stage: Stage, settings: Settings) -> None:
    node = stage.leader(topics.DECISIONS)
    with stage.fault(f"broker {node} hangs for {PAUSE_S:g} s") as fault:
        stage.cluster.pause(node)
        try:
            stage.hold(PAUSE_S)
        finally:
            stage.cluster.resume(node)
        fault.lifted()


# ---------------------------------------------------------------- services


def random_kills(stage: Stage, settings: Settings) -> None:
    """Each service in an order drawn anew for each round, so that none is left out; at times two at once."""
    draw = random.Random(settings.seed)
    end = time.monotonic() + 60 * settings.minutes
    names: list[str] = []
    while time.monotonic() < end:
        chosen = []
        for _ in range(2 if draw.random() < TWO_AT_ONCE else 1):
            if not names:
                names = sorted(stage.members)
                draw.shuffle(names)
            chosen.append(names.pop())
        kill_services(stage, *dict.fromkeys(chosen))
        stage.hold(draw.uniform(*BETWEEN_S))


def kill_services(stage: Stage, *names: str) -> None:
    """SIGKILL to all of them at once. A collector that brings rates concerns all books: without a young one nothing
    opens."""
    exchanges = [name.partition("-")[2] for name in names if name.startswith("collector-")]
    detectors = any(name.startswith("detector-") for name in names)
    everything = detectors or any(name in RATES for name in exchanges)
    words = f"kill -9 of {' and '.join(names)}"
    with stage.fault(words, None if everything else exchanges, ticks=bool(exchanges) or detectors):
        for name in names:
            stage.kill(name)


def zombies(stage: Stage, settings: Settings) -> None:
    """A detector and a decider hang for longer than the group waits, and go on with what they held."""
    hung = ("detector-1", "decider-1")
    with stage.fault(f"{hung[0]} and {hung[1]} hang for {PAUSE_S:g} s") as fault:
        for name in hung:
            stage.signal(name, signal.SIGSTOP)
        try:
            stage.hold(PAUSE_S)
        finally:
            for name in hung:
                stage.signal(name, signal.SIGCONT)
        fault.lifted()


# ---------------------------------------------------------------- disk, network, readers


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[tuple[Plan, Callable[[Stage, Settings], None]]]:
    node = 2
    with small_disk(folder / "small", DISK_MIB) as disk:
        yield Plan(data={node: disk.path / "data"}), lambda stage, _: _fill(stage, disk, node)


def _fill(stage: Stage, disk: Disk, node: int) -> None:
    """Kafka gives a log folder up that it cannot write to, and ends, as it has no other."""
    with stage.fault(f"the disk of broker {node} is full") as fault:
        disk.fill()

        def ended() -> list[str]:
            disk.fill()  # what Kafka deletes meanwhile must not make room
            return [] if node not in stage.cluster.running() else [f"broker {node} has not noticed it"]

        stage.wait(ended, 60.0)
        fault.until_flowing()
        disk.free()
        fault.lifted()
        stage.cluster.start(node)


@contextlib.contextmanager
def network(folder: Path) -> Iterator[tuple[Plan, Callable[[Stage, Settings], None]]]:
    exchange = EXCHANGES[0]
    with namespace() as own:
        plan = Plan(
            prefixes={f"collector-{exchange}": own.prefix}, market_host=own.exchanges.host, broker_host=own.kafka.host
        )
        yield plan, lambda stage, _: _cut(stage, own, exchange)


def _cut(stage: Stage, own: Namespace, exchange: str) -> None:
    with stage.fault(f"no network between collector-{exchange} and Kafka", [exchange]) as fault:
        own.cut()
        try:
            stage.hold(CUT_S)
        finally:
            own.mend()
        fault.lifted()


SLOW_MODELS = """
[decider]
max_panels_in_flight = 1
max_minute_usd = "0.02"
[models."gpt-6-luna"]
request = { reasoning_effort = "none", extra_body = { simulated_latency_ms = [1000, 1400] } }
[models."gemini-3.5-flash-lite"]
request = { reasoning_effort = "minimal", extra_body = { simulated_latency_ms = [1000, 1400] } }
[models."deepseek-flash"]
request = { temperature = 0, extra_body = { thinking = { type = "disabled" }, simulated_latency_ms = [1000, 1400] } }
"""
"""The panel's deadline is 1.5 s; one panel at a time; money for some a minute (the calls at its start take 0.002)."""


def slow(stage: Stage, settings: Settings) -> None:
    """Deciders whose models take their time, and a user's program that takes two seconds for a decision."""
    with stage.fault("a reader that takes its time", ticks=False) as fault:
        reader = SlowReader(stage.cluster.kafka.servers)
        reader.read(lambda: reader.slow_s >= SLOW_S, pause_s=2.0)
        stage.wait(reader.missing, SLOW_S + 60.0)
        behind = stage.lag("decider")
        published, ends = stage.watch.decided(), stage.ends(topics.DECISIONS)
        caught_up = threading.Event()
        reader.read(caught_up.is_set, pause_s=0.0)
        # Until the group has committed all that was there: whether it was handed on is what is asked below.
        stage.wait(lambda: stage.uncommitted(SLOW_GROUP, ends), 60.0)
        caught_up.set()
        stage.wait(reader.missing, 60.0)
        fault.lifted()
    stage.notes |= {
        "read by a slow member of a group": reader.slowly,
        "left for the next one": len(published) - reader.slowly,
        "read twice": sum(reader.got.values()) - len(reader.got),
        "opportunities waiting for the deciders meanwhile": behind,
    }
    stage.must("decisions that a slow reader and the next of its group left out", len(published - reader.got.keys()))


SLOW_GROUP = "slow-reader"


class SlowReader:
    """A user's program in a group; each `read` is another process of it, as far as Kafka is concerned."""

    def __init__(self, servers: str) -> None:
        self._servers = servers
        self._reading: threading.Thread | None = None
        self._error: Exception | None = None
        self.got: Counter[str] = Counter()
        """Times that each opportunity's decision came."""

        self.slowly = 0
        self.slow_s = 0.0

    def read(self, until: Callable[[], bool], pause_s: float) -> None:
        """Begin to read in a thread, with a pause after each decision, until `until`."""

        async def run() -> None:
            began = time.monotonic()
            async for decision in client.decisions(self._servers, group=SLOW_GROUP):
                self.got[decision.opportunity_id] += 1
                if pause_s:
                    self.slowly += 1
                    await asyncio.sleep(pause_s)  # what makes it slow
                    self.slow_s = time.monotonic() - began
                if until():
                    return  # its end is that of the loop, which leaves the group

        def work() -> None:
            try:
                asyncio.run(run())
            except ArbiterError as error:
                self._error = error

        self._reading = threading.Thread(target=work, name="slow-reader", daemon=True)
        self._reading.start()

    def missing(self) -> list[str]:
        """Empty once it has read what it was to read."""
        if self._error is not None:
            raise self._error
        assert self._reading is not None
        return [f"a reader is at {len(self.got)} decisions"] if self._reading.is_alive() else []


SCENARIOS = {
    one.name: one
    for one in (
        Scenario("leader", "kill -9 of the broker that leads decisions, then of opportunities' leader", plain(leader)),
        Scenario(
            "coordinator", "kill -9 of the coordinator of the deciders, then of the detectors", plain(coordinator)
        ),
        Scenario("two-brokers", f"kill -9 of two brokers of three, back after {OUTAGE_S:g} s", plain(two_brokers)),
        Scenario("pause", f"the leader of decisions hangs for {PAUSE_S:g} s", plain(pause)),
        Scenario("kills", "kill -9 of every service at random, for --minutes", plain(random_kills)),
        Scenario("zombies", f"a detector and a decider hang for {PAUSE_S:g} s and go on", plain(zombies)),
        Scenario("disk", "the disk of one broker is full", full_disk),
        Scenario("slow", "slow models, little money, and a slow reader", plain(slow, Plan(settings=SLOW_MODELS))),
        Scenario("network", f"no network between a collector and Kafka for {CUT_S:g} s", network),
    )
}
