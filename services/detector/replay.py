"""Recorded order: messages merged by the moment they were received, and time that runs on that alone. Pure.

Live, the topics of different exchanges arrive in no fixed order, and a timer follows the wall clock. Here the same
messages give the same events, byte for byte, in whatever order they come and however a coin's neighbours are spread
over processes: a coin's events depend on its own messages, the rates and the timer's grid only.
"""

import heapq
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import IO, NamedTuple

from services.detector.engine import TIMER_NS, Engine, Event
from shared.errors import InputError, UndecodableRecord
from shared.messages import BookTick, levels, read_tick

CHUNK_BYTES = 64 << 20
"""Messages are sorted in memory up to this (some 100,000 books); more than that goes through temporary files."""


class Recorded(NamedTuple):
    """One message and where it comes from. The order of the fields is the recorded order: what follows `sequence` only
    tells equals apart, always in the same way."""

    received_ns: int
    exchange: str
    sequence: int
    symbol: str
    value: bytes
    source: str
    line: int


def recorded(source: str, line: int, value: bytes | None) -> Recorded:
    """A message with its place in the order.

    Raises:
        InputError: it is no message of a tick topic or of fx-rates; says where and why.
    """
    try:
        tick = read_tick(value)
        if isinstance(tick, BookTick):  # the engine reads its levels later, when another line would be blamed
            levels(tick.bids)
            levels(tick.asks)
    except UndecodableRecord as error:
        raise InputError(source, str(error), line) from None
    return Recorded(tick.received_ns, tick.exchange, tick.sequence, tick.symbol, value or b"", source, line)


def merged(messages: Iterable[Recorded], chunk_bytes: int = CHUNK_BYTES) -> Iterator[Recorded]:
    """The messages in recorded order. Exact for any order of the input; memory is bounded by `chunk_bytes`."""
    with ExitStack() as stack:
        chunks: list[IO[bytes]] = []
        chunk: list[Recorded] = []
        size = 0
        for message in messages:
            chunk.append(message)
            size += len(message.value)
            if size >= chunk_bytes:
                chunks.append(stack.enter_context(tempfile.TemporaryFile(prefix="arb-replay-")))
                _write(chunks[-1], sorted(chunk))
                chunk, size = [], 0
        yield from heapq.merge(*(_read(file) for file in chunks), sorted(chunk))


def _write(file: IO[bytes], messages: Iterable[Recorded]) -> None:
    for message in messages:
        pickle.dump(tuple(message), file)
    file.seek(0)


def _read(file: IO[bytes]) -> Iterator[Recorded]:
    while True:
        try:
            yield Recorded(*pickle.load(file))  # our own file, without a name
        except EOFError:
            return


def refuse(message: Recorded, error: Exception) -> None:
    """What cannot be taken in ends the replay: what came out without it would look complete.

    Raises:
        InputError: always.
    """
    raise InputError(message.source, f"cannot be taken in: {error!r}", message.line) from None


def replay(
    engine: Engine,
    messages: Iterable[Recorded],
    until_ns: int | None = None,
    on_bad: Callable[[Recorded, Exception], None] = refuse,
) -> Iterator[Event]:
    """Feed an engine and yield what comes out. Time runs on `received_ns` only.

    The timer strikes at every multiple of `TIMER_NS` before a message is taken in, whatever message it is.

    Args:
        messages: In recorded order, see `merged`.
        until_ns: Where time ends (exclusive); None: with the last message.
        on_bad: Called for a message that the engine cannot take in.
    """
    next_ns: int | None = None
    for message in messages:
        now_ns = message.received_ns
        if next_ns is None:
            next_ns = _grid(now_ns)
        if next_ns <= now_ns:
            yield from _strike(engine, next_ns, now_ns)
            next_ns = now_ns - now_ns % TIMER_NS + TIMER_NS
        try:
            events = engine.on_message(read_tick(message.value), now_ns)
        except (UndecodableRecord, ValueError, ArithmeticError) as error:
            on_bad(message, error)
            continue
        yield from events
    if next_ns is not None and until_ns is not None:
        yield from _strike(engine, next_ns, until_ns - 1)


def _grid(at_ns: int) -> int:
    """The first strike of the timer not before this moment."""
    return -(-at_ns // TIMER_NS) * TIMER_NS


def _strike(engine: Engine, from_ns: int, to_ns: int) -> Iterator[Event]:
    """The timer, at every multiple from `from_ns` up to `to_ns`. Over silence with nothing open it goes to the last of
    them at once: that one it never leaves out, so that the age of rates does not depend on a coin's neighbours."""
    now_ns = from_ns
    while now_ns <= to_ns:
        if engine.is_idle():
            now_ns = to_ns - (to_ns - now_ns) % TIMER_NS
        yield from engine.on_timer(now_ns)
        now_ns += TIMER_NS
