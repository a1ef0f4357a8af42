"""The highest tick rate at which p99 from frame to opportunity stays below 100 ms, and what gives way first.

A driver of its own (`load_driver.py`) sends ticks of five exchanges at a steady rate; a real broker, or three as three
processes; one or three real `arb detect`; and this process, which reads the opportunities. A tick's `received_ns` is
when it was due, an opportunity's `opened_ns` that of the tick that made it pay: their time is from there to the
reader's hands, so a driver that cannot keep up shows as latency, too. `detector.persistence_ms` is 0.

25 times a second something begins to pay, at four pairs at once: one wait each, that of the last of the four. What did
not come whole within 2 s, or was dropped on its way in, is lost: it counts as a wait without an end.

The rate is doubled until a step fails (p99 at 100 ms or more, one in a hundred lost, or the driver behind by 5 %), and
then halved in between, on a scale of ratios. A step that fails is tried once more: machines are noisy. The same
with `relay.py` in the detectors' place, which parses nothing: the rate that Kafka itself bears here. What gives way
first is told from the failing step: ticks not yet read (in seconds of them), the fill of the driver's queue to the
broker, the busiest thread of a detector and how long it waited for a core, the machine's cores.

    python benchmarks/load.py [--brokers 1] [--detectors 1 3] [--seconds 16] [--halvings 3] [--no-relay] [--quick]
"""

import argparse
import contextlib
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from common import report
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from latency import RELAYED, START_S, Key, opened, percentile, process, relayed
from market import BOOK_HZ, EXCHANGES

from services.cli import jars
from services.cli.jars import JarCluster, tied_to_parent
from shared import cluster, kafka, topics
from shared.settings import KafkaSettings
from shared.topics import EVENT_PARTITIONS, HOUR_MS, Topic

MOST_MS = 100.0
LOST = 0.01
UP_S = 240.0
"""For the brokers: on a busy machine they take long."""

QUEUE = 20_000
"""Ticks that the driver's producer holds (`shared.kafka.tick_producer`)."""

UNREAD_S = 2.5
"""Ticks of so many seconds that are not committed are not read: commits come every second."""

PAIRS = 4
"""Opportunities of a gap: one exchange pays against the four others."""

BEHIND = 0.05
WARM_S = 3.0
WARM_STEPS = 2
"""Steps before the first that counts: in it a broker that has just started used a whole core, later two thirds."""

LAST_S = 2.0
A_SYMBOL = len(EXCHANGES) * BOOK_HZ
"""Ticks a second of one symbol."""

FIRST, TOP = 20, 4000
"""Symbols of the first step, and at most. With fewer a symbol would pay again before its last gap has ended."""

MARK = '"exchange_ns":1,'
SETTINGS = "[detector]\npersistence_ms = 0\n" + "".join(
    f'[exchanges.{name}]\nfees = [{{ valid_from = 2020-01-01, taker_bps = "10" }}]\n' for name in EXCHANGES
)
GROUP_OPTIONS = {"auto.commit.interval.ms": 1000}
"""So that the committed offsets tell the lag to a second."""

BUSY = 0.9
"""Of a core: a thread that cannot do more."""

WAITED = 0.5
"""Of the time that it ran: a thread that waits so long for a core comes late although cores are idle at other times."""

STOLEN = 0.1
"""Of a core, by other machines on the same host: what is measured then is the host."""

TICKS_A_S = os.sysconf("SC_CLK_TCK")


@dataclass
class Step:
    """One rate, measured."""

    contestant: str
    brokers: int
    instances: int
    symbols: int
    sent_per_s: float = 0.0
    waits_ms: list[float] = field(default_factory=list)
    openings: int = 0
    lost: int = 0
    dropped: int = 0
    queue: int = 0
    lag: int = 0
    cores: dict[str, float] = field(default_factory=dict)
    thread: float = 0.0
    waited: float = 0.0

    def asked_per_s(self) -> int:
        return self.symbols * A_SYMBOL

    def why_not(self) -> str | None:
        """Why the step fails; None: it does not."""
        if self.sent_per_s < (1 - BEHIND) * self.asked_per_s():
            return f"the driver sent {self.sent_per_s:,.0f} of {self.asked_per_s():,}"
        if self.lost > LOST * self.openings or not self.openings:
            return f"{self.lost} of {self.openings} gaps lost"
        p99 = percentile(self.waits_ms, 0.99)
        return None if p99 < MOST_MS else f"p99 {p99:,.0f} ms"

    def gives_way(self) -> str:
        """What has nothing left, by the numbers."""
        found = []
        if (unread_s := self.lag / self.asked_per_s()) > UNREAD_S:
            found.append(f"the {self.contestant}s' reading ({self.lag:,} ticks, {unread_s:.1f} s, not read)")
        if self.queue > QUEUE / 2 or self.dropped:
            found.append(
                f"the broker's taking ({self.queue:,} of {QUEUE:,} waited to be sent, {self.dropped:,} dropped)"
            )
        if self.thread > BUSY:
            found.append(f"a {self.contestant}'s thread ({self.thread:.2f} of a core)")
        if self.waited > WAITED * self.thread:
            found.append(
                f"the machine's cores: the {self.contestant}'s busiest thread ran {self.thread:.2f} s a second and "
                f"waited {self.waited:.2f} s for one, beside a broker that used {self.cores['broker']:.2f}"
            )
        if self.cores["stolen"] > STOLEN:
            found.append(f"the machine itself: {self.cores['stolen']:.2f} of its cores went to others on its host")
        if self.cores["idle"] < 0.1 * (os.cpu_count() or 1):
            most = max((name for name in self.cores if name != "idle"), key=lambda name: self.cores[name])
            found.append(f"the machine's cores, of them most: {most} ({self.cores[most]:.2f})")
        if self.sent_per_s < (1 - BEHIND) * self.asked_per_s():
            found.append("the driver")
        return "; ".join(found) or "nothing of what is measured has run out"

    def row(self) -> dict[str, Any]:
        return {
            "contestant": f"{self.instances} {self.contestant}",
            "ticks/s": self.asked_per_s(),
            "sent/s": round(self.sent_per_s),
            "p50_ms": ms(self.waits_ms, 0.5),
            "p99_ms": ms(self.waits_ms, 0.99),
            "lost": f"{self.lost}/{self.openings}",
            "unread": self.lag,
            "queue": self.queue,
            "thread": self.thread,
            "waited": self.waited,
            "cores": ", ".join(f"{name} {cores:.2f}" for name, cores in self.cores.items()),
            "fails": self.why_not() or "",
        }


def ms(waits: Sequence[float], share: float) -> float | str:
    """For people and JSON, which knows no infinity."""
    found = percentile(waits, share) if waits else math.inf
    return found if math.isfinite(found) else "lost"


# ---------------------------------------------------------------- processors


def cpu_s(pid: int) -> float:
    """Processor time of a process so far; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS_A_S


class Ran(NamedTuple):
    """Seconds of a thread so far: on a core, and ready to run without one (0 where the kernel does not say)."""

    on_core_s: float
    waited_s: float


def threads_of(pid: int) -> dict[int, Ran]:
    """The same by thread."""
    found = {}
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            waited_s = 0.0
            with contextlib.suppress(OSError):
                waited_s = int((task / "schedstat").read_text().split()[1]) / 1e9
            found[int(task.name)] = Ran((int(fields[11]) + int(fields[12])) / TICKS_A_S, waited_s)
    return found


def machine_s() -> tuple[float, float, float]:
    """Processor time of everything, idle time, and what the hypervisor gave to other machines."""
    fields = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle, stolen = fields[3] + fields[4], fields[7]
    return (sum(fields) - idle - stolen) / TICKS_A_S, idle / TICKS_A_S, stolen / TICKS_A_S


class Load:
    """Cores that processes use between two moments."""

    def __init__(self, groups: dict[str, Sequence[int]]) -> None:
        self._groups = groups
        self._since = self._look()

    def _look(self) -> tuple[float, dict[str, float], tuple[float, float, float], dict[int, Ran]]:
        threads: dict[int, Ran] = {}
        for pid in self._groups["contestants"]:
            threads |= threads_of(pid)
        used = {name: sum(map(cpu_s, pids)) for name, pids in self._groups.items()}
        return time.perf_counter(), used, machine_s(), threads

    def read(self) -> tuple[dict[str, float], float, float]:
        """Cores by group, with all others, what was idle and what was stolen; of the contestants' busiest thread the
        share of a core that it had, and for which it waited."""
        before, had, (busy, idle, stolen), old = self._since
        now, has, (busy_now, idle_now, stolen_now), new = self._look()
        seconds = now - before
        cores = {name: (has[name] - had[name]) / seconds for name in had}
        cores["others"] = max(0.0, (busy_now - busy) / seconds - sum(cores.values()))
        cores["idle"] = (idle_now - idle) / seconds
        cores["stolen"] = (stolen_now - stolen) / seconds
        none = Ran(0.0, 0.0)
        ran = [
            Ran(*((at - was) / seconds for at, was in zip(new[tid], old.get(tid, none), strict=True))) for tid in new
        ]
        return cores, *max(ran, default=none)  # the busiest


# ---------------------------------------------------------------- contestants


class Contest:
    """Some detectors or relays on a cluster, and steps with them."""

    def __init__(
        self, broker: KafkaSettings, pids: Sequence[int], contestant: str, instances: int, folder: Path
    ) -> None:
        self.contestant, self.instances = contestant, instances
        self._broker = broker
        self._pids = pids
        self._detects = contestant == "detector"
        self._group = "detector" if self._detects else f"bench-relay-{uuid.uuid4()}"
        self._folder = folder
        self._came: dict[Key, list[int]] = {}
        self._stop = threading.Event()
        self._running: list[subprocess.Popen[bytes]] = []
        self._stack = contextlib.ExitStack()
        self._admin = cluster.admin(broker)

    def __enter__(self) -> "Contest":
        for _ in range(self.instances):
            started = self._detector() if self._detects else self._relay()
            self._running.append(self._stack.enter_context(started))
        names = [topics.OPPORTUNITIES if self._detects else RELAYED]
        self._reader = kafka.Reader(kafka.reader(self._broker, "bench"), names, None)
        thread = threading.Thread(target=self._read, name="load-reader", daemon=True)
        thread.start()
        self._stack.callback(self._reader.close)
        self._stack.callback(thread.join, 10.0)
        self._stack.callback(self._stop.set)
        self._until_shared()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _detector(self) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        file = self._folder / "arb.toml"
        file.write_text(SETTINGS)
        environment = {
            "ARB_CONFIG": str(file),
            "ARB_KAFKA_SERVERS": self._broker.servers,
            "ARB_KAFKA_OPTIONS": json.dumps({**self._broker.options, **GROUP_OPTIONS}),
        }
        return process(["-m", "services.cli", "detect"], environment)

    def _relay(self) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        case = {
            "servers": self._broker.servers,
            "options": {**self._broker.options, **GROUP_OPTIONS},
            "group": self._group,
            "topic": RELAYED,
            "size": 2500,
            "mark": MARK,
        }
        return process([str(Path(__file__).with_name("relay.py")), json.dumps(case)], {})

    def _read(self) -> None:
        key_of = opened if self._detects else relayed
        while not self._stop.is_set():
            records = self._reader.read(500, 0.05)
            at_ns = time.time_ns()
            for record in records:
                if (key := key_of(record.value or b"")) is not None:
                    self._came.setdefault(key, []).append(at_ns)

    def _until_shared(self) -> None:
        """Until the group has its members and each its partitions."""
        end = time.monotonic() + START_S
        while True:
            with contextlib.suppress(KafkaException, TimeoutError):
                found = self._admin.describe_consumer_groups([self._group], request_timeout=5)[self._group].result(5)
                if len(found.members) == self.instances and all(
                    one.assignment.topic_partitions for one in found.members
                ):
                    return
            if time.monotonic() > end or any(one.poll() is not None for one in self._running):
                raise RuntimeError(f"the {self.contestant}s did not come up within {START_S:g} s")
            time.sleep(0.1)  # other processes come up: they are asked in turn

    def lag(self) -> int:
        """Ticks that the group has not read, as far as it has committed."""
        places = [TopicPartition(name, number) for name in topics.tick_topics() for number in range(16)]
        asked = [ConsumerGroupTopicPartitions(self._group, places)]
        found = self._admin.list_consumer_group_offsets(asked, request_timeout=10)[self._group].result(10)
        spare = Consumer(kafka.reader(self._broker, "bench"))
        try:
            ends = functools.partial(spare.get_watermark_offsets, timeout=10)
            return sum(
                ends(TopicPartition(one.topic, one.partition))[1] - one.offset
                for one in found.topic_partitions
                if one.offset >= 0
            )
        finally:
            spare.close()

    def until_idle(self, timeout_s: float = 60.0) -> None:
        """Until the ticks of the last step are read."""
        end = time.monotonic() + timeout_s
        while self.lag() > 0:
            if time.monotonic() > end:
                raise RuntimeError(f"the {self.contestant}s did not catch up within {timeout_s:g} s")
            time.sleep(0.2)  # committed once a second

    def step(self, brokers: int, symbols: int, seconds: float) -> Step:
        """Send at one rate: `WARM_S` that are not counted, then `seconds` that are."""
        step = Step(self.contestant, brokers, self.instances, symbols)
        self._came.clear()
        case = {
            "servers": self._broker.servers,
            "options": self._broker.options,
            "symbols": symbols,
            "seconds": WARM_S + seconds,
        }
        command = tied_to_parent([sys.executable, str(Path(__file__).with_name("load_driver.py")), json.dumps(case)])
        driver = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            time.sleep(WARM_S)  # clients, caches, the broker's compiler
            pids = [one.pid for one in self._running]
            load = Load({"broker": self._pids, "contestants": pids, "driver": [driver.pid], "reader": [os.getpid()]})
            since_ns = time.time_ns()
            time.sleep(seconds - 0.5)  # what is measured; the driver is still at it when the load is read
            step.cores, step.thread, step.waited = load.read()
            step.lag = self.lag()
            said, _ = driver.communicate(timeout=60)
        finally:
            driver.kill()
            driver.wait()
        done = json.loads(said)
        counted = [(base, at_ns) for base, at_ns in done["openings"] if at_ns >= since_ns]
        whole = PAIRS if self._detects else 1
        end = time.monotonic() + LAST_S
        while time.monotonic() < end and any(len(self._came.get(key, ())) < whole for key in counted):
            time.sleep(0.05)  # the last ones are on their way
        step.sent_per_s = done["ticks"] / done["seconds"]
        step.dropped, step.queue = done["dropped"], done["queue"]
        step.openings = len(counted)
        came = {key: sorted(self._came.get(key, ())) for key in counted}
        step.waits_ms = [(at[whole - 1] - key[1]) / 1e6 if len(at) >= whole else math.inf for key, at in came.items()]
        step.lost = sum(map(math.isinf, step.waits_ms))
        self.until_idle()
        return step


def knee(
    contest: Contest, brokers: int, seconds: float, steps: list[Step], top: int, halvings: int
) -> tuple[Step | None, Step | None]:
    """The highest step that holds, and the lowest that does not."""

    def holds(symbols: int) -> bool:
        for _ in range(2):
            step = contest.step(brokers, symbols, seconds)
            steps.append(step)
            say(
                f"  {step.asked_per_s():,} ticks/s: {step.why_not() or f'p99 {percentile(step.waits_ms, 0.99):.0f} ms'}"
            )
            if step.why_not() is None:
                return True
        return False

    good, bad, symbols = 0, 0, FIRST
    while symbols <= top and not bad:
        if holds(symbols):
            good, symbols = symbols, 2 * symbols
        else:
            bad = symbols
    if good and bad:
        for _ in range(halvings):
            middle = round((good * bad) ** 0.5)
            if middle in (good, bad):
                break
            if holds(middle):
                good = middle
            else:
                bad = middle
    mine = [step for step in steps if (step.contestant, step.instances) == (contest.contestant, contest.instances)]
    best = next((step for step in reversed(mine) if step.symbols == good and step.why_not() is None), None)
    worst = next((step for step in reversed(mine) if step.symbols == bad), None)
    return best, worst


# ---------------------------------------------------------------- the run


def run(
    brokers: int, instances: Sequence[int], seconds: float, contestants: Sequence[str], top: int, halvings: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the knees, and of all steps."""
    steps: list[Step] = []
    knees: list[dict[str, Any]] = []
    rates: dict[tuple[str, int], int] = {}
    with tempfile.TemporaryDirectory(prefix="arb-load-") as folder:
        with JarCluster(jars.fetch(say), Path(folder), brokers, java=jars.ROOMY) as nodes:
            nodes.up(UP_S)
            cluster.apply_topics(nodes.kafka, brokers=brokers)
            extra = Topic(RELAYED, EVENT_PARTITIONS, HOUR_MS, 1, "base asset", "bench", "bench")
            cluster.apply_topics(nodes.kafka, [extra], brokers=brokers)
            pids = [nodes.pid(node) for node in nodes.nodes]
            for count in instances:
                for name in contestants:
                    say(f"{count} {name}{'s' if count > 1 else ''}, {brokers} broker{'s' if brokers > 1 else ''}")
                    with Contest(nodes.kafka, pids, name, count, Path(folder)) as contest:
                        contest.step(brokers, FIRST, WARM_STEPS * seconds)  # not counted: a new broker is compiled
                        best, worst = knee(contest, brokers, seconds, steps, top, halvings)
                    rates[(name, count)] = best.asked_per_s() if best else 0
                    knees.append(
                        {
                            "contestant": f"{count} {name}",
                            "brokers": brokers,
                            "highest_ticks/s": rates[(name, count)],
                            "p50_ms": ms(best.waits_ms, 0.5) if best else "-",
                            "p99_ms": ms(best.waits_ms, 0.99) if best else "-",
                            "of_the_relay": rates[(name, count)] / floor
                            if (floor := rates.get(("relay", count)))
                            else "-",
                            "fails_at": worst.asked_per_s() if worst else "-",
                            "by": (worst.why_not() or "-") if worst else "-",
                            "gives_way_first": worst.gives_way() if worst else "not reached",
                        }
                    )
    return knees, [step.row() for step in steps]


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brokers", type=int, default=1, choices=(1, 3), help="nodes of the cluster")
    parser.add_argument("--detectors", type=int, nargs="+", default=[1, 3], help="instances, one run each")
    parser.add_argument("--seconds", type=float, default=16.0, help="counted in each step")
    parser.add_argument("--halvings", type=int, default=3, help="how finely the knee is looked for")
    parser.add_argument("--relay", action=argparse.BooleanOptionalAction, default=True, help="the floor, too")
    parser.add_argument("--quick", action="store_true", help="only whether it runs: one detector, one rate, 2 s")
    options = parser.parse_args()
    contestants = ["relay", "detector"] if options.relay else ["detector"]
    try:
        if options.quick:
            knees, steps = run(options.brokers, [1], 2.0, contestants, FIRST, 0)
        else:
            knees, steps = run(options.brokers, options.detectors, options.seconds, contestants, TOP, options.halvings)
    except jars.Unsuitable as reason:
        sys.exit(f"load: no Kafka can run here: {reason}")
    ending = f"-{options.brokers}{'-quick' if options.quick else ''}"
    if not sys.stdout.isatty():
        os.environ.setdefault("COLUMNS", "170")  # rows are wide, and a file has room
    report(f"load-steps{ending}", f"Each step, {options.brokers} brokers (thread: a contestant's busiest)", steps)
    report(f"load{ending}", f"Highest rate with p99 below {MOST_MS:g} ms from frame to opportunity", knees)


if __name__ == "__main__":
    main()
