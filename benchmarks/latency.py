"""From the send of the tick that opens a gap to the opportunity in a reader's hands, beside a bare relay.

One process, this one, sends ticks of five exchanges at a steady rate and reads what comes; its clock takes both times.
Between them is a real broker and another process: `arb detect`, or `relay.py`, which reads the same topics with the
same settings and writes a message of an opportunity's size at the same ticks, without looking at anything else. So a
relay is what Kafka itself costs: produce, consume, produce, consume. Both take turns, each started anew.

Every third tick of one exchange's books crosses one other book by enough to pay, and the next one takes it back: each
gap is a new one (500 ms without it lie between, `detector.close_after_ms` is 250). `detector.persistence_ms` is 0, all
else is as the settings have it. The ticks go to the real topics: a cluster of yours is used only with --external.

    python benchmarks/latency.py [--rate 200] [--seconds 30] [--rounds 3] [--quick] [--external]
"""

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from common import report
from market import EXCHANGES, levels

from services.cli import jars
from services.cli.broker import start_broker
from services.cli.jars import tied_to_parent
from shared import cluster, kafka, topics
from shared.messages import book_value
from shared.settings import KafkaSettings
from shared.topics import EVENT_PARTITIONS, HOUR_MS, Topic

COINS = 10
CYCLE = 3
"""Ticks of a book from one gap to the next."""

ABOVE = 0.0030
WIDE = 0.0050
"""The exchanges that have no part in the gap quote so far from the price that nothing crosses them."""

RELAYED = "bench-relayed"
BYTES = 1420
"""Of an opportunity here, and so of what the relay writes (the column `bytes` shows both)."""

MARK = '"exchange_ns":1,'
START_S = 40.0
STEADY_S = 2.0
LAST_S = 2.0
"""What is not there so long after the last tick is counted as missing."""

SETTINGS = """
[detector]
persistence_ms = 0
[exchanges.binance]
fees = [{ valid_from = 2020-01-01, taker_bps = "5" }]
[exchanges.coinbase]
fees = [{ valid_from = 2020-01-01, taker_bps = "5" }]
"""

Key = tuple[str, int]
"""Coin and `received_ns` of the tick that opens the gap."""


# ---------------------------------------------------------------- what is sent


class Sent(NamedTuple):
    """One tick; `opens` says whether it opens a gap."""

    exchange: str
    base: str
    received_ns: int
    value: bytes
    opens: bool


def tick(number: int) -> Sent:
    """Tick `number`: all books in turn, the five exchanges of a coin one after the other."""
    turn, which = divmod(number, COINS * len(EXCHANGES))
    coin, place = divmod(which, len(EXCHANGES))
    exchange, base, received_ns = EXCHANGES[place], f"C{coin}", time.time_ns()
    opens = place == 0 and (turn + coin) % CYCLE == 0
    bids, asks = levels(100.0 * (1 + ABOVE) if opens else 100.0, [1.0 + n for n in range(10)])
    if place > 1:
        bids = [(round(price * (1 - WIDE), 4), size) for price, size in bids]
        asks = [(round(price * (1 + WIDE), 4), size) for price, size in asks]
    value = book_value(exchange, f"{base}-USD", received_ns, received_ns, 1 if opens else None, bids, asks)
    return Sent(exchange, base, received_ns, value, opens)


@dataclass
class Run:
    """What one contestant did in one round."""

    sent: dict[Key, float] = field(default_factory=dict)
    came: dict[Key, float] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    late: int = 0
    ticks: int = 0

    def waits_ms(self, since: float) -> list[float]:
        """Of the gaps that were opened after `since`."""
        return [(self.came[key] - at) * 1000 for key, at in self.sent.items() if at >= since and key in self.came]

    def missing(self, since: float) -> int:
        return sum(at >= since and key not in self.came for key, at in self.sent.items())


def send(run: Run, kafka_settings: KafkaSettings, rate: float, stop: threading.Event) -> None:
    """Ticks at a steady rate, until told to stop."""
    publisher = kafka.Publisher(kafka.tick_producer(kafka_settings, "bench"), drop_when_full=True)
    try:
        due = time.perf_counter()
        while not stop.is_set():
            due += 1 / rate
            wait_s = due - time.perf_counter()
            if wait_s > 0:
                time.sleep(wait_s)  # the rate itself
            found = tick(run.ticks)
            at = time.perf_counter()
            run.late += at - due > 0.001
            if found.opens:
                run.sent[(found.base, found.received_ns)] = at
            publisher.publish(topics.ticks(found.exchange), found.base, found.value)
            run.ticks += 1
            due = max(due, at - 0.1)  # a machine that slept does not get all it missed at once
    finally:
        publisher.close()


# ---------------------------------------------------------------- what comes


def opened(value: bytes) -> Key | None:
    """Which gap an event of the detector opens."""
    message = orjson.loads(value)
    return (message["base"], message["opened_ns"]) if message["phase"] == "opened" else None


def relayed(value: bytes) -> Key | None:
    message = orjson.loads(value)
    return message["symbol"].partition("-")[0], message["received_ns"]


def receive(run: Run, reader: kafka.Reader, key_of: Callable[[bytes], Key | None], stop: threading.Event) -> None:
    while not stop.is_set():
        records = reader.read(500, 0.05)
        at = time.perf_counter()
        for record in records:
            key = key_of(record.value or b"")
            if key is not None:
                run.came[key] = at
                run.sizes.append(len(record.value or b""))


# ---------------------------------------------------------------- the contestants


@contextlib.contextmanager
def process(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Another process, told to end at the end of the block."""
    with tempfile.TemporaryFile() as words:
        started = subprocess.Popen(
            tied_to_parent([sys.executable, *command]), env=os.environ | environment, stdout=words, stderr=words
        )
        try:
            yield started
            if started.poll() is not None:
                words.seek(0)
                raise RuntimeError(f"{' '.join(command[:3])} ended: {words.read().decode(errors='replace')[-2000:]}")
        finally:
            started.terminate()
            try:
                started.wait(15)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()


def detector(broker: KafkaSettings, folder: Path) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    file = folder / "arb.toml"
    file.write_text(SETTINGS)
    environment = {
        "ARB_CONFIG": str(file),
        "ARB_KAFKA_SERVERS": broker.servers,
        "ARB_KAFKA_OPTIONS": json.dumps(broker.options),
    }
    return process(["-m", "services.cli", "detect"], environment)


def relay(broker: KafkaSettings, size: int) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    case = {
        "servers": broker.servers,
        "options": broker.options,
        "group": f"bench-relay-{uuid.uuid4()}",
        "topic": RELAYED,
        "size": size,
        "mark": MARK,
    }
    return process([str(Path(__file__).with_name("relay.py")), json.dumps(case)], {})


class Round(NamedTuple):
    """Waits of one contestant in one round (ms), and what went wrong."""

    waits_ms: list[float]
    missing: int
    late: int
    ticks: int
    size: int


def measure(
    contestant: contextlib.AbstractContextManager[subprocess.Popen[bytes]],
    kafka_settings: KafkaSettings,
    topic: str,
    key_of: Callable[[bytes], Key | None],
    rate: float,
    seconds: float,
) -> Round:
    """Start it, wait until it answers and has settled, then count for `seconds`.

    Raises:
        RuntimeError: it ended, or did not answer.
    """
    run, stop_sending, stop_reading = Run(), threading.Event(), threading.Event()
    reader = kafka.Reader(kafka.reader(kafka_settings, "bench"), [topic], None)
    receiver = threading.Thread(target=receive, args=(run, reader, key_of, stop_reading), daemon=True)
    sender = threading.Thread(target=send, args=(run, kafka_settings, rate, stop_sending), daemon=True)
    try:
        with contestant as started:
            receiver.start()
            sender.start()
            end = time.perf_counter() + START_S
            while len(run.came) < COINS:
                if started.poll() is not None:
                    break
                if time.perf_counter() > end:
                    raise RuntimeError(f"nothing came on {topic} within {START_S:g} s")
                time.sleep(0.1)  # another process comes up: its first gaps are the sign
            time.sleep(STEADY_S)  # not counted: start-up of clients and caches
            since, late, ticks = time.perf_counter(), run.late, run.ticks
            time.sleep(seconds)  # what is measured
            stop_sending.set()
            sender.join()
            late, ticks = run.late - late, run.ticks - ticks
            end = time.perf_counter() + LAST_S
            while run.missing(since) and time.perf_counter() < end:
                time.sleep(0.05)  # the last gaps are on their way to the reader's thread
    finally:
        stop_sending.set()
        stop_reading.set()
        for thread in (sender, receiver):
            if thread.ident is not None:
                thread.join(10)
        reader.close()
    return Round(run.waits_ms(since), run.missing(since), late, ticks, round(statistics.median(run.sizes)))


# ---------------------------------------------------------------- the run


def percentile(waits: Sequence[float], share: float) -> float:
    """The smallest wait that `share` of them do not exceed."""
    ranked = sorted(waits)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def row(name: str, rounds: Sequence[Round]) -> dict[str, Any]:
    waits = [wait for one in rounds for wait in one.waits_ms]
    ticks = sum(one.ticks for one in rounds)
    return {
        "path": name,
        "gaps": len(waits),
        "missing": sum(one.missing for one in rounds),
        "p50_ms": percentile(waits, 0.5),
        "p99_ms": percentile(waits, 0.99),
        "most_ms": max(waits),
        "bytes": round(statistics.median(one.size for one in rounds)),
        "sent_late_%": 100 * sum(one.late for one in rounds) / ticks,
    }


def times(ours: Sequence[Round], bare: Sequence[Round], share: float) -> float:
    """Median of the rounds' ratios."""
    return statistics.median(
        percentile(a.waits_ms, share) / percentile(b.waits_ms, share) for a, b in zip(ours, bare, strict=True)
    )


def run(
    broker: KafkaSettings, rate: float, seconds: float, rounds: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of both paths, and of the ratios."""
    ours: list[Round] = []
    bare: list[Round] = []
    cluster.apply_topics(broker, [Topic(RELAYED, EVENT_PARTITIONS, HOUR_MS, 1, "base asset", "bench", "bench")])
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for is_ours in (number % 2 == 1, number % 2 == 0):  # a new broker is slow, and must not be one's alone
                if is_ours:
                    contestant, topic = detector(broker, Path(folder)), topics.OPPORTUNITIES
                    ours.append(measure(contestant, broker, topic, opened, rate, seconds))
                else:
                    bare.append(measure(relay(broker, BYTES), broker, RELAYED, relayed, rate, seconds))
    rows = [row("relay", bare), row("detector", ours)]
    targets = [(0.5, 1.3), (0.99, 2.0)]
    ratios = [
        {
            "of": f"p{share * 100:g}",
            "relay_ms": rows[0][f"p{share * 100:g}_ms"],
            "detector_ms": rows[1][f"p{share * 100:g}_ms"],
            "times": rows[1][f"p{share * 100:g}_ms"] / rows[0][f"p{share * 100:g}_ms"],
            "median_of_rounds": times(ours, bare, share),
            "target": most,
        }
        for share, most in targets
    ]
    return rows, ratios


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200, help="ticks a second, all books together (default: 200)")
    parser.add_argument("--seconds", type=float, default=30, help="counted for each of the two in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="only whether it runs: 1 round of 2 s")
    parser.add_argument("--external", action="store_true", help="write to the cluster that ARB_KAFKA_SERVERS names")
    options = parser.parse_args()
    seconds, rounds = (2.0, 1) if options.quick else (options.seconds, options.rounds)
    with start_broker(None, say, java=jars.ROOMY) as broker:
        if not broker.topics_by_admin:
            sys.exit(f"the benchmark needs a topic of its own: {broker.why}")
        if broker.kind == "external" and not options.external:
            sys.exit("ARB_KAFKA_SERVERS is set: invented ticks would go to that cluster; --external allows it")
        rows, ratios = run(broker.kafka, options.rate, seconds, rounds)
    ending = "-quick" if options.quick else ""
    title = f"Tick sent to opportunity readable, at {options.rate:g} ticks/s (target: p99 below 10 ms)"
    report(f"latency{ending}", title, rows)
    report(f"latency-times{ending}", "... beside a bare relay", ratios)
    if rows[1]["missing"] > 0.01 * rows[1]["gaps"]:
        sys.exit("more than one gap in a hundred did not become an opportunity: these numbers say nothing")


if __name__ == "__main__":
    main()
