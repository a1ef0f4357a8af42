"""Detector: ticks a second by the number of symbols, beside the floor of the same messages in the same run.

Floor: consume from a broker and parse (orjson). Ours: consume, parse, and the whole engine. Five exchanges quote each
symbol; about two ticks in a hundred show a gross crossing, which costs an exact walk. Rounds alternate, median counts.

    python benchmarks/detector.py [--rounds 3] [--ticks 60000]
"""

import argparse
import datetime
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import orjson
from common import report

from services.cli.broker import start_broker
from services.detector.engine import TIMER_NS, Engine
from shared import cluster, kafka, settings
from shared.messages import book_value
from shared.topics import HOUR_MS, Topic

EXCHANGES = ("binance", "coinbase", "kraken", "bybit", "okx")
SYMBOLS = (10, 100, 1000)
SPACING_NS = 100_000
"""Ten thousand ticks a second on the messages' own clock, by which the timer runs too."""


def configured() -> settings.Settings:
    """Five exchanges at 10 bps."""
    loaded = settings.load()
    fee = settings.Fee(valid_from=datetime.date(2020, 1, 1), taker_bps=Decimal(10))
    one = loaded.exchanges["kraken"].model_copy(update={"fees": (fee,)})
    return loaded.model_copy(update={"exchanges": dict.fromkeys(EXCHANGES, one)})


def ticks(symbols: int, count: int) -> list[tuple[str, bytes]]:
    """Books that wander; now and then one exchange is a little ahead of the others."""
    draw = random.Random(1)
    mids = [100.0] * symbols
    now, made = time.time_ns(), []
    for number in range(count):
        which = draw.randrange(symbols)
        mids[which] *= 1 + draw.gauss(0, 0.00002)
        mid = mids[which] * (1 + draw.gauss(0, 0.00004))
        bids = [(round(mid * (1 - 0.0001 - n * 0.0001), 4), 1.0 + n) for n in range(10)]
        asks = [(round(mid * (1 + 0.0001 + n * 0.0001), 4), 1.0 + n) for n in range(10)]
        exchange = draw.choice(EXCHANGES)
        symbol = f"C{which}-USD"
        made.append((symbol, book_value(exchange, symbol, number, now + number * SPACING_NS, None, bids, asks)))
    return made


def read_all(broker: settings.KafkaSettings, topic: str, count: int, take: Callable[[bytes], None]) -> float:
    """Seconds from the first to the last record."""
    reader = kafka.Reader(kafka.reader(broker, "bench"), [topic], 0)
    try:
        records = reader.read(1, 10)
        began = time.perf_counter()
        seen = len(records)
        while seen < count:
            records = reader.read(500, 1.0)
            for record in records:
                take(record.value or b"")
            seen += len(records)
        return time.perf_counter() - began
    finally:
        reader.close()


def run(rounds: int, count: int) -> list[dict[str, Any]]:
    rows = []
    loaded = configured()
    with start_broker(None, lambda words: print(words, file=sys.stderr)) as broker:
        for symbols in SYMBOLS:
            topic = f"bench-{symbols}"
            cluster.apply_topics(broker.kafka, [Topic(topic, 4, HOUR_MS, 1, "symbol", "bench", "bench")])
            publisher = kafka.Publisher(kafka.event_producer(broker.kafka, "bench"), drop_when_full=False)
            for key, value in ticks(symbols, count):
                publisher.publish(topic, key, value)
            publisher.close(60)
            spent: dict[str, list[float]] = {"floor": [], "ours": []}
            events = 0
            before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for number in range(rounds + 1):
                floor_s = read_all(broker.kafka, topic, count, lambda value: orjson.loads(value))
                engine = Engine(loaded)
                found, timer_ns = [0], [0]

                def take(
                    value: bytes, engine: Engine = engine, found: list[int] = found, timer_ns: list[int] = timer_ns
                ) -> None:
                    message = orjson.loads(value)
                    now_ns = message["received_ns"]
                    found[0] += len(engine.on_message(message, now_ns))
                    if now_ns >= timer_ns[0]:
                        timer_ns[0] = now_ns + TIMER_NS
                        found[0] += len(engine.on_timer(now_ns))

                ours_s = read_all(broker.kafka, topic, count, take)
                events = found[0]
                if number:  # the first round warms up
                    spent["floor"].append(floor_s)
                    spent["ours"].append(ours_s)
            floor_s, ours_s = statistics.median(spent["floor"]), statistics.median(spent["ours"])
            grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
            rows.append(
                {
                    "symbols": symbols,
                    "ticks": count,
                    "floor_per_s": count / floor_s,
                    "ours_per_s": count / ours_s,
                    "ours_us": ours_s / count * 1e6,
                    "ratio": floor_s / ours_s,
                    "events": events,
                    "peak_growth_KiB_a_symbol": grown_kib / symbols,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ticks", type=int, default=60_000)
    options = parser.parse_args()
    report(
        "detector", "Detector: ticks a second, floor and ours (target: ratio 0.6)", run(options.rounds, options.ticks)
    )


if __name__ == "__main__":
    main()
