"""Detector: memory by the number of symbols, and whether a day of ticks leaves anything behind. The engine alone.

Held: an engine that has seen some seconds of `market.py`'s books, each number of symbols in a process of its own.
`RSS` is what the process grew by; `Python's` is what tracemalloc counts, in a second process, because it slows down and
fattens what it watches.

Flat: hours of a market that repeats itself every ten minutes of message time (books, trades, health and rates, a gap
that pays and one that does not for each coin), with the timer every 50 ms. Python's allocated blocks are counted at the
end of each repetition, where everything is as it was before, so that what has grown has leaked. The first of them warm
up (six hours, at most half of all); the rest are compared by the slope of a straight line.

    python benchmarks/memory.py [--symbols 10 100 1000] [--hours 24] [--quick]
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
import tracemalloc
from array import array
from collections.abc import Sequence
from typing import Any

import market
import orjson
from common import report, rss_kib

from services.detector.engine import TIMER_NS, Engine
from shared.messages import read_tick

BEGIN_NS = 1_795_000_000_000_000_000
HELD_S = 10
COINS = 4
REPEAT_S = 600
FLAT_BLOCKS_PER_H = 2.0
WARM_H = 6.0
SHARE_WARM = 0.5
"""The beginning that is not compared: hours of message time, and at most so much of all."""
BASES = tuple(f"C{which}" for which in range(COINS))


# ---------------------------------------------------------------- held


def hold(symbols: int, traced: bool) -> float:
    """KiB that an engine takes up which follows `symbols` coins on five exchanges; run in a process of its own."""
    configured, spacing = market.configured(), market.spacing_ns(symbols)
    count = HELD_S * market.SECOND_NS // spacing
    for tick in market.ticks(1, 200, BEGIN_NS, spacing):
        Engine(configured).on_message(read_tick(tick.value), tick.at_ns)  # what is made once, whatever the number
    gc.collect()
    if traced:
        tracemalloc.start()
    ticks = market.ticks(symbols, count, BEGIN_NS, spacing)
    first = next(ticks)  # the generator has its tables now
    before = tracemalloc.get_traced_memory()[0] if traced else rss_kib() * 1024
    engine, timer_ns = Engine(configured), BEGIN_NS
    engine.on_message(read_tick(first.value), first.at_ns)
    for tick in ticks:
        engine.on_message(read_tick(tick.value), tick.at_ns)
        if tick.at_ns >= timer_ns:
            timer_ns += TIMER_NS
            engine.on_timer(tick.at_ns)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0] if traced else rss_kib() * 1024
    return (after - before) / 1024


def held(numbers: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each number of symbols."""
    rows = []
    for symbols in numbers:
        grown, python = (
            json.loads(
                subprocess.run(
                    [sys.executable, __file__, "--hold", str(symbols), *traced],
                    capture_output=True,
                    text=True,
                    check=True,
                    timeout=600,
                ).stdout
            )
            for traced in ([], ["--traced"])
        )
        rows.append(
            {
                "symbols": symbols,
                "rss_KiB": grown,
                "rss_KiB_a_symbol": grown / symbols,
                "python's_KiB": python,
                "python's_KiB_a_symbol": python / symbols,
            }
        )
    return rows


# ---------------------------------------------------------------- flat


class Day:
    """A market that repeats itself; only the moments and numbers go on.

    A second of it: one book of each coin and exchange, and at one exchange in turn a trade and a health of each coin.
    """

    def __init__(self) -> None:
        self._engine = Engine(market.configured())
        self._second = 0
        self.ticks = 0
        self.events = 0
        self._sequence = 0
        sizes = [round(0.3 + n / 7, 8) for n in range(market.LEVELS)]
        self._books = {
            by: [market.levels(100.0 * (1 + by) * (1 + n * 0.00001), sizes) for n in range(4)]
            for by in (0.0, market.HIGHER, market.PAYS)
        }

    def repeat(self) -> None:
        """Ten minutes."""
        for at in range(REPEAT_S):
            begin_ns = BEGIN_NS + self._second * market.SECOND_NS
            self._second += 1
            self._send(begin_ns, {"kind": "rate", "symbol": "USDT-USD", "bid": 0.9999, "ask": 1.0001, "state": "live"})
            for number in range(20):
                now_ns = begin_ns + number * TIMER_NS
                if number % 4 == 0:
                    self._exchange(market.EXCHANGES[number // 4], at, now_ns)
                self.events += len(self._engine.on_timer(now_ns))

    def blocks(self) -> int:
        """Python's allocated blocks, after a full garbage collection."""
        gc.collect()
        return sys.getallocatedblocks()

    def _exchange(self, exchange: str, at: int, now_ns: int) -> None:
        """The books of one exchange in second `at` of the repetition."""
        place = market.EXCHANGES.index(exchange)
        for coin, base in enumerate(BASES):
            by = 0.0
            if place == coin and at % 60 < 3:  # stands above the others for three seconds of each minute
                by = market.PAYS if at // 60 % 2 else market.HIGHER
            bids, asks = self._books[by][at % 4]
            symbol = market.symbol_of(base, exchange)
            book = {"kind": "book", "symbol": symbol, "exchange_ns": None, "bids": bids, "asks": asks}
            self._send(now_ns, book, exchange)
            if at % len(market.EXCHANGES) == place:
                side = "buy" if at % 3 else "sell"
                trade = {"kind": "trade", "symbol": symbol, "price": 100.0, "size": 0.5, "taker_side": side}
                self._send(now_ns, trade, exchange)
                health = {"kind": "health", "symbol": symbol, "state": "live", "alive_ns": now_ns, "lot_step": "0.0001"}
                self._send(now_ns, health, exchange)

    def _send(self, now_ns: int, message: dict[str, Any], exchange: str = "kraken") -> None:
        self._sequence += 1
        self.ticks += 1
        message |= {"v": 1, "exchange": exchange, "sequence": self._sequence, "received_ns": now_ns}
        self.events += len(self._engine.on_message(read_tick(orjson.dumps(message)), now_ns))


def flat(hours: float) -> dict[str, Any]:
    """A row: what `hours` of message time left behind."""
    day, repeats = Day(), max(4, round(hours * 3600 / REPEAT_S))
    warm = max(2, min(round(WARM_H * 3600 / REPEAT_S), int(repeats * SHARE_WARM)))
    blocks, kib = array("d", bytes(8 * repeats)), array("d", bytes(8 * repeats))  # no blocks of their own
    began = time.perf_counter()
    for number in range(repeats):
        day.repeat()
        blocks[number], kib[number] = day.blocks(), rss_kib()
    at = [(number + 1) * REPEAT_S / 3600 for number in range(repeats)]
    per_h = statistics.linear_regression(at[warm:], blocks[warm:]).slope
    rising = statistics.median(blocks[-3:]) > statistics.median(blocks[warm : warm + 3])
    return {
        "hours": at[-1],
        "seconds": time.perf_counter() - began,
        "ticks": day.ticks,
        "events": day.events,
        "blocks_warm": round(statistics.median(blocks[warm : warm + 3])),
        "blocks_end": round(statistics.median(blocks[-3:])),
        "blocks_an_hour": per_h,
        "rss_MiB_warm": kib[warm] / 1024,
        "rss_MiB_end": kib[-1] / 1024,
        "flat": "no" if rising and per_h > FLAT_BLOCKS_PER_H else "yes",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--hours", type=float, default=24, help="of message time (default: 24)")
    parser.add_argument("--quick", action="store_true", help="only whether it runs: few symbols, the least hours")
    parser.add_argument("--hold", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--traced", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hold is not None:
        print(json.dumps(hold(options.hold, options.traced)))
        return
    numbers, hours = ([10, 20], 0.0) if options.quick else (options.symbols, options.hours)
    ending = "-quick" if options.quick else ""
    report(f"detector-memory{ending}", "Detector: memory of an engine", held(numbers))
    row = flat(hours)
    report(f"detector-flat{ending}", "Detector: a day of ticks (target: flat after warm-up)", [row])
    if row["flat"] != "yes":
        sys.exit("memory rose after warm-up")


if __name__ == "__main__":
    main()
