"""Detector: cost of a tick by the number of symbols, beside the floor and beside Quix Streams, on the same records.

Floor: consume (the bare client) and parse (orjson). Ours: the service's own reader, shell and engine, its timer of 50
ms by the messages' clock, and a real producer for what comes out. Both read one topic of one partition, so that records
come in the order of their time, as they do live. Rounds alternate; a ratio is the median of those of the rounds; the
first round warms up and is not counted. CPU is that of the whole process, Kafka's own threads included; beside it
stands that of the one thread that does the work, which is the limit on a machine with cores to spare.

Every symbol is the same whatever their number (`market.py`): five exchanges, five updates a second and book, a crossing
in two ticks of a hundred, so as many gaps are open a symbol. More symbols are more ticks a second, as they are live.
Before the clock starts the engine takes in what is needed for a steady number of open gaps. `at 10,000/s` is the engine
alone on the same market where more symbols do not bring more ticks: each then moves more rarely, and a crossing stays
for longer, so more gaps are open at a time. That is the worse case for a timer that looks at all of them.

Two markets beside it: one in which nothing ever crosses, and one as it is between real exchanges, where one stands
above the others for long, by less than fees: all its ticks cross, and nothing new follows from most of them.

Quix Streams runs in an environment of its own (made by the first run); `quix_driver.py` says how much less it does.

    python benchmarks/detector.py [--rounds 5] [--ticks 60000] [--symbols 10 100 1000] [--no-quix] [--quick]
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import market
import orjson
import quix_env
from common import report
from confluent_kafka import Consumer
from market import Crossings, Tick

from services.cli.broker import start_broker
from services.detector.engine import TIMER_NS, Engine, Event
from services.detector.quiet import PLAIN
from services.detector.service import BATCH, Detector
from shared import cluster, kafka, process, settings
from shared.kafka import Record
from shared.kafka.clients import READ_AHEAD
from shared.messages import read_tick
from shared.topics import HOUR_MS, Topic

BEGIN_NS = 1_795_000_000_000_000_000
WARM_S = 7
"""Message time after which as many gaps and outcomes are open as later: a rejection lingers for 1 s, outcomes for 5."""

FIXED_HZ = 10_000
"""Ticks a second of all symbols together in the other variant."""

OTHERS: tuple[Crossings, ...] = ("none", "standing")
"""Markets (`market.ticks`) beside the one with planted crossings: what a tick costs depends on what it brings."""

OUT = "bench-events"


class Spent(NamedTuple):
    """Seconds on the clock, of the process's CPU, and of this thread's."""

    wall: float
    cpu: float
    thread: float


def now() -> Spent:
    return Spent(time.perf_counter(), time.process_time(), time.thread_time())


def between(began: Spent, first: Spent) -> Spent:
    """Until now: by clock and thread from the first record on; CPU from the beginning, because Kafka reads ahead."""
    ended = now()
    return Spent(ended.wall - first.wall, ended.cpu - began.cpu, ended.thread - first.thread)


def settle() -> None:
    """Nothing that was made before is looked at by the garbage collector while the clock runs, as in a service."""
    gc.collect()
    gc.freeze()


@dataclass(frozen=True, slots=True)
class Market:
    """The records of one number of symbols: those that warm up, and those on the topic."""

    symbols: int
    warm: list[Tick]
    timed: list[Tick]

    @property
    def between_timers(self) -> int:
        """Records between two calls of the timer."""
        return max(1, TIMER_NS // market.spacing_ns(self.symbols))


def made(symbols: int, count: int, spacing_ns: int, warm_s: int, *, crossings: Crossings = "planted") -> Market:
    """A market; `count` records of it are timed, after `warm_s` seconds of it."""
    warm = warm_s * market.SECOND_NS // spacing_ns
    found = list(market.ticks(symbols, warm + count, BEGIN_NS, spacing_ns, crossings=crossings))[: warm + count]
    return Market(symbols, found[:warm], found[warm:])


# ---------------------------------------------------------------- the floor


def floor(broker: settings.KafkaSettings, topic: str, count: int) -> Spent:
    """Consume and parse, nothing else."""
    settle()
    began = now()
    config = kafka.reader(broker, "bench")
    consumer = Consumer(config)
    try:
        consumer.assign(kafka.begins(config, [topic], 0))
        loads = orjson.loads
        messages = consumer.consume(1, 20)
        first, seen = now(), 0
        while messages:
            for message in messages:
                loads(message.value())
            seen += len(messages)
            if seen >= count:
                return between(began, first)
            messages = consumer.consume(min(BATCH, count - seen), 5)  # it waits until it has them all
        raise RuntimeError(f"{topic}: only {seen} of {count} records came")
    finally:
        consumer.close()


# ---------------------------------------------------------------- ours


class Out:
    """Where the detector's events go: to Kafka, on one topic of the benchmark's own."""

    def __init__(self, publisher: kafka.Publisher) -> None:
        self._publisher = publisher
        self.published = 0

    def publish(
        self, topic: str, key: str | bytes | None, value: bytes | None, *, then: Callable[[], None] | None = None
    ) -> bool:
        self.published += 1
        return self._publisher.publish(OUT, key, value, then=then)


class Clock:
    """The messages' own."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns


def refuse(record: Record, error: Exception) -> None:
    raise RuntimeError(f"the detector refused a record of the benchmark: {error!r}")


def ours(broker: settings.KafkaSettings, topic: str, found: Market) -> tuple[Spent, int]:
    """The detector as a service, but for its group; with how many events it published."""
    publisher = kafka.Publisher(kafka.event_producer(broker, "bench"), drop_when_full=False)
    out, clock = Out(publisher), Clock(BEGIN_NS)
    detector = Detector(Engine(market.configured()), out, lambda: (), refuse, clock)
    size = found.between_timers
    for at in range(0, len(found.warm), size):
        part = found.warm[at : at + size]
        detector.take([Record(topic, 0, 0, tick.base.encode(), tick.value, 0, []) for tick in part])
        clock.now_ns = part[-1].at_ns
        detector.tick()
        detector.hand_over()
    publisher.flush(60)
    before, count, seen = out.published, len(found.timed), 0
    settle()
    began = now()
    reader = kafka.Reader(kafka.reader(broker, "bench") | READ_AHEAD, [topic], 0)
    try:
        records = reader.read(1, 20)
        first = now()
        while records:
            at = 0
            while at < len(records):
                step = size - seen % size  # up to the next call of the timer
                part = records[at : at + step]
                detector.take(part)
                at, seen = at + len(part), seen + len(part)
                clock.now_ns = found.timed[seen - 1].at_ns
                if seen % size == 0:
                    detector.tick()
            detector.hand_over()  # after each read, as in the service's loop
            if seen >= count:
                return between(began, first), out.published - before
            records = reader.read(BATCH, 5)
        raise RuntimeError(f"{topic}: only {seen} of {count} records came")
    finally:
        reader.close()
        publisher.close(60)


def engine_alone(found: Market) -> tuple[Spent, float]:
    """Parse and engine, no Kafka: time, and how many gaps were open at a time a symbol."""
    engine = Engine(market.configured())
    opened: set[str] = set()
    looks, total, timer_ns = 0, 0, BEGIN_NS
    nothing: Sequence[Event] = ()

    def take(ticks: Sequence[Tick]) -> None:
        nonlocal looks, total, timer_ns
        for tick in ticks:
            quiet, _ = engine.take_quiet([tick.value], 0, tick.at_ns, tick.at_ns)
            events = nothing if quiet else engine.on_message(read_tick(tick.value), tick.at_ns)
            if tick.at_ns >= timer_ns:
                timer_ns += TIMER_NS
                events = [*events, *engine.on_timer(tick.at_ns)]
                looks, total = looks + 1, total + len(opened)
            for event in events:
                name = getattr(event, "rejection_id", None) or getattr(event, "opportunity_id", "")
                if event.kind in ("opportunity", "rejection"):
                    (opened.discard if event.phase == "closed" else opened.add)(name)

    take(found.warm)
    looks = total = 0
    settle()
    began = now()
    take(found.timed)
    return between(began, began), total / max(1, looks) / found.symbols


# ---------------------------------------------------------------- the run


class Measured(NamedTuple):
    """What the rounds of one number of symbols took; the first is not among them."""

    floor: list[Spent]
    ours: list[Spent]
    others: dict[str, tuple[list[Spent], list[Spent]]]
    engine: list[Spent]
    fixed: list[Spent]
    quix: dict[str, list[Spent]]


def middle(spent: Sequence[Spent], what: str) -> float:
    return statistics.median(getattr(one, what) for one in spent)


def ratio(of: Sequence[Spent], to: Sequence[Spent], what: str) -> float:
    """Median of the rounds' ratios."""
    return statistics.median(getattr(a, what) / getattr(b, what) for a, b in zip(of, to, strict=True))


def fill(broker: settings.KafkaSettings, topic: str, found: Market) -> None:
    cluster.apply_topics(broker, [Topic(topic, 1, HOUR_MS, 1, "base asset", "bench", "bench")])
    publisher = kafka.Publisher(kafka.event_producer(broker, "bench"), drop_when_full=False)
    for tick in found.timed:
        publisher.publish(topic, tick.base, tick.value)
    if left := publisher.close(60):
        raise RuntimeError(f"{topic}: {left} records could not be written")


def measure(
    broker: settings.KafkaSettings,
    topic: str,
    found: Market,
    others: dict[str, Market],
    fixed: Market,
    rounds: int,
    states: Sequence[str],
) -> tuple[Measured, float, int]:
    """All contestants in turn; with the open gaps a symbol and the events of one pass."""
    result = Measured([], [], {name: ([], []) for name in others}, [], [], {state: [] for state in states})
    count, opened, published = len(found.timed), 0.0, 0
    for number in range(rounds + 1):
        floor_s = floor(broker, topic, count)
        ours_s, published = ours(broker, topic, found)
        others_s = {
            name: (floor(broker, f"{topic}-{name}", count), ours(broker, f"{topic}-{name}", other)[0])
            for name, other in others.items()
        }
        engine_s, opened = engine_alone(found)
        fixed_s, _ = engine_alone(fixed)
        gc.unfreeze()
        if not number:
            continue
        result.floor.append(floor_s)
        result.ours.append(ours_s)
        for name, (other_floor_s, other_s) in others_s.items():
            result.others[name][0].append(other_floor_s)
            result.others[name][1].append(other_s)
        result.engine.append(engine_s)
        result.fixed.append(fixed_s)
        for state in states:
            took = quix_env.measure(broker.servers, topic, OUT, count, state)
            result.quix[state].append(Spent(took["wall_s"], took["cpu_s"], took["thread_s"]))
    return result, opened, published


class Rows(NamedTuple):
    """Of the four tables."""

    floor: list[dict[str, Any]]
    markets: list[dict[str, Any]]
    engine: list[dict[str, Any]]
    quix: list[dict[str, Any]]

    def add(self, found: Market, took: Measured, opened: float, published: int) -> None:
        symbols, count = found.symbols, len(found.timed)
        each = 1e6 / count
        self.floor.append(
            {
                "symbols": symbols,
                "floor_us": middle(took.floor, "cpu") * each,
                "ours_us": middle(took.ours, "cpu") * each,
                "ratio": ratio(took.floor, took.ours, "cpu"),
                "thread_ratio": ratio(took.floor, took.ours, "thread"),
                "wall_ratio": ratio(took.floor, took.ours, "wall"),
                "floor_per_s": round(count / middle(took.floor, "wall")),
                "ours_per_s": round(count / middle(took.ours, "wall")),
            }
        )
        row: dict[str, Any] = {"symbols": symbols}
        for name, (other_floor, other) in took.others.items():
            row |= {f"{name}_us": middle(other, "cpu") * each, f"{name}_ratio": ratio(other_floor, other, "cpu")}
        self.markets.append(row)
        self.engine.append(
            {
                "symbols": symbols,
                "crossing_%": 100 * sum(tick.crossing for tick in found.timed) / count,
                "gaps_a_symbol": opened,
                "events_per_1000": 1000 * published / count,
                "engine_us": middle(took.engine, "cpu") * each,
                "at_10,000/s_us": middle(took.fixed, "cpu") * each,
            }
        )
        if took.quix:
            row = {"symbols": symbols, "ours_per_s": round(count / middle(took.ours, "wall"))}
            for state, spent in took.quix.items():
                row |= {
                    f"{state}_per_s": round(count / middle(spent, "wall")),
                    f"times_{state}": ratio(spent, took.ours, "wall"),
                    f"times_{state}_cpu": ratio(spent, took.ours, "cpu"),
                }
            self.quix.append(row)


def run(
    broker: settings.KafkaSettings,
    rounds: int,
    count: int,
    numbers: Sequence[int],
    states: Sequence[str],
    warm_s: int = WARM_S,
) -> Rows:
    """Measure `count` ticks for each number of symbols; `states` are those of Quix Streams, none leaves it out."""
    rows = Rows([], [], [], [])
    cluster.apply_topics(broker, [Topic(OUT, 1, HOUR_MS, 1, "base asset", "bench", "bench")])
    for symbols in numbers:
        found = made(symbols, count, market.spacing_ns(symbols), warm_s)
        fixed = made(symbols, count, market.SECOND_NS // FIXED_HZ, warm_s)
        topic = f"bench-{symbols}-{time.time_ns()}"  # its own, even on a cluster that keeps what it is given
        others = {name: made(symbols, count, market.spacing_ns(symbols), warm_s, crossings=name) for name in OTHERS}
        fill(broker, topic, found)
        for name, other in others.items():
            fill(broker, f"{topic}-{name}", other)
        rows.add(found, *measure(broker, topic, found, others, fixed, rounds, states))
    return rows


def slope(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Cost at the largest number of symbols over that at the smallest: 1 is flat."""
    first, last = rows[0], rows[-1]
    found = ", ".join(f"{name.replace('_', ' ')} x{last[name] / first[name]:.2f}" for name in names)
    return f"{last['symbols']} symbols against {first['symbols']}: {found}"


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def with_quix(quick: bool) -> bool:
    """Whether Quix Streams is there; a quick run does not install it."""
    if quick and not quix_env.is_installed():
        say("Quix Streams is not installed, and a quick run does not install it: left out")
        return False
    try:
        if not quix_env.is_installed():
            say("installing Quix Streams into the cache (once, about a minute)")
        quix_env.install()
    except RuntimeError as error:
        say(f"Quix Streams is left out: {error}")
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up (default: 5)")
    parser.add_argument("--ticks", type=int, default=60_000, help="timed in a round, for each number of symbols")
    parser.add_argument("--symbols", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--no-quix", action="store_true", help="leave Quix Streams out")
    parser.add_argument("--quick", action="store_true", help="only whether it runs: 1 round of 3,000 ticks")
    options = parser.parse_args()
    process.look_for_garbage_seldom()  # as the service does, and for the floor, too
    states = quix_env.STATES if not options.no_quix and with_quix(options.quick) else ()
    with start_broker(None, say) as broker:
        if not broker.topics_by_admin:
            sys.exit(f"the benchmark needs topics of its own: {broker.why}")
        if options.quick:
            rows = run(broker.kafka, 1, 3000, [10, 20], states[:1], warm_s=1)
        else:
            rows = run(broker.kafka, options.rounds, options.ticks, options.symbols, states)
    if PLAIN is not None:
        say(f"ours is Python alone: {PLAIN[0]}")
    ending = "-quick" if options.quick else ""
    report(f"detector{ending}", "Detector: CPU a tick beside the floor (target: 0.6 of its rate)", rows.floor)
    print(slope(rows.floor, ("floor_us", "ours_us")))
    report(
        f"detector-markets{ending}",
        "Detector: the same where nothing crosses, and where all stands apart",
        rows.markets,
    )
    report(
        f"detector-engine{ending}", "Detector: the engine alone, by the number of symbols (target: flat)", rows.engine
    )
    print(slope(rows.engine, ("engine_us", "at_10,000/s_us")))
    if rows.quix:
        title = f"Detector: ticks a second beside Quix Streams {quix_env.VERSION} (books in its store, in memory)"
        report(f"detector-quix{ending}", title, rows.quix)


if __name__ == "__main__":
    main()
