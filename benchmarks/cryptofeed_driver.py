"""cryptofeed on recorded frames: CPU of each round, as one JSON line. Runs in cryptofeed's own virtual environment
(`cryptofeed_env.py` makes it and starts this), so it imports nothing of ours.

    python cryptofeed_driver.py EXCHANGE FRAMES_FILE ROUNDS [--verify]

FRAMES_FILE has one frame a line, as text; `REST <native symbol> <body>` is a recorded REST snapshot. The feed's own
`message_handler` gets the frames, one after the other, and asks for its snapshots through `http_conn.read`, which
answers with the recorded bodies. The L2_BOOK callback writes ten levels a side as JSON bytes, the TRADES callback the
trade; nothing is sent. Socket, text decoding and Kafka are not in it: compare with a path that has none either.

One round is one pass over the file through a new feed; `cpu_s` has one entry a round, after one round to warm up. A
first pass that is not timed counts: books and trades called back, `ignored` frames (no callback) and `failed` ones
(cryptofeed raised; live it would reconnect) by their kind, and lines it wrote to its log.

cryptofeed verifies nothing unless told to; `--verify` tells it: checksums where it knows them, and crossed books. (On
OKX's present frames, whose checksum is always 0, every book then fails.) Binance's `U`/`u` chain is the only one it
follows; `seqId`, `u` and `sequence_num` of the others it does not read.

Known of 2.4.1: its Coinbase looks for the side `ask` in a snapshot, the exchange says `offer`. So asks exist only where
they changed, which makes it wrong and, by about a third on generated frames of 1,000 levels, cheaper.
"""

import argparse
import asyncio
import collections
import gc
import importlib.metadata
import json
import logging
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NOT_SPOKEN = {
    "kraken": "cryptofeed's Kraken speaks WebSocket v1 (arrays); the frames are v2 (objects)",
    "coinbase-exchange": "cryptofeed's Coinbase speaks Advanced Trade (l2_data) only, not the Exchange feed (l2update)",
}
"""Why the frames of these cannot go through cryptofeed 2.4.1."""

CLASSES = {"binance": "Binance", "bybit": "Bybit", "coinbase": "Coinbase", "okx": "OKX"}
ADDRESSES = {"bybit": "wss://stream.bybit.com/v5/public/spot"}  # its handler reads the market from the address
QUOTES = ("USDT", "USDC", "BTC", "ETH", "EUR", "USD")
REST = "REST "
LEVELS = range(10)


def natives_of(exchange: str, frame: str) -> Iterator[str]:
    """The exchange's names of the symbols in a frame."""
    match exchange, parsed(frame):
        case "binance", {"stream": stream}:
            yield stream.split("@")[0].upper()
        case "bybit", {"topic": topic}:
            yield topic.rsplit(".", 1)[-1]
        case "okx", {"arg": {"instId": native}}:
            yield native
        case "coinbase", {"events": events}:
            for event in events:
                for item in (event, *event.get("trades", ())):
                    if "product_id" in item:
                        yield item["product_id"]


def parsed(frame: str) -> dict[str, Any]:
    """A frame's object, empty where it is none (`pong`)."""
    try:
        message = json.loads(frame)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def kind_of(frame: str) -> str:
    """What a frame is, in the exchange's own words."""
    message = parsed(frame)
    if "stream" in message:
        return str(message["stream"]).split("@", 1)[1]
    if "event" in message:
        return f"event {message['event']}"
    name = message.get("topic") or message.get("channel") or message.get("arg", {}).get("channel") or "other"
    return " ".join([str(name), *(str(message[key]) for key in ("type", "action") if key in message)])


def split_name(native: str) -> str:
    """`BTCUSDT` as `BTC-USDT`; names with a separator stay."""
    for quote in QUOTES:
        if "-" not in native and native.endswith(quote):
            return f"{native.removesuffix(quote)}-{quote}"
    return native


class Count(logging.Handler):
    """Counts log lines instead of writing them: cryptofeed warns of every frame it does not know."""

    lines = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += 1


class Driver:
    """Feeds one file of frames to one exchange's feed, again and again."""

    def __init__(self, exchange: str, lines: list[str], verify: bool) -> None:
        import cryptofeed.exchanges  # here: `NOT_SPOKEN` is read where there is no cryptofeed
        import orjson
        from cryptofeed.defines import L2_BOOK, TRADES
        from cryptofeed.symbols import Symbols

        self.frames = [line for line in lines if not line.startswith(REST)]
        self.bodies: dict[str, list[str]] = collections.defaultdict(list)
        for line in lines:
            if line.startswith(REST):
                _, native, body = line.split(" ", 2)
                self.bodies[native].append(body)
        self.connection = SimpleNamespace(address=ADDRESSES.get(exchange, ""), uuid=exchange, subscription={})
        self.books = self.trades = self.written = self.snapshots = 0

        natives = {native for frame in self.frames for native in natives_of(exchange, frame)}
        names = {split_name(native): native for native in sorted(natives | set(self.bodies))}
        if exchange == "bybit":  # its table has spot pairs with a slash, put in by the handler
            names = {name: name.replace("-", "/") for name in names}
        feed_class = getattr(cryptofeed.exchanges, CLASSES[exchange])
        Symbols.set(feed_class.id, names, {"instrument_type": dict.fromkeys(names, "spot"), "tick_size": {}})

        async def on_book(book: Any, received: float) -> None:
            # The fastest of eight ways tried: floats or its own `to_dict` take up to twice the time.
            bid, ask = book.book.bids.index, book.book.asks.index
            try:
                bids = [(str(price), str(size)) for price, size in map(bid, LEVELS)]
                asks = [(str(price), str(size)) for price, size in map(ask, LEVELS)]
            except IndexError:  # fewer than ten levels
                bids = [(str(price), str(size)) for price, size in book.book.bids.to_list()[:10]]
                asks = [(str(price), str(size)) for price, size in book.book.asks.to_list()[:10]]
            message = {
                "kind": "book",
                "exchange": book.exchange,
                "symbol": book.symbol,
                "sequence": book.sequence_number,
                "received": received,
                "time": book.timestamp,
                "bids": bids,
                "asks": asks,
            }
            self.written += len(orjson.dumps(message))
            self.books += 1

        async def on_trade(trade: Any, received: float) -> None:
            message = {
                "kind": "trade",
                "exchange": trade.exchange,
                "symbol": trade.symbol,
                "id": trade.id,
                "received": received,
                "time": trade.timestamp,
                "side": trade.side,
                "price": str(trade.price),
                "size": str(trade.amount),
            }
            self.written += len(orjson.dumps(message))
            self.trades += 1

        def new_feed() -> Any:
            feed = feed_class(
                symbols=list(names),
                channels=[L2_BOOK, TRADES],
                callbacks={L2_BOOK: on_book, TRADES: on_trade},
                checksum_validation=verify,
                cross_check=verify,
            )
            feed.http_conn.read = self.reader()
            return feed

        self.new_feed = new_feed

    def reader(self) -> Any:
        """A stand-in for the feed's HTTP connection: the recorded bodies of each symbol, in order."""
        left = {native: iter(bodies) for native, bodies in self.bodies.items()}

        async def read(address: str, **_: Any) -> str:
            self.snapshots += 1
            native = address.split("symbol=", 1)[1].split("&", 1)[0]
            try:
                return next(left[native])
            except (KeyError, StopIteration):
                raise LookupError(f"no snapshot of {native} is left in the recording") from None

        return read

    async def count(self) -> dict[str, Any]:
        """One pass that is not timed: what becomes of each frame."""
        ignored: collections.Counter[str] = collections.Counter()
        failed: collections.Counter[str] = collections.Counter()
        log = Count()
        logger = logging.getLogger("feedhandler")
        logger.addHandler(log)
        logger.propagate = False
        feed = self.new_feed()
        for frame in self.frames:
            before = self.books + self.trades
            try:
                await feed.message_handler(frame, self.connection, time.time())
            except Exception as error:
                failed[f"{kind_of(frame)}: {type(error).__name__} {error}".strip()[:200]] += 1
            else:
                if self.books + self.trades == before:
                    ignored[kind_of(frame)] += 1
        return {
            "books": self.books,
            "trades": self.trades,
            "bytes": self.written,
            "snapshots": self.snapshots,
            "ignored": dict(ignored.most_common()),
            "failed": dict(failed.most_common()),
            "log_lines": log.lines,
        }

    async def round(self) -> float:
        """CPU seconds of one pass through a new feed."""
        handle, connection, now = self.new_feed().message_handler, self.connection, time.time
        gc.collect()
        start = time.thread_time()
        for frame in self.frames:
            try:
                await handle(frame, connection, now())
            except Exception:  # counted by `count`
                continue
        return time.thread_time() - start

    async def run(self, rounds: int) -> dict[str, Any]:
        counted = await self.count()
        spent = [await self.round() for _ in range(rounds + 1)]
        return {"cpu_s": spent[1:], **counted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exchange", choices=[*CLASSES, *NOT_SPOKEN])
    parser.add_argument("frames", type=Path)
    parser.add_argument("rounds", type=int)
    parser.add_argument("--verify", action="store_true", help="checksums and crossed books, both off by default")
    options = parser.parse_args()
    result: dict[str, Any] = {"exchange": options.exchange, "python": platform.python_version()}
    for package in ("cryptofeed", "order_book"):
        result[package] = importlib.metadata.version(package)
    if options.exchange in NOT_SPOKEN:
        result |= {"cpu_s": None, "why": NOT_SPOKEN[options.exchange]}
    else:
        lines = [line for line in options.frames.read_text("utf-8").split("\n") if line]
        driver = Driver(options.exchange, lines, options.verify)
        result |= {"frames": len(lines), "verify": options.verify, **asyncio.run(driver.run(options.rounds))}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
