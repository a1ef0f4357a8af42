"""Collector: CPU a frame of the whole path, beside the floor and beside cryptofeed, on the same frames in the same run.

Floor: receive, parse (orjson), write a ten-level book (orjson), produce. Ours: receive, parse, apply, check, publish.
Frames are captures, or of the documented shape where no capture of any length exists (`generated`, benchmarks/
frames.py). They come over a WebSocket on the loopback interface from another process; CPU is that of the collector's
own thread; rounds of both alternate, and the median counts.

cryptofeed 2.4.1 runs in an environment of its own (made by the first run) and is driven without a socket and without
Kafka: frame in, books and trades as bytes out. So that column stands beside ours without a socket and without Kafka.

    python benchmarks/collector.py [--rounds 5] [--frames 20000] [--no-cryptofeed]
"""

import argparse
import asyncio
import gzip
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import structlog
from common import report
from cryptofeed_env import measure as measure_cryptofeed
from frames import bybit_frames, coinbase_frames, okx_frames
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from services.cli.broker import start_broker
from services.collector.emitter import Emitter
from services.collector.exchanges import EXCHANGES
from services.collector.feed import Feed
from services.collector.keeper import Timing
from services.collector.link import MAX_FRAME_BYTES
from shared import kafka, topics

CAPTURES = Path(__file__).parents[1] / "tests" / "collector" / "captures"
CASES: dict[str, tuple[str, str | Callable[[int, int], list[bytes]]]] = {
    "kraken": ("kraken", "kraken-book25-btcusd-crossbook.jsonl.gz"),
    "binance": ("binance", "binance-mixed-cryptofeed.jsonl.gz"),
    "coinbase-exchange": ("coinbase-exchange", "coinbase-exchange-mixed-cryptofeed.jsonl.gz"),
    "okx (2022, checksums)": ("okx", "okx-mixed-cryptofeed.jsonl.gz"),
    "okx (generated)": ("okx", okx_frames),
    "bybit (generated)": ("bybit", bybit_frames),
    "coinbase (generated)": ("coinbase", coinbase_frames),
}
"""Protocol, and where its frames come from."""

GENERATED = 3000
REST = b"REST "
END = b"END"


def frames_of(case: str) -> list[bytes]:
    """One pass; a REST answer goes as `REST <symbol> <body>` at its place."""
    protocol, source = CASES[case]
    if callable(source):
        return source(GENERATED, 1)
    exchange, found = EXCHANGES[protocol], []
    for line in gzip.decompress((CAPTURES / source).read_bytes()).splitlines():
        data = json.loads(line)
        if data["direction"] == "out":
            continue
        if data["url"].startswith("http"):
            native = exchange.snapshot_symbol(data["url"]) if exchange.snapshot_symbol else None
            if native is not None:
                found.append(REST + native.encode() + b" " + data["frame"].encode())
        else:
            found.append(data["frame"].encode())
    return found


async def serve_frames(name: str, count: int) -> None:
    """The other process: send whole passes until `count` frames, then END, to whoever connects."""
    frames = frames_of(name)
    passes = max(1, count // len(frames))

    async def handle(connection: ServerConnection) -> None:
        for _ in range(passes):
            await connection.send(b"PASS")
            for frame in frames:
                await connection.send(frame)
        await connection.send(END)
        await connection.wait_closed()

    async with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


BOOK = {
    "kind": "book", "v": 1, "exchange": "kraken", "symbol": "BTC-USD", "sequence": 1_795_000_000_000,
    "received_ns": 1_795_000_000_000_000_000, "exchange_ns": 1_795_000_000_000_000_000,
    "bids": [(63004.9 - n / 10, 0.01876947) for n in range(10)],
    "asks": [(63005.0 + n / 10, 0.01876947) for n in range(10)],
}  # fmt: skip


def floor_path(name: str, publisher: kafka.Publisher) -> Callable[[bytes], None]:
    topic = topics.ticks("kraken")

    def take(frame: bytes) -> None:
        if frame == b"PASS":
            return
        if frame.startswith(REST):
            frame = frame.split(b" ", 2)[2]
        orjson.loads(frame)
        publisher.publish(topic, "BTC", orjson.dumps(BOOK))

    return take


def our_path(name: str, publisher: Any) -> Callable[[bytes], None]:
    protocol = EXCHANGES[CASES[name][0]]
    emitter = Emitter("kraken", publisher, time.time_ns())
    feeds: list[Feed] = []

    def take(frame: bytes) -> None:
        now = time.time_ns()
        if frame == b"PASS":
            feeds[:] = [Feed(protocol, None, None, 10, Timing(), now)]
            return
        if frame.startswith(REST):
            _, native, body = frame.split(b" ", 2)
            outputs = feeds[0].on_rest(native.decode(), body, now)
        else:
            outputs = feeds[0].on_frame(frame, now)
        if outputs:
            emitter.emit(outputs)

    return take


async def measure(port: int, take: Callable[[bytes], None]) -> tuple[int, float, float]:
    """Frames, wall seconds and CPU seconds of this thread."""
    async with connect(
        f"ws://127.0.0.1:{port}", compression=None, max_size=MAX_FRAME_BYTES, ping_interval=None
    ) as socket:
        count = 0
        await socket.recv(decode=False)
        take(b"PASS")
        wall, cpu = time.perf_counter(), time.thread_time()
        while (frame := await socket.recv(decode=False)) != END:
            take(frame)
            count += 1
        return count, time.perf_counter() - wall, time.thread_time() - cpu


class Nowhere:
    """Takes what would go to Kafka: cryptofeed's numbers are without it."""

    def publish(self, topic: str, key: str, value: bytes) -> bool:
        return True


def bare(name: str, rounds: int) -> float:
    """Our path without socket and Kafka: CPU a frame in us."""
    frames, take, spent = frames_of(name), our_path(name, Nowhere()), []
    passes = max(1, 10_000 // len(frames))
    for number in range(rounds + 1):
        began = time.thread_time()
        for _ in range(passes):
            take(b"PASS")
            for frame in frames:
                take(frame)
        if number:
            spent.append((time.thread_time() - began) / passes / len(frames) * 1e6)
    return statistics.median(spent)


def cryptofeed(name: str, rounds: int) -> float | None:
    """cryptofeed's CPU a frame in us; None where it does not speak that protocol any more."""
    frames = frames_of(name)
    found = measure_cryptofeed(CASES[name][0], frames, rounds)
    return None if found is None else statistics.median(found["cpu_s"]) / found["frames"] * 1e6


async def run(rounds: int, frames: int, beside: bool) -> list[dict[str, Any]]:
    rows = []
    with start_broker(None, lambda words: print(words, file=sys.stderr)) as broker:
        for name in CASES:
            command = [sys.executable, __file__, "--serve", name, "--frames", str(frames)]
            server = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
            )
            assert server.stdout is not None
            port = int(await server.stdout.readline())
            publisher = kafka.Publisher(kafka.tick_producer(broker.kafka, "bench"), drop_when_full=True)
            spent: dict[str, list[tuple[float, float]]] = {"floor": [], "ours": []}
            for number in range(rounds + 1):
                for path, make in (("floor", floor_path), ("ours", our_path)):
                    count, wall, cpu = await measure(port, make(name, publisher))
                    publisher.flush(10)
                    if number:  # the first round warms up
                        spent[path].append((cpu / count * 1e6, count / wall))
            server.terminate()
            await server.wait()
            publisher.close()
            cpu_floor, cpu_ours = (statistics.median(item[0] for item in spent[path]) for path in ("floor", "ours"))
            rate_floor, rate_ours = (statistics.median(item[1] for item in spent[path]) for path in ("floor", "ours"))
            ours_bare, theirs = bare(name, rounds), cryptofeed(name, rounds) if beside else None
            rows.append(
                {
                    "frames": name,
                    "count": count,
                    "floor_us": cpu_floor,
                    "ours_us": cpu_ours,
                    "floor_per_s": rate_floor,
                    "ours_per_s": rate_ours,
                    "of_the_floor": cpu_floor / cpu_ours,
                    "bare_us": ours_bare,
                    "cryptofeed_us": "-" if theirs is None else theirs,
                    "times_cryptofeed": "-" if theirs is None else theirs / ours_bare,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--no-cryptofeed", action="store_true", help="without the comparison (no environment is made)")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve_frames(options.serve, options.frames))
        return
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    rows = asyncio.run(run(options.rounds, options.frames, not options.no_cryptofeed))
    report("collector", "Collector: CPU a frame (targets: 0.6 of the floor, 3 times cryptofeed)", rows)


if __name__ == "__main__":
    main()
