"""One open connection: reads, looks at silence, proves the link, sends, fetches snapshots, until one of them fails.

What it all means is decided in the feed. A link that stands by takes everything in and publishes nothing until it is
promoted: that is how a connection is replaced before the old one ends.
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass

import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from services.collector.allowance import Allowance
from services.collector.emitter import Emitter
from services.collector.exchanges.base import Exchange
from services.collector.feed import Feed
from services.collector.keeper import Counts
from services.collector.outputs import BookChanged, Fetch, Output, Reconnect, Replace, Send, Traded
from services.collector.rest import Rest, judge
from shared import metrics
from shared.errors import ArbiterError, FeedError, LinkLost, RateLimited

log = structlog.get_logger()

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""A Coinbase snapshot of BTC-USD is several MB; the library's limit of 1 MiB would close the connection."""

DEAD_S = 5.0
"""Without any frame or pong for so long a connection is given up (Kraken's documentation names five seconds)."""

LOOK_S = 0.1

SAMPLE = 64
"""Of so many frames one is timed: each costs some 2 us (measured), which all of them would feel."""

CLOCK_SET_NS = 500_000_000
"""When the wall clock runs away from the monotonic one by so much within a look, somebody has set it."""

MOST_MESSAGE_WAIT_S = 30.0
"""When a frame would have to wait longer for the exchange's message limit, a new connection is the better way."""

HELD_TRADES = 1000
"""Trades that a link which stands by keeps, in case the old one does not bring them any more."""


def delays(most_s: float, draw: Callable[[float, float], float] = random.uniform) -> Iterator[float]:
    """Waits before a new connection, in seconds: exponential with full jitter, so that many do not come at once."""
    most = 0.5
    while True:
        yield draw(0.0, min(most, most_s))
        most = min(most * 2, most_s)


@dataclass(frozen=True, slots=True)
class Source:
    """A protocol, where it is spoken, and what it allows. `connects` is shared by all connections of the process."""

    exchange: Exchange
    ws_url: str
    rest_url: str
    depth: int
    rest: Rest
    connects: Allowance
    messages: Allowance | None = None
    """Where the limit of messages is one of the address."""


class Link:
    """A connection and its feed.

    Args:
        names: Native to canonical names of the books on it.
        active: Whether it publishes from the start; else it stands by until `promote`.
        age_s: Ask to be replaced after so long; None: never.
    """

    def __init__(
        self,
        source: Source,
        feed: Feed,
        names: Mapping[str, str],
        emitter: Emitter,
        *,
        active: bool,
        fast_tops: bool,
        connect_s: float,
        backoff_max_s: float,
        age_s: float | None,
        clock: Callable[[], int],
        ticks: Callable[[], int],
        sleep: Callable[[float], Awaitable[None]],
        draw: Callable[[float, float], float],
    ) -> None:
        self.source = source
        self.feed = feed
        self.replace = asyncio.Event()
        """Set when the connection must be replaced; `reason` says why."""
        self.reason = ""
        self.connected = False
        self._names = dict(names)
        self._emitter = emitter
        self._active = active
        self._fast_tops = fast_tops
        self._connect_s = connect_s
        self._backoff_max_s = backoff_max_s
        self._age_s = age_s
        self._clock = clock
        self._ticks = ticks
        self._sleep = sleep
        self._draw = draw
        self._messages = source.messages or Allowance(source.exchange.limits.messages)
        self._outbox: asyncio.Queue[str] = asyncio.Queue()
        self._held: deque[Traded] = deque(maxlen=HELD_TRADES)
        self._fetching: set[str] = set()
        self._told = Counts()
        self._early = 0
        self._group: asyncio.TaskGroup | None = None

    # ------------------------------------------------ for the owner

    async def run(self) -> None:
        """Until the connection ends.

        Raises:
            FeedError: why it is of no more use.
            UnknownSymbol, SubscriptionRefused: the exchange said no.
        """
        exchange = self.source.exchange
        gauge = metrics.CONNECTIONS.labels(exchange=self._emitter.exchange, protocol=exchange.name)
        async with _opened(
            self.source, tuple(self._names), self._connect_s, self._clock, self._ticks, self._sleep
        ) as socket:
            gauge.inc()
            self.connected = True
            try:
                async with asyncio.TaskGroup() as group:
                    self._group = group
                    self._take(self.feed.on_connected(self._clock()))
                    wanted = [native for native in self._names if native not in self.feed.halted()]
                    for frame in exchange.subscribe(wanted, self.source.depth, self._fast_tops) if wanted else []:
                        self._outbox.put_nowait(frame)
                    group.create_task(self._write(socket))
                    group.create_task(self._look(socket))
                    await self._read(socket)
            except BaseExceptionGroup as failures:
                raise _first(failures) from None
            finally:
                self._group = None
                gauge.dec()
                self._count()

    def promote(self, before: Feed | None) -> None:
        """Publish from now on: first all that is known of every book, and the trades that `before` did not have."""
        held = [trade for trade in self._held if before is None or before.is_new(trade)]
        self._held.clear()
        self._active = True
        self._emitter.emit([*self.feed.announce(self._clock()), *held])

    def retire(self) -> None:
        """Publish no more."""
        self._active = False

    def lost(self, reason: str) -> None:
        """Tell that its books are lost, if it was the one that published them."""
        outputs = self.feed.on_lost(self._clock(), reason)
        if self._active:
            self._emitter.emit(outputs)

    def halted(self, halted: Mapping[str, str]) -> None:
        """What the exchange's metadata says about trading now."""
        self._take(self.feed.on_halted(halted, self._clock()))

    # ------------------------------------------------ its tasks

    async def _read(self, socket: ClientConnection) -> None:
        on_frame, clock, recv, ticks = self.feed.on_frame, self._clock, socket.recv, self._ticks
        took = metrics.FRAME_TO_TICK_MS.labels(exchange=self._emitter.exchange)
        left = SAMPLE
        try:
            while True:
                frame = await recv(decode=False)
                left -= 1
                if left:
                    outputs = on_frame(frame, clock())
                    if outputs:
                        self._take(outputs)
                    continue
                left = SAMPLE
                began = ticks()
                outputs = on_frame(frame, clock())
                if outputs:
                    self._take(outputs)
                    took.observe((ticks() - began) / 1e6)
        except ConnectionClosed as error:
            raise LinkLost(f"connection closed: {error}", "closed") from None

    def _take(self, outputs: list[Output]) -> None:
        if self._active:
            self._emitter.emit(outputs)
            if len(outputs) == 1 and type(outputs[0]) is BookChanged:
                return  # nearly all frames
        for out in outputs:
            if isinstance(out, Send):
                self._outbox.put_nowait(out.frame)
            elif isinstance(out, Fetch):
                self._fetch(out.native)
            elif isinstance(out, Traded):
                if not self._active:
                    self._held.append(out)
            elif isinstance(out, Replace):
                self._want_replacement(out.reason)
            elif isinstance(out, Reconnect):
                raise LinkLost(out.reason, "doubt")

    def _want_replacement(self, reason: str) -> None:
        if not self.replace.is_set():
            self.reason = reason
            self.replace.set()

    async def _write(self, socket: ClientConnection) -> None:
        """Frames in order, within what the exchange allows one connection."""
        while True:
            frame = await self._outbox.get()
            now = self._ticks()
            wait_s = (self._messages.reserve(now) - now) / 1e9
            if wait_s > MOST_MESSAGE_WAIT_S:
                raise LinkLost(f"the messages that {self.source.exchange.name} allows are used up", "message_limit")
            if wait_s > 0:
                await self._sleep(wait_s)
            await self._say(socket, frame)

    async def _say(self, socket: ClientConnection, frame: str) -> None:
        try:
            await socket.send(frame)
        except ConnectionClosed as error:
            raise LinkLost(f"connection closed: {error}", "closed") from None

    async def _look(self, socket: ClientConnection) -> None:
        """Silence must be noticed while nothing comes; the link must prove itself where data does not."""
        feed, proof = self.feed, self.source.exchange.proof
        began = asked = self._ticks()
        ahead_ns = self._clock() - began
        pong: asyncio.Task[None] | None = None
        while True:
            await asyncio.sleep(LOOK_S)
            now_ns, now = self._clock(), self._ticks()
            step_ns = now_ns - now - ahead_ns
            if abs(step_ns) > CLOCK_SET_NS:
                ahead_ns += step_ns
                log.warning("our clock was set", exchange=self._emitter.exchange, by_ms=step_ns / 1e6)
                feed.on_clock_set(step_ns)
            self._take(feed.on_timer(now_ns))
            self._count()
            if now_ns - feed.alive_ns > DEAD_S * 1e9:
                raise LinkLost(f"nothing came for {DEAD_S:g} s", "silent")
            if self._age_s is not None and now - began > self._age_s * 1e9:
                self._want_replacement(f"connected for {self._age_s:g} s")
            if proof is None:
                continue
            idle_ns = int(proof.idle_s * 1e9)
            due = now_ns - feed.alive_ns >= idle_ns and now - asked >= idle_ns
            if due or (proof.always_s is not None and now - asked >= proof.always_s * 1e9):
                asked = now
                if proof.frame is not None:
                    await self._say(socket, proof.frame)
                elif pong is None or pong.done():
                    assert self._group is not None
                    pong = self._group.create_task(self._ping(socket))

    async def _ping(self, socket: ClientConnection) -> None:
        try:
            await (await socket.ping())
        except ConnectionClosed as error:
            raise LinkLost(f"connection closed: {error}", "closed") from None
        self._take(self.feed.on_proof(self._clock()))

    def _fetch(self, native: str) -> None:
        if native not in self._fetching and self._group is not None:
            self._fetching.add(native)
            self._group.create_task(self._snapshot(native))

    async def _snapshot(self, native: str) -> None:
        """A REST snapshot, again with growing waits while it is too old, not to be had or not allowed."""
        source = self.source
        exchange = source.exchange
        assert exchange.snapshot_url is not None
        cost = exchange.snapshot_cost(source.depth) if exchange.snapshot_cost is not None else 1
        url = exchange.snapshot_url(source.rest_url, native, source.depth)
        waits = delays(self._backoff_max_s, self._draw)
        while True:
            wait_s = None
            try:
                answer = await source.rest.get(url, cost)
            except RateLimited as error:
                wait_s = error.retry_after_s  # the other books go on: only what is asked by REST must wait
                log.warning("snapshot must wait", exchange=exchange.name, symbol=native, reason=str(error))
            except LinkLost as error:
                log.warning("no snapshot", exchange=exchange.name, symbol=native, reason=str(error))
            else:
                words = exchange.refusal(answer.status, answer.body) if exchange.refusal is not None else None
                if words is not None:
                    self._fetching.discard(native)
                    self._take(self.feed.refused(native, words, self._clock()))
                    return
                if answer.status == 200:
                    outputs = self.feed.on_rest(native, answer.body, self._clock())
                    self._take([out for out in outputs if not isinstance(out, Fetch)])
                    if Fetch(native) not in outputs:  # else it was older than the stream: once more
                        self._fetching.discard(native)
                        return
                else:
                    log.warning("no snapshot", exchange=exchange.name, symbol=native, status=answer.status)
            await self._sleep(next(waits) if wait_s is None else wait_s)

    # ------------------------------------------------ counting

    def _count(self) -> None:
        """Hand over what was counted in plain numbers."""
        name, counts, told = self._emitter.exchange, self.feed.counts, self._told
        metrics.FRAMES.labels(exchange=name).inc(counts.frames - told.frames)
        told.frames = counts.frames
        for kind in ("gaps", "checksum_failed", "crossed", "tops_wrong", "trade_gaps", "corrected"):
            new = getattr(counts, kind) - getattr(told, kind)
            if new:
                metrics.DOUBTS.labels(exchange=name, kind=kind).inc(new)
                setattr(told, kind, getattr(counts, kind))
        lag = self.feed.lag
        if lag.negative != self._early:
            if self._early == 0:
                log.warning("frames come before they were sent: clocks disagree", exchange=name, raw_ns=lag.raw_ns())
            metrics.EARLY_FRAMES.labels(exchange=name).inc(lag.negative - self._early)
            self._early = lag.negative
        lag_ns = lag.lag_ns(self._clock())
        if lag_ns is not None:
            metrics.FEED_LAG_MS.labels(exchange=name).set(lag_ns / 1e6)
        self._emitter.flush_metrics()


@contextlib.asynccontextmanager
async def _opened(
    source: Source,
    natives: tuple[str, ...],
    connect_s: float,
    clock: Callable[[], int],
    ticks: Callable[[], int],
    sleep: Callable[[float], Awaitable[None]],
) -> AsyncIterator[ClientConnection]:
    """An open socket; what cannot be opened is a FeedError."""
    now = ticks()
    wait_s = (source.connects.reserve(now) - now) / 1e9
    if wait_s > 0:
        await sleep(wait_s)
    exchange = source.exchange
    url = exchange.url(source.ws_url, natives)
    try:
        # No pings of the library: silence is measured by the feed, and within two seconds.
        socket = await connect(
            url, open_timeout=connect_s, ping_interval=None, max_size=MAX_FRAME_BYTES, close_timeout=1.0
        )
    except InvalidStatus as error:
        response = error.response
        try:
            judge(
                exchange,
                response.status_code,
                response.headers.get("retry-after"),
                bytes(response.body or b""),
                source.ws_url,
                clock() / 1e9,
            )
        except RateLimited as limited:
            source.connects.block(ticks() + int(limited.retry_after_s * 1e9))
            raise
        raise LinkLost(f"{source.ws_url} answered HTTP {response.status_code}", "refused") from None
    except (OSError, WebSocketException) as error:  # TimeoutError is an OSError
        raise LinkLost(f"cannot connect to {source.ws_url}: {error or type(error).__name__}", "refused") from None
    try:
        yield socket
    finally:
        await socket.close()


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that decides: what must stop us before what makes us reconnect."""
    flat: list[BaseException] = []
    pending: list[BaseException] = [failures]
    while pending:
        one = pending.pop()
        if isinstance(one, BaseExceptionGroup):
            pending.extend(one.exceptions)
        else:
            flat.append(one)
    flat.sort(key=lambda one: (isinstance(one, FeedError | WebSocketException), not isinstance(one, ArbiterError)))
    return flat[0]
