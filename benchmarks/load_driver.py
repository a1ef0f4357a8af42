"""Ticks of five exchanges at a steady rate, for `load.py`; a process of its own, so that nothing else holds it up.

A symbol has a book at each of five exchanges and each book five updates a second (`market.py`), so the rate is 25 times
the number of symbols. Exchanges differ by less than their spread, but for two things: 2 % of the symbols have one
exchange so much higher for a second that it crosses and does not pay (as in `market.py`), and `EVENTS` times in a round
of 200 ms, whatever the rate, a symbol's first exchange is higher by enough to pay, for one round: four pairs open.

A tick's `received_ns` is the moment at which it is due, not when it was sent: a driver that is late is no excuse.

    python benchmarks/load_driver.py '{"servers": ..., "options": {}, "symbols": 40, "seconds": 10}'
"""

import json
import sys
import time
from collections.abc import Iterator

from confluent_kafka import KafkaError, Message, Producer
from market import BOOK_HZ, EXCHANGES, HIGHER, PAYS, levels, symbol_of
from orjson import Fragment, dumps

from shared import kafka, topics
from shared.messages import book_value, rate_value
from shared.settings import KafkaSettings

EVENTS = 5
"""Symbols that begin to pay in a round, 25 a second; the same one again after at least 0.8 s from 20 symbols on."""

CROSSING = 50
"""Of so many symbols one crosses without paying."""

VARIANTS = 16
MARKED = 1
"""`exchange_ns` of the ticks that open gaps: what the relay looks for."""

BURST_S = 0.001


def sides(mid: float) -> tuple[Fragment, Fragment]:
    """Ten bids and asks as JSON."""
    bids, asks = levels(mid, [1.0 + number for number in range(10)])
    return Fragment(dumps(bids)), Fragment(dumps(asks))


NORMAL, ABOVE, PAYING = (
    [sides(100 * (1 + by) * (1 + 0.000004 * (variant - VARIANTS / 2))) for variant in range(VARIANTS)]
    for by in (0.0, HIGHER, PAYS)
)


def plan(symbols: int) -> Iterator[tuple[int, int, bool, tuple[Fragment, Fragment]]]:
    """Symbol, place of the exchange, whether it opens gaps, bids and asks: one tick after the other."""
    number = turn = 0
    while True:
        opening = {(turn * EVENTS + one) % symbols for one in range(EVENTS)}
        second = turn // BOOK_HZ
        for which in range(symbols):
            for place in range(len(EXCHANGES)):
                number += 1
                variant = number * 7 % VARIANTS
                if place == 0 and which in opening:
                    yield which, place, True, PAYING[variant]
                elif place == 1 and (which + second) % CROSSING == 0 and which not in opening:
                    yield which, place, False, ABOVE[variant]
                else:
                    yield which, place, False, NORMAL[variant]
        turn += 1


def main() -> None:
    case = json.loads(sys.argv[1])
    settings = KafkaSettings(servers=case["servers"], options=case["options"])
    symbols, seconds = case["symbols"], case["seconds"]
    failed = 0

    def count(error: KafkaError | None, _: Message) -> None:
        nonlocal failed
        failed += error is not None

    producer = Producer({**kafka.tick_producer(settings, "bench"), "on_delivery": count})
    rate = symbols * len(EXCHANGES) * BOOK_HZ
    where = [topics.ticks(name) for name in EXCHANGES]
    names = [f"C{which}" for which in range(symbols)]
    pairs = [[symbol_of(base, exchange) for exchange in EXCHANGES] for base in names]
    sequence = time.time_ns() // 1_000_000
    openings: list[tuple[str, int]] = []
    made = dropped = late = queue = 0
    ticks = plan(symbols)
    producer.list_topics(timeout=10)
    begin, begin_ns = time.perf_counter(), time.time_ns()
    next_rate = 0
    while (now := time.perf_counter() - begin) < seconds:
        if now >= next_rate:
            value = rate_value("kraken", "USDT-USD", sequence + next_rate, time.time_ns(), None, 0.9999, 1.0001, "live")
            producer.produce(topics.FX_RATES, value, "USDT-USD")
            next_rate += 1
        for _ in range(int(now * rate) - made):
            due_ns = begin_ns + made * 1_000_000_000 // rate
            which, place, opens, (bids, asks) = next(ticks)
            made += 1
            base, exchange = names[which], EXCHANGES[place]
            mark = MARKED if opens else None
            value = book_value(exchange, pairs[which][place], sequence + made, due_ns, mark, bids, asks)
            if opens:
                openings.append((base, due_ns))  # also where it is dropped: then its gap is lost
            try:
                producer.produce(where[place], value, base)
            except BufferError:
                dropped += 1
        producer.poll(0)
        queue = max(queue, len(producer))
        late += time.perf_counter() - begin - now > 0.1
        time.sleep(BURST_S)
    took = time.perf_counter() - begin
    left = producer.flush(5)
    done = {"ticks": made, "dropped": dropped + failed + left, "late": late, "queue": queue, "seconds": took}
    sys.stdout.write(json.dumps({**done, "openings": openings}) + "\n")


if __name__ == "__main__":
    main()
