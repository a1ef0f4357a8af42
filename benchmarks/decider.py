"""Decider: what it adds to its slowest model, how many decisions it makes without models, whether its memory is flat.

A real broker, the real `arb decide`, and a model server in a process of its own (`decider_driver.py`), which notes for
each call when the whole request had arrived in its kernel and when its answer left. Everything is on this machine,
under one clock.

Added: opportunities of many coins at a steady rate; all three models are needed for each decision, and each takes a
time drawn between two. "Slowest" is the longest of a decision's three calls, by the server's notes.
- inside: from the decider's taking up of the opportunity to its decision (`admitted_ns`, `decided_ns` of the audit),
  less slowest. It holds the rules, three prompts, guards, money (written to its file), the HTTP client, the sockets
  both ways, parsing, the verdict and the last check.
- waiting: from the opportunity's send to the taking up: Kafka once, decoding, and the wait for one of the panels.
- whole: from the opportunity's send to the decision in a reader's hands, less slowest. It holds Kafka twice.
- bare panel: three questions of these sizes sent at once by bare aiohttp at the same rate, less slowest: no decider in
  Python that asks three models is below it. No Kafka in it.
- relay: `relay.py` in the decider's place, with an opportunity and a decision's size: Kafka twice and nothing else.
Twice: with a core for the contestant, on which neither broker nor sender nor models run (they are other machines, or
none of a service's affair), and with everything on all cores.

Rules only: a backlog that is too old for models, decided as fast as it goes; from the first to the last decision by the
time that their records carry. Floor: the same clients and classes validate each opportunity and write one message of a
decision's size; "floor with audit" writes the audit's size too, as the decider does.

Memory: the same backlog, longer; Python's blocks after a full collection, and resident memory, over the decisions after
those that fill the tables that are bounded (100,000 ids of what was decided).

The opportunities go to the real topic: a cluster of yours is used only with --external.

    python benchmarks/decider.py [--rate 50] [--seconds 30] [--rounds 2] [--backlog 50000] [--decisions 100000]
        [--only added|rules|memory] [--cores own|shared|both] [--quick] [--external]
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import latency
import orjson
from common import report
from latency import percentile

from services.cli import jars
from services.cli.broker import Broker, start_broker
from services.cli.jars import tied_to_parent
from shared import cluster, kafka, topics
from shared.messages import Opportunity
from shared.settings import KafkaSettings
from shared.topics import EVENT_PARTITIONS, HOUR_MS, Topic

DRIVER = Path(__file__).with_name("decider_driver.py")
COINS = 200
"""A coin comes again after four seconds at 50 a second: never while an earlier decision of it is on its way."""

LATENCY_MS = (100.0, 300.0)
"""The slowest of three takes 250 ms on average: 12.5 panels in flight at 50 a second."""

PANELS = 16
RELAYED = "bench-decider-relayed"
FLOOR = "bench-decider-floor"
MARK = '"kind":"opportunity"'
CASH = {"binance": "USDT", "coinbase": "USD", "kraken": "USD", "bybit": "USDT", "okx": "USDT"}
START_S = 40.0
STEADY_S = 3.0
QUEUE_S = 0.6
"""What takes longer has waited: the slowest model takes 0.3 s."""
LAST_S = 4.0
REMEMBERED = 100_000
"""Ids that the decider keeps (`services/decider/service.py`): memory rises until they are there."""

KEYS = {
    "OPENAI_API_KEY": "sk-for-the-benchmark-0000",
    "GEMINI_API_KEY": "AIza-for-the-benchmark-000000000000000",
    "DEEPSEEK_API_KEY": "sk-for-the-benchmark-0000",
}

MS = 1_000_000


# ---------------------------------------------------------------- what is sent


def opportunity(opportunity_id: str, number: int, base: str, now_ns: int) -> bytes:
    """A gap between Binance and Kraken, five levels a side as the detector sends them. `number` is its profit (USD)."""
    bids = [[99.9 - n / 10, 1.25 + n] for n in range(5)]
    asks = [[100.1 + n / 10, 1.25 + n] for n in range(5)]
    leg = {
        "vwap": "100.1234",
        "limit": "100.2",
        "fee_bps": "10",
        "levels": 2,
        "alive_age_ms": 20,
        "book_age_ms": 50,
        "bids": bids,
        "asks": asks,
    }
    return Opportunity.model_validate(
        {
            "opportunity_id": opportunity_id,
            "phase": "opened",
            "base": base,
            "buy": {"exchange": "binance", "symbol": f"{base}-USDT", **leg},
            "sell": {"exchange": "kraken", "symbol": f"{base}-USD", **leg},
            "rates": [],
            "size": "12.5",
            "notional_usd": "30000",
            "profit_usd": str(number),
            "naive_bps": "120",
            "net_bps": "30",
            "closed_loop_bps": "25",
            "depth_limited": False,
            "opened_ns": now_ns - 150 * MS,
            "detected_ns": now_ns,
            "expires_ns": now_ns + 5000 * MS,
            "peak_net_bps": "30",
        }
    ).encode()


def coin(number: int) -> str:
    return f"C{number % COINS}"


def settings_text(base_url: str, state_file: Path) -> str:
    """An `arb.toml`: the coins everywhere, all models at one address, no limit of money or calls in the way."""
    coins = [f"C{n}" for n in range(COINS)]
    lines = [
        "[assets]",
        f"allow = {json.dumps(coins)}",
        "[decider]",
        f"max_panels_in_flight = {PANELS}",
        "verdict_ttl_ms = 0",
        "threshold = 900",  # only all three models together reach it
        f"state_file = {json.dumps(str(state_file))}",
        *(f'max_{cap}_usd = "1000000"' for cap in ("call", "opportunity", "minute", "day")),
    ]
    for exchange, cash in CASH.items():
        fees = '[{ valid_from = 2020-01-01, taker_bps = "10" }]'
        lines += [f"[exchanges.{exchange}]", f"symbols = {json.dumps([f'{base}-{cash}' for base in coins])}"]
        lines += [f"fees = {fees}"]
    for provider in ("openai", "gemini", "deepseek"):
        lines += [f"[providers.{provider}]", f"base_url = {json.dumps(base_url)}", 'max_day_usd = "1000000"']
        lines += ["burst = 100000", "calls_per_s = 100000", "tokens_per_minute = 1000000000"]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- the processes


@contextlib.contextmanager
def model_server(notes: Path, span_ms: tuple[float, float]) -> Iterator[str]:
    """Its base URL; at the end of the block its notes are in the file.

    Raises:
        RuntimeError: it did not come up, or did not end well.
    """
    case = {"latency_ms": span_ms, "seed": 1, "notes": str(notes)}
    process = subprocess.Popen(
        tied_to_parent([sys.executable, str(DRIVER), "models", json.dumps(case)]), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the model server did not come up")
        yield json.loads(line)["base_url"]
    finally:
        process.terminate()
        try:
            code = process.wait(15)
        finally:
            process.kill()
            process.stdout.close()
    if code != 0:
        raise RuntimeError(f"the model server ended with {code}")


def environment(broker: KafkaSettings, folder: Path, base_url: str) -> dict[str, str]:
    """Variables for a decider."""
    file = folder / "arb.toml"
    file.write_text(settings_text(base_url, folder / f"{uuid.uuid4().hex}.sqlite"))
    return {
        "ARB_CONFIG": str(file),
        "ARB_KAFKA_SERVERS": broker.servers,
        "ARB_KAFKA_OPTIONS": json.dumps(broker.options),
        "ARB_LOG_LEVEL": "warning",
        **KEYS,
    }


def decider(
    broker: KafkaSettings, folder: Path, base_url: str
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    return latency.process(["-m", "services.cli", "decide"], environment(broker, folder, base_url))


def relay(broker: KafkaSettings, size: int) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    case = {
        "servers": broker.servers,
        "options": broker.options,
        "group": f"bench-relay-{uuid.uuid4()}",
        "topic": RELAYED,
        "size": size,
        "mark": MARK,
    }
    return latency.process([str(Path(__file__).with_name("relay.py")), json.dumps(case)], {})


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------- cores


@contextlib.contextmanager
def on_cores(cores: Collection[int]) -> Iterator[None]:
    """What this thread starts in the block (processes, threads) runs on these cores; none: wherever it likes."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def kept_to(
    cores: Collection[int], contestant: contextlib.AbstractContextManager[subprocess.Popen[bytes]]
) -> Iterator[subprocess.Popen[bytes]]:
    """The contestant, started on these cores."""
    with contextlib.ExitStack() as stack:
        with on_cores(cores):
            started = stack.enter_context(contestant)
        yield started


def shared_out(own: bool) -> tuple[set[int], set[int]]:
    """Cores of everything else, and of the contestant; empty: all."""
    if not own:
        return set(), set()
    cores = sorted(os.sched_getaffinity(0))
    return set(cores[:-1]), {cores[-1]}


# ---------------------------------------------------------------- added to the slowest model


@dataclass
class Run:
    """One contestant in one round: moments by `perf_counter`, by the opportunity's number."""

    tag: str
    sent: dict[int, tuple[float, int]] = field(default_factory=dict)
    came: dict[int, float] = field(default_factory=dict)
    audits: list[bytes] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    late: int = 0

    def id_of(self, number: int) -> str:
        return f"{self.tag}{number:016x}"

    def number_of(self, opportunity_id: str) -> int | None:
        return int(opportunity_id[16:], 16) if opportunity_id.startswith(self.tag) else None

    def is_steady(self, count: int) -> bool:
        """Whether the newest so many came without a queue before them."""
        newest = sorted(self.came.copy())[-count:]
        return all(self.came[number] - self.sent[number][0] < QUEUE_S for number in newest)


def send(run: Run, broker: KafkaSettings, topic: str, rate: float, stop: threading.Event) -> None:
    """Opportunities at a steady rate, until told to stop. The first is number 1."""
    publisher = kafka.Publisher(kafka.event_producer(broker, "bench"), drop_when_full=False)
    number, due = 0, time.perf_counter()
    try:
        while not stop.is_set():
            number, due = number + 1, due + 1 / rate
            now_ns = time.time_ns()
            value = opportunity(
                run.id_of(number), number, coin(number), now_ns + int((due - time.perf_counter()) * 1e9)
            )
            wait_s = due - time.perf_counter()
            if wait_s > 0:
                time.sleep(wait_s)  # the rate itself
            at = time.perf_counter()
            run.late += at - due > 0.001
            run.sent[number] = at, time.time_ns()
            publisher.publish(topic, coin(number), value)
            due = max(due, at - 0.1)
    finally:
        publisher.close()


def receive(run: Run, reader: kafka.Reader, stop: threading.Event) -> None:
    """Decisions (or what a relay wrote) and audits, until told to stop."""
    while not stop.is_set():
        records = reader.read(500, 0.05)
        at = time.perf_counter()
        for record in records:
            value = record.value or b""
            if record.topic == topics.AUDIT:
                run.audits.append(value)
                continue
            number = run.number_of(orjson.loads(value)["opportunity_id"])
            if number is not None:
                run.came[number] = at
                run.sizes.append(len(value))


class Measured(NamedTuple):
    """What was counted of a run: numbers and the moments from which on they count."""

    run: Run
    numbers: list[int]
    missing: int


def measure(
    contestant: contextlib.AbstractContextManager[subprocess.Popen[bytes]],
    broker: KafkaSettings,
    sent_to: str,
    read_from: Sequence[str],
    rate: float,
    seconds: float,
) -> Measured:
    """Start it, wait until it answers and has settled, then count what is sent in `seconds`.

    Raises:
        RuntimeError: it ended, or did not answer.
    """
    run, stop_sending, stop_reading = Run(uuid.uuid4().hex[:16]), threading.Event(), threading.Event()
    reader = kafka.Reader(kafka.reader(broker, "bench"), list(read_from), None)
    receiver = threading.Thread(target=receive, args=(run, reader, stop_reading), daemon=True)
    sender = threading.Thread(target=send, args=(run, broker, sent_to, rate, stop_sending), daemon=True)
    try:
        with contestant as started:
            receiver.start()
            sender.start()
            wait_until(lambda: len(run.came) >= rate, START_S, started, read_from[0])
            # What had come before it was up is a queue, which goes slowly where nearly all panels are busy anyway. One
            # that does not go at all is not for us to hide.
            with contextlib.suppress(RuntimeError):
                wait_until(lambda: run.is_steady(int(rate)), START_S, started, read_from[0])
            time.sleep(STEADY_S)  # not counted: start-up of clients and caches
            first = max(run.sent) + 1
            time.sleep(seconds)  # what is measured
            stop_sending.set()
            sender.join()
            numbers = [number for number in run.sent if number >= first]
            end = time.perf_counter() + LAST_S
            while any(number not in run.came for number in numbers) and time.perf_counter() < end:
                time.sleep(0.05)  # the last ones are on their way to the reader's thread
    finally:
        stop_sending.set()
        stop_reading.set()
        for thread in (sender, receiver):
            if thread.ident is not None:
                thread.join(10)
        reader.close()
    there = [number for number in numbers if number in run.came]
    return Measured(run, there, len(numbers) - len(there))


def wait_until(there: Callable[[], bool], limit_s: float, started: subprocess.Popen[bytes], where: str) -> None:
    """Raises RuntimeError: it is not there in time. One that ended says so itself at the end of its block."""
    end = time.perf_counter() + limit_s
    while not there() and started.poll() is None:
        if time.perf_counter() > end:
            raise RuntimeError(f"not enough came on {where} within {limit_s:g} s")
        time.sleep(0.05)  # another process comes up: what it writes is the sign


@dataclass
class Added:
    """Milliseconds, each for every decision counted."""

    inside: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    slowest: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    relay: list[float] = field(default_factory=list)
    inside_p99: list[float] = field(default_factory=list)
    missing: int = 0
    not_full: int = 0
    most_in_flight: int = 0
    sent_late: int = 0


def take(added: Added, found: Measured, notes: Path) -> None:
    """Put audits and the server's notes together."""
    took: dict[int, list[float]] = {}
    moments: list[tuple[int, int]] = []
    for line in notes.read_bytes().splitlines():
        _, number, came_ns, left_ns = orjson.loads(line)
        took.setdefault(number, []).append((left_ns - came_ns) / MS)
        moments += [(came_ns, 1), (left_ns, -1)]
    calls = 0
    for _, change in sorted(moments):
        calls += change
        added.most_in_flight = max(added.most_in_flight, calls)
    run, wanted, before = found.run, set(found.numbers), len(added.inside)
    for value in run.audits:
        audit = orjson.loads(value)
        number = run.number_of(audit["opportunity"]["opportunity_id"])
        if number is None or number not in wanted:
            continue
        calls_ms = took.get(number, [])
        if audit["decision"]["mode"] != "full" or len(calls_ms) != 3:
            added.not_full += 1
            continue
        slowest = max(calls_ms)
        sent_s, sent_ns = run.sent[number]
        added.slowest.append(slowest)
        added.inside.append((audit["decision"]["decided_ns"] - audit["admitted_ns"]) / MS - slowest)
        added.waiting.append((audit["admitted_ns"] - sent_ns) / MS)
        added.whole.append((run.came[number] - sent_s) * 1000 - slowest)
    if len(added.inside) > before:
        added.inside_p99.append(percentile(added.inside[before:], 0.99))
    added.missing += found.missing
    added.sent_late += run.late


def bare_panels(
    notes: Path, audit: bytes, rate: float, seconds: float, span_ms: tuple[float, float], cores: Collection[int] = ()
) -> list[float]:
    """What each panel of bare calls took (ms), less the slowest of its models. The first second is not counted."""
    record = orjson.loads(audit)
    asked = {call["role"]: call["model_asked"] for call in record["decision"]["roles"]}
    questions = [{**question, "model": asked[question["role"]]} for question in record["questions"]]
    with model_server(notes, span_ms) as base_url:
        case = {"base_url": base_url, "rate": rate, "count": round(rate * (seconds + 1)), "questions": questions}
        command = tied_to_parent([sys.executable, str(DRIVER), "panels", json.dumps(case)])
        with on_cores(cores):
            took = dict(orjson.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
    models: dict[int, list[float]] = {}
    for line in notes.read_bytes().splitlines():
        _, number, came_ns, left_ns = orjson.loads(line)
        models.setdefault(number, []).append((left_ns - came_ns) / MS)
    return [took[number] - max(models[number]) for number in took if number >= rate]


def added_time(
    broker: KafkaSettings,
    folder: Path,
    rate: float,
    seconds: float,
    rounds: int,
    span_ms: tuple[float, float] = LATENCY_MS,
    cores: Collection[int] = (),
) -> tuple[list[dict[str, Any]], Added, list[bytes]]:
    """Rows of the table, all that was measured, and an audit as it came (the other parts want its size).

    Args:
        cores: The contestants', if they have some of their own: broker and this process are to be on others.
    """
    cluster.apply_topics(broker, [Topic(RELAYED, EVENT_PARTITIONS, HOUR_MS, 1, "base asset", "bench", "bench")])
    added, size, audits = Added(), 0, []
    for number in range(rounds):
        notes = folder / f"notes-{number}"
        with model_server(notes, span_ms) as base_url:
            found = measure(
                kept_to(cores, decider(broker, folder, base_url)),
                broker,
                topics.OPPORTUNITIES,
                [topics.DECISIONS, topics.AUDIT],
                rate,
                seconds,
            )
        take(added, found, notes)
        size, audits = round(statistics.median(found.run.sizes)), found.run.audits
        added.bare += bare_panels(folder / f"bare-{number}", audits[-1], rate, seconds, span_ms, cores)
        relayed = kept_to(cores, relay(broker, size))
        bare = measure(relayed, broker, topics.ticks("binance"), [RELAYED], rate, seconds)
        added.relay += [(bare.run.came[n] - bare.run.sent[n][0]) * 1000 for n in bare.numbers]
        added.missing += bare.missing
    if not added.inside:
        raise RuntimeError(f"no decision was made by all three models ({added.not_full} were not)")
    rows = [
        {
            "what": what,
            "n": len(values),
            "p50_ms": percentile(values, 0.5),
            "p99_ms": percentile(values, 0.99),
            "most_ms": max(values),
        }
        for what, values in (
            ("slowest model (its own time)", added.slowest),
            ("added inside", added.inside),
            ("waiting before it", added.waiting),
            ("whole path, less the model", added.whole),
            ("bare panel, less the model", added.bare),
            ("bare relay", added.relay),
        )
    ]
    return rows, added, audits


# ---------------------------------------------------------------- rules only


def fill(broker: KafkaSettings, count: int, tag: str) -> None:
    """A backlog that is older than `decider.max_age_ms`."""
    publisher = kafka.Publisher(kafka.event_producer(broker, "bench"), drop_when_full=False)
    old_ns = time.time_ns() - 60_000 * MS
    mark = "f" * 32
    values = [opportunity(mark, 7, coin(number), old_ns).partition(mark.encode()) for number in range(COINS)]
    for number in range(count):
        before, _, after = values[number % COINS]
        publisher.publish(topics.OPPORTUNITIES, coin(number), b"%s%s%016x%s" % (before, tag.encode(), number, after))
    if left := publisher.close(60):
        raise RuntimeError(f"{left} opportunities could not be written")


class Speed(NamedTuple):
    """What came out on a topic: how many, seconds from the first to the last by their records, CPU of the process."""

    n: int
    seconds: float
    cpu_us: float

    @property
    def per_s(self) -> float:
        return (self.n - 1) / self.seconds


def drained(
    contestant: contextlib.AbstractContextManager[subprocess.Popen[bytes]],
    broker: KafkaSettings,
    topic: str,
    count: int,
    limit_s: float,
) -> Speed:
    """Start it on a backlog of `count` and wait for as many records on the topic.

    Raises:
        RuntimeError: it ended, or they did not come.
    """
    reader = kafka.Reader(kafka.reader(broker, "bench"), [topic], None)
    reader.read(1, 1.0)  # from now on
    first = last = seen = 0
    used = used_at_first = 0.0
    seen_at_first = 0
    try:
        with contestant as started:
            end = time.perf_counter() + limit_s
            while seen < count and started.poll() is None:
                if time.perf_counter() > end:
                    raise RuntimeError(f"only {seen} of {count} came on {topic} within {limit_s:g} s")
                for record in reader.read(5000, 0.2):
                    seen += 1
                    first = min(first or record.timestamp_ms, record.timestamp_ms)
                    last = max(last, record.timestamp_ms)
                if seen and not seen_at_first and started.poll() is None:
                    seen_at_first, used_at_first = seen, cpu_s(started.pid)
                if seen >= count and started.poll() is None:
                    used = cpu_s(started.pid)
    finally:
        reader.close()
    each = (used - used_at_first) / max(1, seen - seen_at_first) * 1e6
    return Speed(seen, max(0.001, (last - first) / 1000), each)


def floor(
    broker: KafkaSettings, written: Sequence[bytes]
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    case = {
        "servers": broker.servers,
        "options": broker.options,
        "group": f"bench-floor-{uuid.uuid4()}",
        "written": [value.hex() for value in written],
        "out": FLOOR,
    }
    return latency.process([str(DRIVER), "floor", json.dumps(case)], {})


def rules_only(
    broker: KafkaSettings, folder: Path, count: int, rounds: int, limit_s: float = 300.0
) -> tuple[list[dict[str, Any]], float]:
    """Rows of the table, and ours over the floor (median of the rounds' ratios)."""
    cluster.apply_topics(broker, [Topic(FLOOR, EVENT_PARTITIONS, HOUR_MS, 1, "base asset", "bench", "bench")])
    ours: list[Speed] = []
    floors: list[Speed] = []
    both: list[Speed] = []
    decision, audit = b"", b""
    for _ in range(rounds):
        fill(broker, count, uuid.uuid4().hex[:16])
        with audits_of(broker) as first_audit:
            ours.append(
                drained(decider(broker, folder, "http://127.0.0.1:1/v1"), broker, topics.DECISIONS, count, limit_s)
            )
            audit = audit or first_audit()
        decision = orjson.dumps(orjson.loads(audit)["decision"])
        floors.append(drained(floor(broker, [decision]), broker, FLOOR, count, limit_s))
        two = drained(floor(broker, [decision, audit]), broker, FLOOR, 2 * count, limit_s)
        both.append(Speed(two.n // 2, two.seconds, two.cpu_us * 2))
    rows = [
        {
            "what": what,
            "messages": found[0].n,
            "a_second": round(statistics.median(one.per_s for one in found)),
            "cpu_us": statistics.median(one.cpu_us for one in found),
            "bytes_out": size,
        }
        for what, found, size in (
            ("rules only", ours, len(decision) + len(audit)),
            ("floor", floors, len(decision)),
            ("floor with audit", both, len(decision) + len(audit)),
        )
    ]
    return rows, statistics.median(a.per_s / b.per_s for a, b in zip(ours, floors, strict=True))


@contextlib.contextmanager
def audits_of(broker: KafkaSettings) -> Iterator[Callable[[], bytes]]:
    """A function that gives the first audit that was written since the block began."""
    reader = kafka.Reader(kafka.reader(broker, "bench"), [topics.AUDIT], None)
    reader.read(1, 1.0)  # from now on

    def first() -> bytes:
        end = time.perf_counter() + 10
        while time.perf_counter() < end:
            for record in reader.read(1, 0.2):
                return record.value or b""
        raise RuntimeError(f"nothing came on {topics.AUDIT}")

    try:
        yield first
    finally:
        reader.close()


# ---------------------------------------------------------------- memory


def memory(
    broker: KafkaSettings, folder: Path, warm: int, count: int, every_s: float = 2.0, limit_s: float = 600.0
) -> dict[str, Any]:
    """A row: what `count` decisions left behind, after `warm` others."""
    fill(broker, warm + count, uuid.uuid4().hex[:16])
    notes = folder / "memory"
    case = {"notes": str(notes), "every_s": every_s}
    watched = latency.process(
        [str(DRIVER), "watched", json.dumps(case)], environment(broker, folder, "http://127.0.0.1:1/v1")
    )
    drained(watched, broker, topics.DECISIONS, warm + count, limit_s)
    rows = [orjson.loads(line) for line in notes.read_bytes().splitlines()]
    counted = [row for row in rows if warm <= row[0]]
    if len(counted) < 3:
        raise RuntimeError(f"only {len(counted)} looks at the memory after {warm} decisions: ask for more decisions")
    at = [row[0] / 100_000 for row in counted]
    blocks, mib = ([row[column] for row in counted] for column in (1, 2))
    return {
        "decisions": count,
        "warm": warm,
        "blocks_warm": round(blocks[0]),
        "blocks_end": round(blocks[-1]),
        "blocks_per_100,000": statistics.linear_regression(at, blocks).slope,
        "rss_MiB_warm": mib[0] / 1024,
        "rss_MiB_end": mib[-1] / 1024,
        "rss_MiB_per_100,000": statistics.linear_regression(at, mib).slope / 1024,
    }


# ---------------------------------------------------------------- the run


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def part_added(options: argparse.Namespace, rate: float, seconds: float, rounds: int, own: bool, ending: str) -> None:
    """Measure and report what is added, with a broker that is where everything else is."""
    span_ms: tuple[float, float] = (options.latency_ms[0], options.latency_ms[1])
    others, cores = shared_out(own)
    with (
        on_cores(others),
        start_broker(None, say, java=jars.ROOMY) as broker,
        tempfile.TemporaryDirectory() as text,
    ):
        need_topics(broker)
        rows, added, _ = added_time(broker.kafka, Path(text), rate, seconds, rounds, span_ms, cores)
    where = "on a core of its own" if own else "on the cores of broker, sender and models"
    title = f"Decider {where}: {rate:g} opportunities a second (target: added inside, p99 at most 5 ms)"
    report(f"decider-added{'' if own else '-shared'}{ending}", title, rows)
    print(f"added inside, p99 of each round: {', '.join(f'{value:.2f}' for value in added.inside_p99)}")
    print(
        f"missing {added.missing}, not by all three models {added.not_full}, sent late {added.sent_late}, "
        f"at most {added.most_in_flight} calls at a time ({PANELS * 3} allowed)"
    )


def need_topics(broker: Broker) -> None:
    if not broker.topics_by_admin:
        sys.exit(f"the benchmark needs topics of its own: {broker.why}")


def main() -> None:
    can_keep = hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=50, help="opportunities a second (default: 50)")
    parser.add_argument("--seconds", type=float, default=30, help="counted in each round (default: 30)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--latency-ms", type=float, nargs=2, default=LATENCY_MS, help="a model's, drawn between")
    parser.add_argument("--backlog", type=int, default=50_000, help="opportunities for rules only (default: 50000)")
    parser.add_argument("--decisions", type=int, default=100_000, help="over which memory is looked at")
    parser.add_argument("--only", choices=("added", "rules", "memory"), help="only one of the three")
    parser.add_argument(
        "--cores",
        choices=("own", "shared", "both"),
        default="both" if can_keep else "shared",
        help="where what is added is measured: on a core of its own, on those of everything else, or on both in turn",
    )
    parser.add_argument("--quick", action="store_true", help="only whether it runs")
    parser.add_argument(
        "--external", action="store_true", help="use the cluster of ARB_KAFKA_SERVERS, real topics and all"
    )
    options = parser.parse_args()
    if os.environ.get("ARB_KAFKA_SERVERS") and not options.external:
        sys.exit("ARB_KAFKA_SERVERS is set: invented opportunities would go to that cluster; --external allows it")
    if options.cores != "shared" and not can_keep:
        sys.exit(
            "--cores: this machine has one core, or does not keep processes to some: only `shared` can be measured"
        )
    rate, seconds, rounds = options.rate, options.seconds, options.rounds
    backlog, warm, decisions = options.backlog, REMEMBERED + 20_000, options.decisions
    if options.quick:
        rate, seconds, rounds, backlog, warm, decisions = 20, 2, 1, 2000, 2000, 6000
    ending = "-quick" if options.quick else ""
    if options.only in (None, "added"):
        for own in (True, False):
            if options.cores in ("both", "own" if own else "shared"):
                part_added(options, rate, seconds, rounds, own, ending)
    if options.only == "added":
        return
    with start_broker(None, say) as broker, tempfile.TemporaryDirectory() as text:
        need_topics(broker)
        folder = Path(text)
        if options.only in (None, "rules"):
            rows, ratio = rules_only(broker.kafka, folder, backlog, rounds)
            report(f"decider-rules{ending}", "Decider: rules only (target: 5,000 decisions a second)", rows)
            print(f"ours over the floor: {ratio:.2f}")
        if options.only in (None, "memory"):
            row = memory(broker.kafka, folder, warm, decisions, 0.1 if options.quick else 2.0)
            report(f"decider-memory{ending}", "Decider: memory (target: flat)", [row])


if __name__ == "__main__":
    main()
