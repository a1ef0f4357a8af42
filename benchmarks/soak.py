"""Soak: five collectors under simulated traffic at ten times the real rate, while everything that can fail does.

Three processes: `arb simulate` (five exchanges and their faults), one process with five real `Collector`s and a real
publisher (the one that is measured), and this one, which breaks things through the simulator's control endpoint,
watches, and keeps the books. The fault plan is posted step by step rather than given as a file, because a step begins
when the one before is over, and one simulator takes a hundred faults at a time.

Real rate: 10 book updates a second and book. In our captures: OKX `books` 9/s, Binance `depth@100ms` up to 5/s (10 at
most, by its name), Kraken BTC/USD 5/s at depth 10 and 41/s at depth 25, ten Coinbase Exchange books 3 to 84/s (mean
32). The default of `--rate 100` is ten times that, for each of the 18 books of the default settings. What really
arrives is measured and stands beside the wish: on a small machine the simulator is the limit.

Phases: fault-free (no reconnect may happen), faults, and a fault-free end. The first tenth, at least a minute, half of
it with faults, is warm-up; the slope of the memory is that of what follows. RSS is a high-water mark: it still rises a
little whenever more goes wrong at a time than ever before, so whether it is flat is judged by the last third; the
objects that live (Python's blocks) by all of it. A slope's standard error is widened by the lag-1 autocorrelation of
the residuals: RSS moves in steps, and samples ten seconds apart are not independent. A run that is too short to tell
one MiB an hour from nothing says so.

Every reconnect (`arb_reconnects_total`, by exchange and reason) must lie between a fault's beginning and all books of
its exchange being live again, and have a reason that this fault may have. Coinbase's way back from its second source
("replaced", five minutes later) is the one exception. A book counts as live again when its health says so and it has
published a book within the last second (a rate, within its proofs of life).

Where the machine is too slow, or has other work to do, the simulator freezes for seconds, and the collectors rightly
give its connections up. Such times are told from failures by the pulse: an answer of the simulator's control endpoint
and a line of the measured process, each within a second. Reconnects of a time without pulse are counted as "starved",
no fault begins in it, and what one that was under way brought is not judged.

    python benchmarks/soak.py [--seconds 3600] [--rate 100] [--seed 1] [--no-broker] [--no-faults]
"""

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import math
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx2
import orjson
from common import RESULTS, report
from rich.console import Console
from rich.table import Table

from services.cli.broker import start_broker
from services.cli.jars import tied_to_parent
from services.collector.service import Collector
from shared import kafka, metrics, process, settings
from shared.errors import ArbiterError, DependencyMissing
from shared.settings import KafkaSettings

LOOK_S = 0.2
FRESH_S = 1.0
SETTLE_S = 1.5
"""A book that comes and goes again within this time was not live again."""

PAUSE_S = (3.0, 7.0)
"""Between an exchange's recovery and its next fault."""

LATE_S = 1.0
RECOVERY_S = 120.0
INSTRUMENTS_S = 5.0
"""Metadata is asked for so often here (300 s is the default): a halt must be seen while it lasts."""

FLAT_KIB_PER_H = 1024.0
LEAST_S = 600.0
"""After warm-up a shorter time says nothing about hours."""

LOGS = RESULTS / "soak-logs"


# ---------------------------------------------------------------- the plan


@dataclass(frozen=True, slots=True)
class Step:
    """Faults that begin together on one exchange, and what must come of it.

    Attributes:
        lasts_s: Until the last of them has ended; 0: they strike once.
        faults: Bodies for the control endpoint, without the exchange; a `symbol` of None is filled in.
        reasons: Of reconnects that may follow.
        reconnects: Whether one must follow.
        states: Book states of which one must be seen.
    """

    name: str
    lasts_s: float
    faults: tuple[dict[str, Any], ...]
    reasons: frozenset[str] = frozenset()
    reconnects: bool = False
    states: frozenset[str] = frozenset()


def _step(name: str, lasts_s: float, *faults: dict[str, Any], because: str = "", states: str = "") -> Step:
    must = because != "" and not because.startswith("?")
    return Step(name, lasts_s, faults, frozenset(because.removeprefix("?").split()), must, frozenset(states.split()))


CLOSE = {"kind": "close"}
PLAN = (
    _step("close", 0, CLOSE, because="closed"),
    _step("drop", 2, {"kind": "drop", "share": 0.1, "for_s": 2}, states="gap checksum"),
    _step("announce", 3, {"kind": "announce", "notice_s": 3}, because="closed"),
    _step("halt", 8, {"kind": "halt", "symbol": None, "for_s": 8}, states="halted"),
    _step("close, silent", 6, CLOSE, {"kind": "silent", "symbol": None, "for_s": 6}, because="closed"),
    _step("corrupt", 2, {"kind": "corrupt", "share": 0.03, "for_s": 2}, because="?bad_frame"),
    _step("cross", 3, {"kind": "cross", "symbol": None, "for_s": 3}, states="crossed"),
    _step("close, refuse", 3, CLOSE, {"kind": "refuse", "for_s": 3}, because="closed refused metadata lost"),
    _step("duplicate", 2, {"kind": "duplicate", "share": 0.2, "for_s": 2}),
    _step("stall 7 s", 7, {"kind": "stall", "for_s": 7}, because="silent refused metadata lost", states="stale"),
    _step("reorder", 2, {"kind": "reorder", "symbol": None, "share": 0.3, "for_s": 2}, states="gap checksum"),
    _step(
        "close, rate limit",
        3,
        CLOSE,
        {"kind": "rate_limit", "for_s": 3, "retry_after_s": 2},
        because="closed rate_limited metadata",
    ),
    _step("stall 3 s", 3, {"kind": "stall", "for_s": 3}, states="stale"),
)
"""Reordered is one book: frames of different books may pass each other. The stalls are on both sides of the five
seconds after which a silent connection is given up: one must reconnect, one must not."""

ANNOUNCING = ("binance", "okx")
"""Exchanges that tell the end of a connection: there another one takes over. Elsewhere it is a close."""

BLIND = {"coinbase-exchange": ("drop", "reorder"), "binance": ("reorder",), "bybit": ("reorder",)}
"""Coinbase's second source numbers no changes: a lost one shows nowhere. Binance and Bybit send a book's change and its
faster top in turn: those two changing places does no harm."""

FEW_STRIKES = 10
"""Fewer frames than this may all have been of a kind whose loss does no harm."""


# ---------------------------------------------------------------- the measured process


class Tap:
    """A publisher that notes when each key last had a book, before the real one gets it (if there is one)."""

    def __init__(self, publisher: kafka.Publisher | None) -> None:
        self._publisher = publisher
        self.seen: dict[str, float] = {}
        self.count = 0

    def publish(self, topic: str, key: str, value: bytes) -> bool:
        if value.startswith((b'{"kind":"book"', b'{"kind":"rate"')):
            self.seen[key] = time.monotonic()
        self.count += 1
        return True if self._publisher is None else self._publisher.publish(topic, key, value)


def _by_exchange(metric: Any, label: str | None = None) -> dict[str, Any]:
    """Values of a metric by exchange: summed, or by another label."""
    found: dict[str, Any] = {}
    for sample in metric.collect()[0].samples:
        if sample.name.endswith("_created"):
            continue
        exchange = sample.labels.get("exchange", "all")
        if label is None:
            found[exchange] = found.get(exchange, 0) + sample.value
        else:
            found.setdefault(exchange, {})[sample.labels[label]] = sample.value
    return found


def _own() -> dict[str, int]:
    """This process: memory, blocks of Python's allocator (objects that live, whatever RSS makes of them), asyncio
    tasks, threads (librdkafka's too), file descriptors, sockets among them."""
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    sockets = fds = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the folder's own descriptor is gone by now
            sockets += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
            fds += 1
    return {
        "rss_kib": int(fields["VmRSS"].split()[0]),
        "blocks": sys.getallocatedblocks(),
        "tasks": len(asyncio.all_tasks()),
        "threads": int(fields["Threads"]),
        "fds": fds,
        "sockets": sockets,
    }


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(orjson.dumps(line).decode() + "\n")
    sys.stdout.flush()


async def collect(wiring: dict[str, Any], stop: asyncio.Event) -> None:
    """The other process: five collectors; a line about them every `LOOK_S`, and at the end what is left of them."""
    loaded = settings.load()
    process.setup_logging(loaded.log)
    before = _own()
    publisher = None
    if wiring["kafka"] is not None:
        config = kafka.tick_producer(KafkaSettings(**wiring["kafka"]), "soak")
        publisher = kafka.Publisher(config, drop_when_full=True)
    taps = {name: Tap(publisher) for name in wiring["exchanges"]}
    failed = await _collect_all(loaded, wiring, taps, stop)
    tasks = [repr(task.get_coro()) for task in asyncio.all_tasks() - {asyncio.current_task()}]
    unsent = 0 if publisher is None else publisher.close(10.0)
    del publisher, taps
    await asyncio.get_running_loop().shutdown_default_executor()
    gc.collect()
    after = _own()
    threads = [one.name for one in threading.enumerate() if one is not threading.main_thread()]
    more = {f"{name}_more": after[name] - before[name] for name in ("tasks", "threads", "fds", "sockets")}
    _say({"end": {"failed": failed, "tasks": tasks, "threads": threads, "unsent": unsent, **more}})


async def _collect_all(
    loaded: settings.Settings, wiring: dict[str, Any], taps: dict[str, Tap], stop: asyncio.Event
) -> dict[str, str]:
    """Until `stop` or until a collector ends by itself; those that failed, with the reason."""
    knobs = loaded.collector.model_copy(update={"instruments_s": INSTRUMENTS_S})
    stopping = asyncio.Event()
    running = {}
    for name, address in wiring["exchanges"].items():
        configured = loaded.exchanges[name]
        changes: dict[str, Any] = {key: address[key] for key in ("ws_url", "rest_url")}
        if configured.second is not None:
            changes["second"] = configured.second.model_copy(update=address["second"])
        collector = Collector(
            name,
            configured.model_copy(update=changes),
            knobs,
            taps[name],  # type: ignore[arg-type]  # has all that a collector calls
            cache=Path(wiring["cache"]),
        )
        running[name] = asyncio.create_task(collector.run(stopping))
    while not stop.is_set() and not any(task.done() for task in running.values()):
        await asyncio.sleep(LOOK_S)
        _say(_line(taps))
    early = {name for name, task in running.items() if task.done()}
    stopping.set()
    await asyncio.wait(running.values(), timeout=20)
    results = {name: task.exception() if task.done() else "did not stop" for name, task in running.items()}
    return {name: repr(found) for name, found in results.items() if found is not None or name in early}


def _line(taps: dict[str, Tap]) -> dict[str, Any]:
    """The fields of a `Look`."""
    now = time.monotonic()
    return {
        "at": now,
        "live": _by_exchange(metrics.BOOK_STATE),
        "fresh": {name: sum(now - at < FRESH_S for at in tap.seen.values()) for name, tap in taps.items()},
        "states": _by_exchange(metrics.BOOK_CHANGES, "state"),
        "reconnects": _by_exchange(metrics.RECONNECTS, "reason"),
        "connections": _by_exchange(metrics.CONNECTIONS, "protocol"),
        "frames": _by_exchange(metrics.FRAMES),
        "ticks": _by_exchange(metrics.TICKS, "kind"),
        "dropped": sum(_by_exchange(metrics.TICKS_DROPPED).values()),
        **_own(),
    }


# ---------------------------------------------------------------- looking at it


@dataclass(frozen=True, slots=True)
class Look:
    """One line of the measured process: counters since its start, by exchange, and its own state."""

    at: float
    live: dict[str, float]
    fresh: dict[str, int]
    states: dict[str, dict[str, float]]
    reconnects: dict[str, dict[str, float]]
    connections: dict[str, dict[str, float]]
    frames: dict[str, float]
    ticks: dict[str, dict[str, float]]
    dropped: float
    rss_kib: int
    blocks: int
    tasks: int
    threads: int
    fds: int
    sockets: int

    def protocol(self, exchange: str) -> str:
        """The protocol of the exchange's open connection; the exchange's own where there is none."""
        return next((name for name, count in self.connections.get(exchange, {}).items() if count > 0), exchange)

    def books_sent(self) -> float:
        return sum(sum(kinds.values()) for kinds in self.ticks.values())


class Watch:
    """The newest look, and the mean memory since the last sample."""

    def __init__(self, books: Mapping[str, int]) -> None:
        self.books = books
        self.look: Look | None = None
        self.end: dict[str, Any] | None = None
        self.ended = asyncio.Event()
        self.longest_gap_s = 0.0
        """Between two lines, since it was last asked for by the pulse."""
        self._rss: list[int] = []

    async def follow(self, lines: asyncio.StreamReader) -> None:
        """Read until the process ends."""
        async for line in lines:
            found = orjson.loads(line)
            if "end" in found:
                self.end = found["end"]
            else:
                before, self.look = self.look, Look(**found)
                self.longest_gap_s = max(self.longest_gap_s, self.look.at - (before or self.look).at)
                self._rss.append(self.look.rss_kib)
        self.ended.set()

    def now(self) -> Look:
        assert self.look is not None
        return self.look

    def mean_rss_kib(self) -> float:
        """Since the last call."""
        taken, self._rss = self._rss, []
        return statistics.fmean(taken) if taken else float(self.now().rss_kib)

    def is_well(self, exchange: str, look: Look) -> bool:
        """Whether all its books are live, and really come."""
        wanted = self.books[exchange]
        return look.live.get(exchange, 0) == wanted and look.fresh.get(exchange, 0) == wanted

    def all_well(self) -> bool:
        return self.look is not None and all(self.is_well(name, self.look) for name in self.books)

    async def until(self, found: Callable[[], bool], timeout_s: float) -> bool:
        """Whether it was found in time; False also when the process has ended."""
        end = time.monotonic() + timeout_s
        while not found():
            if time.monotonic() > end or self.ended.is_set():
                return False
            await asyncio.sleep(LOOK_S / 2)
        return True

    async def calm(self, seconds: float) -> dict[str, int]:
        """The least of tasks, threads, descriptors and sockets over a while (short-lived ones, such as pings, left
        out), and whether all was well all the time."""
        looks, end = [self.now()], time.monotonic() + seconds
        while time.monotonic() < end and not self.ended.is_set():
            await asyncio.sleep(LOOK_S)
            looks.append(self.now())
        least = {name: min(getattr(look, name) for look in looks) for name in ("tasks", "threads", "fds", "sockets")}
        return least | {"well": all(self.is_well(name, look) for look in looks for name in self.books)}


class Pulse:
    """Whether the other processes keep up."""

    def __init__(self, watch: Watch, control: httpx2.AsyncClient) -> None:
        self.missed = 0
        self.longest_s = 0.0
        self._watch = watch
        self._control = control
        self._asked: float | None = None
        self._missed_at = -math.inf

    async def run(self) -> None:
        """Until cancelled."""
        while not self._watch.ended.is_set():
            self._asked = time.monotonic()
            with contextlib.suppress(httpx2.HTTPError):  # no answer in the client's timeout is late enough
                await self._control.get("/pulse")  # there is no such path: the cheapest answer
            took_s = max(time.monotonic() - self._asked, self._watch.longest_gap_s)
            self._asked, self._watch.longest_gap_s = None, 0.0
            self.longest_s = max(self.longest_s, took_s)
            if took_s > LATE_S:
                self.missed += 1
                self._missed_at = time.monotonic()
            await asyncio.sleep(LOOK_S)

    def is_missing(self) -> bool:
        """Now, or a moment ago."""
        now = time.monotonic()
        return now - self._missed_at < 5 * LATE_S or (self._asked is not None and now - self._asked > LATE_S)


# ---------------------------------------------------------------- breaking it


@dataclass(slots=True)
class Tally:
    """What came of one kind of fault on one exchange."""

    planned: int = 0
    starved: int = 0
    struck: int = 0
    reconnects: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0


class Breaker:
    """Follows the plan on one exchange and accounts for each of its reconnects.

    Args:
        offset: With which step of the plan it begins.
    """

    def __init__(
        self,
        exchange: str,
        symbols: Sequence[str],
        watch: Watch,
        pulse: Pulse,
        control: httpx2.AsyncClient,
        seed: int,
        offset: int,
    ) -> None:
        self.exchange = exchange
        self.active: str | None = None
        self.tallies: dict[str, Tally] = {}
        self.problems: list[str] = []
        self.strangers: Counter[str] = Counter()
        """Reconnects without a fault, or for a reason that the fault does not have."""
        self.returned = 0
        """Ways back from the second source."""
        self.starved = 0
        """Reconnects while the pulse was missing."""
        self._symbols = symbols
        self._watch = watch
        self._pulse = pulse
        self._control = control
        self._draw = random.Random(f"{seed} {exchange}")
        self._number = offset
        self._counted: Counter[str] = Counter()
        self._missed = 0
        self._weak = False
        self._second = False

    async def run(self, until: float) -> None:
        """Step by step; none begins that could not be over in time."""
        while True:
            await asyncio.sleep(self._draw.uniform(*PAUSE_S))
            step = PLAN[self._number % len(PLAN)]
            while self.note() or self._weak:
                if time.monotonic() > until or self._watch.ended.is_set():
                    return
                await asyncio.sleep(LOOK_S)
            if time.monotonic() + step.lasts_s > until or self._watch.ended.is_set():
                return
            self.active = step.name
            try:
                await self._take(step)
            finally:
                self.active = None
            self._number += 1

    def note(self, allowed: frozenset[str] = frozenset()) -> Counter[str]:
        """Reconnects since the last call; those that nothing explains become strangers."""
        look = self._watch.now()
        total = Counter({why: int(count) for why, count in look.reconnects.get(self.exchange, {}).items()})
        new, self._counted = total - self._counted, total
        missing = self._pulse.is_missing() or self._pulse.missed > self._missed
        self._missed = self._pulse.missed
        # It is weak from the first sign until all its books are back.
        self._weak = missing or (self._weak and not self._watch.is_well(self.exchange, look))
        for why, count in new.items():
            if why in allowed:
                continue
            if why == "replaced" and self._second:
                self.returned += count
            elif self._weak:
                self.starved += count
            else:
                self.strangers[why] += count
        self._second = look.protocol(self.exchange) != self.exchange
        return Counter({why: count for why, count in new.items() if why in allowed})

    async def _take(self, step: Step) -> None:
        exchange, watch = self.exchange, self._watch
        before = watch.now()
        protocol = before.protocol(exchange)
        self._second = protocol != exchange
        reasons = step.reasons
        if step.name == "announce" and protocol in ANNOUNCING:
            reasons = frozenset({"replaced"})
        tally = self.tallies.setdefault(step.name, Tally())
        tally.planned += 1
        began = time.monotonic()
        numbers = await self._post(step, protocol)
        await asyncio.sleep(max(0.0, began + step.lasts_s - time.monotonic()))
        ended = time.monotonic()

        def reconnected() -> float:
            then, now = before.reconnects.get(exchange, {}), watch.now().reconnects.get(exchange, {})
            return sum(now.get(why, 0) - then.get(why, 0) for why in reasons)

        well_since: float | None = None

        def recovered() -> bool:
            nonlocal well_since
            look = watch.now()
            well = watch.is_well(exchange, look) and (reconnected() > 0 or not step.reconnects)
            well_since = (well_since or look.at) if well else None
            return well_since is not None and look.at - max(well_since, ended) >= SETTLE_S

        back = await watch.until(recovered, RECOVERY_S)
        tally.longest_s = max(tally.longest_s, (well_since or time.monotonic()) - ended)
        struck = await self._struck(numbers)
        tally.struck += struck
        after = watch.now()
        then, now = before.states.get(exchange, {}), after.states.get(exchange, {})
        states = Counter({state: int(now[state] - then.get(state, 0)) for state in now if state != "live"})
        tally.states.update(+states)
        followed = reconnected() > 0
        tally.reconnects.update(self.note(reasons))
        if self._weak:
            tally.starved += 1
        else:
            self._judge(step, protocol, back, followed, struck, +states)

    def _judge(
        self, step: Step, protocol: str, back: bool, reconnected: bool, struck: int, states: Counter[str]
    ) -> None:
        where = f"{step.name} on {protocol}"
        if not back and not self._watch.ended.is_set():
            what = "not all books live again" if reconnected or not step.reconnects else "no reconnect"
            look = self._watch.now()
            counts = f"live {look.live.get(self.exchange, 0):g}, fresh {look.fresh.get(self.exchange, 0)}"
            books = self._watch.books[self.exchange]
            self.problems.append(f"{where}: {what} after {RECOVERY_S:g} s ({counts} of {books})")
        if struck == 0:
            self.problems.append(f"{where}: did not strike")
        frames = any("share" in fault for fault in step.faults)
        blind = step.name in BLIND.get(protocol, ()) or (frames and struck < FEW_STRIKES)
        if step.states and not blind and not step.states & states.keys():
            seen = ", ".join(states) or "no change"
            self.problems.append(f"{where}: no book was {' or '.join(sorted(step.states))} ({seen})")

    async def _post(self, step: Step, protocol: str) -> list[str]:
        cycle = self._number // len(PLAN)
        bodies = []
        for fault in step.faults:
            body = {**fault, "exchange": protocol}
            if fault.get("symbol", "") is None:
                body["symbol"] = self._symbols[cycle % len(self._symbols)]
                if protocol == "kraken" and fault["kind"] == "halt" and cycle % 2:
                    del body["symbol"]  # every second time the exchange itself says so, to all
            bodies.append(body)
        answer = await self._control.post("/faults", content=orjson.dumps(bodies))
        answer.raise_for_status()
        return list(answer.json()["ids"])

    async def _struck(self, numbers: list[str]) -> int:
        answer = await self._control.get("/faults")
        return sum(row["struck"] for row in answer.json()["faults"] if row["id"] in numbers)


# ---------------------------------------------------------------- numbers


@dataclass(frozen=True, slots=True)
class Slope:
    """A least-squares line: its slope and its standard error, in units an hour."""

    per_h: float
    error_per_h: float


def slope(points: Sequence[tuple[float, float]]) -> Slope:
    """Through (seconds, value); the error is widened by the lag-1 autocorrelation of the residuals."""
    count = len(points)
    if count < 3:
        return Slope(0.0, math.inf)
    times, values = [at for at, _ in points], [value for _, value in points]
    fit = statistics.linear_regression(times, values)
    rest = [value - fit.intercept - fit.slope * at for at, value in points]
    squares = sum(one * one for one in rest)
    mean = statistics.fmean(times)
    spread = sum((at - mean) ** 2 for at in times)
    error = math.sqrt(squares / (count - 2) / spread)
    again = sum(a * b for a, b in itertools.pairwise(rest)) / squares if squares else 0.0
    again = min(max(again, 0.0), 0.99)
    return Slope(fit.slope * 3600, error * math.sqrt((1 + again) / (1 - again)) * 3600)


def sparkline(values: Sequence[float], width: int = 72) -> str:
    """Values as a line of blocks, from the least to the most."""
    if not values:
        return ""
    size = max(1, math.ceil(len(values) / width))
    means = [statistics.fmean(values[start : start + size]) for start in range(0, len(values), size)]
    low, high = min(means), max(means)
    blocks = "▁▂▃▄▅▆▇█"
    return "".join(blocks[int((one - low) / ((high - low) or 1) * (len(blocks) - 1))] for one in means)


def _cpu_s(pid: int) -> float:
    """User and system time of a process."""
    try:
        parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------- one run


@dataclass(frozen=True, slots=True)
class Options:
    """What to run. `warm_up_s`: None takes a tenth, at least a minute; half of it is fault-free."""

    seconds: float = 3600.0
    rate: float = 100.0
    seed: int = 1
    faults: bool = True
    warm_up_s: float | None = None
    sample_s: float = 10.0
    logs: Path = LOGS

    def warm_s(self) -> float:
        return max(60.0, self.seconds / 10) if self.warm_up_s is None else self.warm_up_s

    def tail_s(self) -> float:
        """Fault-free at the end."""
        return min(30.0, self.seconds / 10)


@dataclass(slots=True)
class Result:
    """All that was found."""

    options: Options
    checks: list[dict[str, Any]]
    exchanges: list[dict[str, Any]]
    faults: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    cpu: dict[str, float]
    problems: list[str]
    seconds: float

    def failed(self) -> list[dict[str, Any]]:
        return [check for check in self.checks if check["verdict"] == "FAILED"]


class Soak:
    """One run on a simulator and a process of collectors that are there already."""

    def __init__(
        self,
        options: Options,
        watch: Watch,
        symbols: Mapping[str, Sequence[str]],
        control: httpx2.AsyncClient,
        pids: Mapping[str, int],
        stop: asyncio.Event,
    ) -> None:
        self._options = options
        self._watch = watch
        self._pulse = Pulse(watch, control)
        self._pids = pids
        self._stop = stop
        self._breakers = [
            Breaker(name, symbols[name], watch, self._pulse, control, options.seed, index * len(PLAN) // len(symbols))
            for index, name in enumerate(symbols)
        ]
        self._samples: list[dict[str, Any]] = []
        self._quiet: Look | None = None  # at the end of the fault-free phase

    async def run(self, child: asyncio.subprocess.Process) -> Result:
        """From the moment that all books are live until the collectors have ended."""
        options, watch = self._options, self._watch
        if not await watch.until(watch.all_well, 60):
            raise DependencyMissing(f"not all books came up; see the logs in {options.logs}")
        self._began = time.monotonic()
        first = watch.now()
        for one in self._breakers:
            one.note(frozenset(first.reconnects.get(one.exchange, {})))  # what came before the first books
        aside = [asyncio.create_task(self._sample()), asyncio.create_task(self._pulse.run())]
        calm_s = min(10.0, options.warm_s() / 4)
        await self._wait(options.warm_s() / 2 - calm_s)
        calm = await watch.calm(calm_s)
        self._quiet = watch.now()
        for one in self._breakers:
            one.note()
        quiet_strangers = sum((one.strangers for one in self._breakers), Counter[str]())
        until = self._began + options.seconds - options.tail_s()
        breaking = [asyncio.create_task(one.run(until)) for one in self._breakers] if options.faults else []
        await self._wait(options.warm_s() / 2)
        cpu, cpu_at = {name: _cpu_s(pid) for name, pid in self._pids.items()}, time.monotonic()
        await self._wait(self._began + options.seconds - time.monotonic())
        if self._stop.is_set():
            for task in breaking:
                task.cancel()
        for task, one in zip(breaking, self._breakers, strict=False):
            (failure,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(failure, Exception):
                one.problems.append(f"the plan of {one.exchange} ended: {failure!r}")
        wall_s = time.monotonic() - cpu_at
        cpu = {name: (_cpu_s(pid) - cpu[name]) / wall_s for name, pid in self._pids.items()}
        await watch.until(watch.all_well, 30)
        for one in self._breakers:
            one.note()
        last = watch.now()
        calm_end = await watch.calm(calm_s)
        for task in aside:
            task.cancel()
        await asyncio.gather(*aside, return_exceptions=True)
        if child.returncode is None:
            child.terminate()
        await asyncio.wait_for(watch.ended.wait(), 60)
        await child.wait()
        return self._result(first, last, calm, calm_end, cpu, quiet_strangers)

    async def _wait(self, seconds: float) -> None:
        """Until then, or until there is a reason to end now."""
        reasons = [asyncio.create_task(self._stop.wait()), asyncio.create_task(self._watch.ended.wait())]
        await asyncio.wait(reasons, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
        for reason in reasons:
            reason.cancel()

    async def _sample(self) -> None:
        before, options = self._watch.now(), self._options
        while True:
            await asyncio.sleep(options.sample_s)
            look = self._watch.now()
            passed = max(look.at - before.at, 0.001)
            row = {
                "at_s": round(look.at - self._began, 1),
                "rss_kib": round(self._watch.mean_rss_kib()),
                "blocks": look.blocks,
                "tasks": look.tasks,
                "threads": look.threads,
                "fds": look.fds,
                "sockets": look.sockets,
                "load": round(os.getloadavg()[0], 2),
                "frames_per_s": round((sum(look.frames.values()) - sum(before.frames.values())) / passed),
                "ticks_per_s": round((look.books_sent() - before.books_sent()) / passed),
                "books_live": int(sum(look.live.values())),
                "reconnects": int(sum(sum(one.values()) for one in look.reconnects.values())),
                "faults": sum(tally.planned for one in self._breakers for tally in one.tallies.values()),
            }
            before = look
            self._samples.append(row)
            active = ", ".join(f"{one.exchange}: {one.active}" for one in self._breakers if one.active) or "no fault"
            print(
                f"{row['at_s']:6.0f}/{options.seconds:.0f} s  rss {row['rss_kib'] / 1024:.1f} MiB  "
                f"tasks {row['tasks']}  threads {row['threads']}  fds {row['fds']}  "
                f"frames {row['frames_per_s']}/s  ticks {row['ticks_per_s']}/s  "
                f"books {row['books_live']}/{sum(self._watch.books.values())}  "
                f"faults {row['faults']}  reconnects {row['reconnects']}  load {row['load']}  ({active})",
                file=sys.stderr,
                flush=True,
            )

    # ------------------------------------------------ the result

    def _result(
        self,
        first: Look,
        last: Look,
        calm: dict[str, int],
        calm_end: dict[str, int],
        cpu: dict[str, float],
        quiet_strangers: Counter[str],
    ) -> Result:
        options, watch = self._options, self._watch
        assert self._quiet is not None
        problems = [f"{one.exchange}: {words}" for one in self._breakers for words in one.problems]
        strangers = "; ".join(f"{one.exchange}: {_counted(one.strangers)}" for one in self._breakers if one.strangers)
        pulse = self._pulse
        end = watch.end or {"failed": {"all": "ended without a word"}, "tasks": [], "threads": [], "threads_more": 0}
        problems += [f"{name} ended by itself: {words}" for name, words in end["failed"].items()]
        tallies = [(one.exchange, name, tally) for one in self._breakers for name, tally in one.tallies.items()]
        planned = sum(tally.planned for _, _, tally in tallies)
        longest = max(tallies, key=lambda row: row[2].longest_s, default=None)
        rates = self._rates(first, self._quiet)
        rate = statistics.median(rates.values())
        warm = [(row["at_s"], row["rss_kib"]) for row in self._samples if row["at_s"] > options.warm_s()]
        blocks = [(row["at_s"], row["blocks"]) for row in self._samples if row["at_s"] > options.warm_s()]
        memory, warm_s = slope(warm), warm[-1][0] - warm[0][0] if warm else 0.0
        checks: list[dict[str, Any]] = []

        def check(what: str, wanted: object, found: object, verdict: bool | str) -> None:
            words = verdict if isinstance(verdict, str) else "ok" if verdict else "FAILED"
            checks.append({"check": what, "wanted": str(wanted), "found": str(found), "verdict": words})

        check(
            "book updates a second and book",
            f"{options.rate:g}",
            f"{rate:.1f}",
            "ok" if rate > 0.95 * options.rate else "LESS",
        )
        last_third = slope(warm[-len(warm) // 3 :])
        check("memory slope, KiB an hour", "", _words(memory), "")
        check("the same, last third", f"within {FLAT_KIB_PER_H:g}", _words(last_third), _flat(last_third, warm_s / 3))
        check(
            "Python's blocks, slope an hour",
            "no more than its error",
            _words(slope(blocks)),
            _still(slope(blocks), warm_s),
        )
        for name in ("tasks", "threads", "fds"):
            spare = len(self._breakers) + 1 if name == "fds" else 0  # REST connections of five exchanges and a second
            same = calm_end[name] <= calm[name] + spare if calm["well"] and calm_end["well"] else "not calm"
            check(f"{name} when calm", _either(calm[name], spare), calm_end[name], same)
        left = len(end["tasks"]) + max(0, end["threads_more"])
        found = ", ".join([*end["tasks"], *end["threads"]]) or f"{end['threads_more']} threads more"
        check("left after stopping", "nothing", "nothing" if left == 0 else found, left == 0)
        check("reconnects, fault-free phase", 0, sum(quiet_strangers.values()), not quiet_strangers)
        check("reconnects without a fault", 0, strangers or 0, not strangers)
        judged = planned - sum(tally.starved for _, _, tally in tallies)
        check("faults with what must follow", judged, max(0, judged - len(problems)), not problems)
        words = "no fault" if longest is None else f"{longest[2].longest_s:.1f} s ({longest[1]}, {longest[0]})"
        check(
            "longest until live again", f"{RECOVERY_S:g} s", words, longest is None or longest[2].longest_s < RECOVERY_S
        )
        live, books = int(sum(last.live.values())), sum(watch.books.values())
        check("books live at the end", books, live, live == books or ("LATE" if pulse.is_missing() else False))
        words = f"{pulse.missed} times later, {pulse.longest_s:.1f} s at most"
        check("pulse of the processes", f"{LATE_S:g} s", words, "LATE" if pulse.missed else "ok")
        check("ticks dropped", 0, f"{last.dropped:g}", "ok" if last.dropped == 0 else "SOME")
        return Result(
            options,
            checks,
            [self._exchange_row(one, first, last, rates) for one in self._breakers],
            [_fault_row(*row) for row in tallies],
            self._samples,
            {name: round(value, 2) for name, value in cpu.items()},
            problems,
            round(last.at - first.at, 1),
        )

    def _rates(self, first: Look, last: Look) -> dict[str, float]:
        """Book updates a second and book, before any fault: one frame each, but for trades and the faster tops."""
        passed, rates = max(last.at - first.at, 0.001), {}
        for name, books in self._watch.books.items():
            trades = last.ticks.get(name, {}).get("trade", 0) - first.ticks.get(name, {}).get("trade", 0)
            frames = last.frames.get(name, 0) - first.frames.get(name, 0) - trades
            rates[name] = frames / passed / books / (2 if name in ("binance", "bybit") else 1)
        return rates

    def _exchange_row(self, one: Breaker, first: Look, last: Look, rates: Mapping[str, float]) -> dict[str, Any]:
        name, passed = one.exchange, max(last.at - first.at, 0.001)
        reconnects = sum((tally.reconnects for tally in one.tallies.values()), Counter[str]())
        return {
            "exchange": name,
            "books": self._watch.books[name],
            "updates": rates[name],
            "frames": (last.frames.get(name, 0) - first.frames.get(name, 0)) / passed,
            "faults": sum(tally.planned for tally in one.tallies.values()),
            "reconnects": _counted(Counter(last.reconnects.get(name, {}))),
            "by_faults": sum(reconnects.values()),
            "returned": one.returned,
            "starved": one.starved,
            "no_cause": sum(one.strangers.values()),
        }


def _either(count: int, spare: int) -> str:
    return f"{count}" if not spare else f"{count} to {count + spare}"


def _counted(counts: Mapping[str, float]) -> str:
    return ", ".join(f"{count:g} {name}" for name, count in sorted(counts.items())) or "none"


def _words(memory: Slope) -> str:
    if math.isinf(memory.error_per_h):
        return "too few samples"
    return f"{memory.per_h:+,.0f} ± {memory.error_per_h:,.0f}"


def _still(blocks: Slope, seconds: float) -> str:
    if seconds < LEAST_S:
        return "too short"
    return "ok" if blocks.per_h < 2 * blocks.error_per_h else "FAILED"


def _flat(memory: Slope, seconds: float) -> str:
    """Flat or growing only where two standard errors allow no other word."""
    if seconds < LEAST_S:
        return "too short"
    if abs(memory.per_h) + 2 * memory.error_per_h < FLAT_KIB_PER_H:
        return "ok"
    return "FAILED" if memory.per_h - 2 * memory.error_per_h > FLAT_KIB_PER_H else "undecided"


def _fault_row(exchange: str, name: str, tally: Tally) -> dict[str, Any]:
    return {
        "fault": name,
        "exchange": exchange,
        "planned": tally.planned,
        "starved": tally.starved,
        "struck": tally.struck,
        "reconnects": dict(tally.reconnects),
        "states": dict(tally.states),
        "longest_until_live_s": round(tally.longest_s, 1),
    }


def _by_fault(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a kind of fault, in the order of the plan."""
    found = []
    for step in PLAN:
        mine = [row for row in rows if row["fault"] == step.name]
        if mine:
            slowest = max(mine, key=lambda row: row["longest_until_live_s"])
            found.append(
                {
                    "fault": step.name,
                    "planned": sum(row["planned"] for row in mine),
                    "starved": sum(row["starved"] for row in mine),
                    "struck": sum(row["struck"] for row in mine),
                    "reconnects": _counted(sum((Counter(row["reconnects"]) for row in mine), Counter[str]())),
                    "longest_until_live": f"{slowest['longest_until_live_s']:.1f} s, {slowest['exchange']}",
                }
            )
    return found


async def run(
    options: Options, broker: KafkaSettings | None, stop: asyncio.Event, broker_pid: int | None = None
) -> Result:
    """Start the simulator and the collectors, soak them, stop them.

    Args:
        broker: None: ticks are counted, not sent.
        stop: Ends it early, with what was found so far.
    """
    loaded = settings.load()
    options.logs.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ARB_")}
    async with contextlib.AsyncExitStack() as stack:

        async def start(name: str, *arguments: str) -> asyncio.subprocess.Process:
            log = stack.enter_context((options.logs / f"{name}.log").open("wb"))
            child = await asyncio.create_subprocess_exec(
                *tied_to_parent([sys.executable, *arguments]),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C must reach us first
            )
            stack.push_async_callback(_ended, child)
            return child

        rate, seed = f"{options.rate:g}", str(options.seed)
        simulator = await start("simulator", "-m", "services.cli", "simulate", "--rate", rate, "--seed", seed)
        assert simulator.stdout is not None
        said = await simulator.stdout.readline()
        if not said:
            raise DependencyMissing(f"the simulator did not start; see {options.logs / 'simulator.log'}")
        where = orjson.loads(said)
        symbols = {name: loaded.exchanges[name].symbols for name in where["exchanges"]}
        wiring = {
            "exchanges": where["exchanges"],
            "kafka": None if broker is None else broker.model_dump(mode="json"),
            "cache": stack.enter_context(tempfile.TemporaryDirectory(prefix="arb-soak-")),
        }
        child = await start("collectors", __file__, "--collect", orjson.dumps(wiring).decode())
        assert child.stdout is not None
        watch = Watch({name: len(listed) for name, listed in symbols.items()})
        following = asyncio.create_task(watch.follow(child.stdout))
        control = await stack.enter_async_context(
            httpx2.AsyncClient(base_url=where["control_url"], trust_env=False, timeout=60.0)
        )
        pids = {"simulator": simulator.pid, "collectors": child.pid, "bench": os.getpid()}
        if broker_pid is not None:
            pids["broker"] = broker_pid
        try:
            return await Soak(options, watch, symbols, control, pids, stop).run(child)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


async def _ended(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        child.terminate()
        try:
            await asyncio.wait_for(child.wait(), 20)
        except TimeoutError:
            child.kill()
    await child.communicate()  # drains and closes the pipe


# ---------------------------------------------------------------- what people see


def show(result: Result) -> None:
    """Tables on standard output, everything in benchmarks/results/soak.json."""
    console, options = Console(width=None if sys.stdout.isatty() else 120), result.options
    rss = [row["rss_kib"] for row in result.samples]
    if rss:
        low, high = min(rss) / 1024, max(rss) / 1024
        console.print(f"\nRSS of the collectors, {low:.1f} to {high:.1f} MiB", highlight=False)
        console.print(sparkline(rss), highlight=False)
    cpu = ", ".join(f"{name} {cores:.2f}" for name, cores in result.cpu.items())
    console.print(f"cores used: {cpu}\n", highlight=False)
    console.print(
        _table("Exchanges (updates a second and book, fault-free; frames a second, all the time)", result.exchanges)
    )
    if result.faults:
        console.print(_table("Faults, all exchanges", _by_fault(result.faults)))
    for words in result.problems:
        console.print(f"PROBLEM: {words}", markup=False, highlight=False, soft_wrap=True)
    title = f"Soak: {result.seconds:.0f} s, seed {options.seed}, faults {'on' if options.faults else 'off'}"
    report("soak", title, result.checks)
    path = RESULTS / "soak.json"
    document = json.loads(path.read_text())
    document["settings"] = {"seconds": options.seconds, "rate": options.rate, "seed": options.seed}
    for name in ("seconds", "cpu", "exchanges", "faults", "problems", "samples"):
        document[name] = getattr(result, name)
    path.write_text(json.dumps(document, indent=1) + "\n")
    console.print(f"all samples: {path}; logs: {options.logs}", highlight=False, soft_wrap=True)


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column, value in rows[0].items():
        justify: Literal["left", "right"] = "left" if isinstance(value, str) else "right"
        table.add_column(column.replace("_", " "), justify=justify)
    for row in rows:
        table.add_row(*(f"{value:,.1f}" if isinstance(value, float) else str(value) for value in row.values()))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--rate", type=float, default=100.0, help="book updates a second and book; 100: ten times real")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--broker", action=argparse.BooleanOptionalAction, default=True, help="a real Kafka, or none")
    parser.add_argument("--faults", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--logs", type=Path, default=LOGS, help="folder for the processes' logs")
    parser.add_argument("--collect", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.collect:
        process.run_async(lambda stop: collect(orjson.loads(given.collect), stop))
        return
    options = Options(given.seconds, given.rate, given.seed, given.faults, logs=given.logs)
    if options.seconds < options.warm_s() + options.tail_s():
        parser.error(
            f"--seconds must be at least {math.ceil(options.warm_s() + options.tail_s())}: a minute is warm-up"
        )
    found: list[Result] = []

    async def soak(stop: asyncio.Event, broker: KafkaSettings | None, pid: int | None) -> None:
        found.append(await run(options, broker, stop, pid))

    try:
        with contextlib.ExitStack() as stack:
            servers, pid = None, None
            if given.broker:
                broker = stack.enter_context(start_broker(None, lambda words: print(words, file=sys.stderr)))
                servers, pid = broker.kafka, broker.pid
                print(f"broker: {broker.why}", file=sys.stderr)
            process.run_async(lambda stop: soak(stop, servers, pid))
    except ArbiterError as error:
        process.fail(error)
    show(found[0])
    sys.exit(1 if found[0].failed() else 0)


if __name__ == "__main__":
    main()
