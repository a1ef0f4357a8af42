"""What every service's process does alike: logging, signals, the last words of an error."""

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, NoReturn, TextIO, TypeVar, cast

import structlog

from shared import secrets
from shared.errors import ArbiterError
from shared.settings import LogSettings

T = TypeVar("T")

M_MMAP_THRESHOLD = -3
"""From malloc.h; see mallopt(3)."""


AWAY_NS = 5_000_000_000
"""A process that did not run for so long (stopped, starved, asleep) may have lost its partitions to others: half of the
time after which a group gives a silent member up."""


def steady_ns() -> int:
    """A clock that is never set, in ns. On Linux it goes on while the machine sleeps: then what we hold is old."""
    return time.clock_gettime_ns(_STEADY)


_STEADY: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class _StandardError:
    """Standard error as it is when something is written: loggers keep their file, and a test's is closed after it."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def setup_logging(settings: LogSettings) -> None:
    """Log to standard error, as text or one JSON object a line; standard output is for data.

    No line has a key in it, and no traceback has locals: they are where keys and prompts are. That holds for what other
    libraries log and for an exception that nobody catches, in any thread, too.
    """
    renderer: Any = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    if settings.json_lines:
        renderer = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            secrets.redact_event,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[settings.level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(file=cast(TextIO, _StandardError())),
        cache_logger_on_first_use=True,
    )
    # What asyncio and other libraries log goes to the handler of last resort, unless somebody set up another one.
    last = logging.StreamHandler(cast(TextIO, _StandardError()))
    last.setLevel(logging.WARNING)
    last.setFormatter(secrets.RedactingFormatter())
    logging.lastResort = last
    sys.excepthook = _last_words
    threading.excepthook = _of_a_thread
    sys.unraisablehook = _unraisable


def _last_words(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What Python prints of an exception that ends the process, without keys."""
    sys.stderr.write(secrets.describe(error))


def _of_a_thread(ended: threading.ExceptHookArgs) -> None:
    """The same of one that ends a thread."""
    if ended.exc_value is not None and ended.exc_type is not SystemExit:
        name = "a thread" if ended.thread is None else ended.thread.name
        sys.stderr.write(f"Exception in thread {name}:\n{secrets.describe(ended.exc_value)}")


def _unraisable(ignored: "sys.UnraisableHookArgs") -> None:
    """The same of one that nobody can catch (in a `__del__`, a callback of C)."""
    if ignored.exc_value is not None:
        words = ignored.err_msg or "Exception ignored"
        sys.stderr.write(f"{words} in {type(ignored.object).__name__}:\n{secrets.describe(ignored.exc_value)}")


def keep_heap_small() -> None:
    """Let glibc give large blocks back to the system instead of leaving holes in the heap.

    asyncio receives into blocks of 256 KiB that are shrunk at once; after the first of them is freed, glibc takes the
    next ones from the heap (its threshold follows them), and a collector grew by some 90 MiB an hour of holes.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library: another behaviour
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65_536)


def keep_garbage_small() -> None:
    """Put what was imported out of the collector's sight, so that a full collection comes soon and costs little.

    Python looks at everything only when a quarter as many objects wait as it saw the last time. With some 60,000 of
    imports among them that takes hundreds of lost connections (an exception, its traceback and its frames are a cycle):
    a collector's memory rose by 40 MiB an hour before it fell.
    """
    gc.collect()
    gc.freeze()


def look_for_garbage_seldom() -> None:
    """Look for cyclic garbage only where 20,000 objects more are there than after the last look, not 700.

    What ticks and decisions are made of goes without that, and each look holds up all else: in the decider 2 to 40 ms,
    five times a second; in the detector 2 % of its time.
    """
    gc.set_threshold(20_000, 5, 10)


def run_async(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run `main(stop)` on a new event loop; SIGTERM and SIGINT set `stop`, and `main` ends in its own order."""

    keep_heap_small()
    keep_garbage_small()

    async def with_signals() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await main(stop)

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(with_signals())
    finally:
        # As asyncio.run, but without waiting for its threads: see `leave`.
        loop.run_until_complete(_cancel_the_rest())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """As `asyncio.to_thread`, in a thread of its own that keeps nobody from leaving: that one's threads may all hang in
    the resolution of names, and what is started behind them never begins."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # it is the function's result

    def run() -> None:
        result, failed = None, None
        try:
            result = function(*arguments)
        except Exception as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(finish, result, failed)

    threading.Thread(target=run, daemon=True).start()
    return await future


async def _cancel_the_rest() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


def leave() -> None:
    """End the process now if threads would keep it: a name that is being resolved cannot be cancelled."""
    if any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def stop_on_signal() -> threading.Event:
    """An event that SIGTERM and SIGINT set: for services that are a plain thread loop."""
    keep_heap_small()
    keep_garbage_small()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def fail(error: ArbiterError) -> NoReturn:
    """End the process with the error's one line on standard error and its exit code."""
    print(f"arb: {error}", file=sys.stderr)  # noqa: T201  # the last words of a command are not a log line
    sys.exit(error.exit_code)
