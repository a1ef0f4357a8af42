"""The other processes of `decider.py`, each started by it with a case in JSON.

`models`: an OpenAI-compatible endpoint that answers after a drawn time and notes, for each call, when the last byte of
the request was there and when it let go the answer, by the machine's monotonic clock: what the model itself took. There
means in the kernel, which says when that was (on Linux; elsewhere: when it was read): that this process waits for a
core beside a broker is what a model takes, and nothing that the one who asked has added. At its end it writes its notes
as one JSON line each: [role, number, in, out].

`floor`: the least that a decider on Kafka does: read an opportunity and validate it, write a decision of the usual size
(and its audit, if asked to). The same clients, settings and message classes; nothing is decided.

`panels`: the least that three calls of a panel cost: questions sent at once by bare `aiohttp`, their answers read,
at a steady rate. Nothing is decided, checked or paid for, and no Kafka is there. Prints [number, milliseconds] of each.

`watched`: the decider itself, with a thread that notes its memory: [decisions, Python's blocks, resident KiB].
"""

import asyncio
import contextlib
import gc
import json
import random
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

import orjson

NUMBER = "profit_usd"
"""Which number of the question says which opportunity it is about: whole ones only."""

ANSWERS: dict[str, dict[str, Any]] = {
    "sentiment": {"view": "buy", "pressure": "buyers"},
    "risk": {},
    "volatility": {"volatility": 0.1},
}
ANSWER = {
    "p_edge": 0.8,
    "view": "hold",
    "veto": False,
    "volatility": 0.0,
    "code": "OK",
    "pressure": "balanced",
    "liquidity": "ample",
    "manipulation": "low",
    "note": "as usual",
}


SO_TIMESTAMPNS = 35
"""Linux: with what is read comes when its last segment arrived (socket(7)). `socket` has no name for it."""

STAMPED = sys.platform == "linux"


# ---------------------------------------------------------------- models


def came_at_ns(words: list[tuple[int, int, bytes]]) -> int:
    """When the last of what was read arrived, by the monotonic clock; now, where the kernel does not say."""
    now_ns = time.monotonic_ns()
    for level, kind, data in words:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("qq", data)
            return int(seconds * 1_000_000_000 + nanoseconds) - (time.time_ns() - now_ns)
    return now_ns


class Call:
    """One connection: requests one after the other, as clients of models send them."""

    notes: list[tuple[str, int, int, int]]
    span_s: tuple[float, float]
    draw: random.Random

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._held = b""
        connection.setblocking(False)
        if STAMPED:
            connection.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        asyncio.get_running_loop().add_reader(connection, self._read)

    def _read(self) -> None:
        try:
            data, words, _, _ = self._connection.recvmsg(1 << 20, 64 if STAMPED else 0)
        except OSError:
            data, words = b"", []
        if not data:
            asyncio.get_running_loop().remove_reader(self._connection)
            self._connection.close()
            return
        self._held += data
        head, found, rest = self._held.partition(b"\r\n\r\n")
        if not found:
            return
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-length":
                length = int(value)
        if len(rest) < length:
            return
        came_ns = came_at_ns(words)
        self._held = rest[length:]
        if head.startswith(b"GET"):
            self._write({"object": "list", "data": []})
            return
        call = orjson.loads(rest[:length])
        asked = orjson.loads(call["messages"][-1]["content"])
        loop, wait_s = asyncio.get_running_loop(), self.draw.uniform(*self.span_s)
        loop.call_later(wait_s, self._answer, call["model"], asked["role"], float(asked[NUMBER]), came_ns)

    def _answer(self, model: str, role: str, number: float, came_ns: int) -> None:
        text = orjson.dumps(ANSWER | ANSWERS[role]).decode()
        message = {"role": "assistant", "content": text, "refusal": None}
        reply = {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1_795_000_000,
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 700, "completion_tokens": 60, "total_tokens": 760},
        }
        left_ns = self._write(reply)
        if number.is_integer():
            self.notes.append((role, int(number), came_ns, left_ns))

    def _write(self, document: dict[str, Any]) -> int:
        body = orjson.dumps(document)
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        at_ns = time.monotonic_ns()
        with contextlib.suppress(OSError):  # a client that has gone
            self._connection.send(head.encode() + body)
        return at_ns


def models(case: dict[str, Any]) -> None:
    """Until told to end; then the notes are written."""
    from shared import process

    Call.notes, Call.draw = [], random.Random(case["seed"])
    Call.span_s = (case["latency_ms"][0] / 1000, case["latency_ms"][1] / 1000)

    async def serve(stop: asyncio.Event) -> None:
        server = socket.create_server(("127.0.0.1", 0))
        server.setblocking(False)
        asyncio.get_running_loop().add_reader(server, lambda: Call(server.accept()[0]))
        port = server.getsockname()[1]
        print(json.dumps({"base_url": f"http://127.0.0.1:{port}/v1"}), flush=True)
        await stop.wait()
        server.close()

    gc.freeze()
    process.run_async(serve)
    Path(case["notes"]).write_bytes(b"".join(orjson.dumps(note) + b"\n" for note in Call.notes))


# ---------------------------------------------------------------- the floor


def floor(case: dict[str, Any]) -> None:
    """Consume, validate, encode, produce, until told to end."""
    from confluent_kafka import Consumer

    from shared import kafka, process, topics
    from shared.messages import Opportunity, decode
    from shared.settings import KafkaSettings

    settings = KafkaSettings(servers=case["servers"], options=case["options"])
    written = [decode(bytes.fromhex(text)) for text in case["written"]]
    stop = process.stop_on_signal()
    publisher = kafka.Publisher(kafka.event_producer(settings, "floor"), drop_when_full=False)
    consumer = Consumer(kafka.event_consumer(settings, "floor", case["group"]))
    consumer.subscribe([topics.OPPORTUNITIES])
    gc.freeze()
    try:
        while not stop.is_set():
            for record in kafka.read(consumer):
                message = decode(record.value)
                assert isinstance(message, Opportunity)
                for one in written:
                    publisher.publish(case["out"], message.base, one.encode())
    finally:
        publisher.close()
        consumer.close()


# ---------------------------------------------------------------- bare panels


def panels(case: dict[str, Any]) -> None:
    """`count` panels at a steady rate."""
    import aiohttp

    questions = [(one["model"], one["system"], orjson.loads(one["user"])) for one in case["questions"]]
    took: list[tuple[int, float]] = []

    async def call(session: aiohttp.ClientSession, body: bytes) -> None:
        async with session.post(f"{case['base_url']}/chat/completions", data=body) as response:
            await response.read()

    async def panel(session: aiohttp.ClientSession, number: int) -> None:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for model, system, user in questions:
                text = orjson.dumps(user | {NUMBER: str(number)}).decode()
                messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
                group.create_task(call(session, orjson.dumps({"model": model, "messages": messages})))
        took.append((number, (time.perf_counter() - began) * 1000))

    async def run() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            due, running = time.perf_counter(), set()
            for number in range(case["count"]):
                due += 1 / case["rate"]
                await asyncio.sleep(max(0.0, due - time.perf_counter()))  # the rate itself
                running.add(asyncio.create_task(panel(session, number)))
            await asyncio.gather(*running)

    gc.freeze()
    asyncio.run(run())
    print(orjson.dumps(took).decode())


# ---------------------------------------------------------------- the decider, watched


def watched(case: dict[str, Any]) -> None:
    """`arb decide`, its memory noted every so often, after a full garbage collection."""
    from common import rss_kib

    from services.cli.__main__ import app
    from shared import metrics

    def decisions() -> float:
        return sum(
            sample.value
            for family in metrics.DECISIONS.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        )

    def note() -> None:
        with Path(case["notes"]).open("wb", buffering=0) as file:
            while True:
                gc.collect()
                row = [decisions(), sys.getallocatedblocks(), rss_kib()]
                file.write(orjson.dumps(row) + b"\n")
                time.sleep(case["every_s"])  # how often it is looked at

    threading.Thread(target=note, daemon=True).start()
    app(["decide"])


if __name__ == "__main__":
    {"models": models, "floor": floor, "panels": panels, "watched": watched}[sys.argv[1]](json.loads(sys.argv[2]))
