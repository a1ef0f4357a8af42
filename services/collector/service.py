"""The collector's shell: sockets, REST calls and Kafka. What it all means is decided in feed.py."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import httpx2
import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from services.collector.exchanges.base import Exchange
from services.collector.feed import (
    BookChanged,
    Feed,
    Fetch,
    HealthChanged,
    Output,
    Reconnect,
    Send,
    Traded,
)
from shared import metrics, topics
from shared.errors import ArbiterError, FeedError, LinkLost, RateLimited, SubscriptionRefused, UnknownSymbol
from shared.kafka import Publisher
from shared.messages import book_value, health_value, rate_value, trade_value
from shared.settings import CollectorSettings, ExchangeSettings
from shared.symbols import base_of, is_rate

log = structlog.get_logger()

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""A Coinbase snapshot of BTC-USD is several MB; the library's limit of 1 MiB would close the connection."""

DEAD_S = 5.0
"""Without any frame or pong for so long a connection is given up (Kraken's documentation names five seconds)."""

LOOK_S = 0.1


def delays(most_s: float, draw: Callable[[float, float], float] = random.uniform) -> Iterator[float]:
    """Waits before a new connection, in seconds: exponential with full jitter, so that many do not come at once."""
    most = 0.5
    while True:
        yield draw(0.0, min(most, most_s))
        most = min(most * 2, most_s)


class Emitter:
    """Feed outputs to Kafka messages. One counter per symbol numbers all messages about it."""

    def __init__(self, exchange: str, publisher: Publisher, started_ns: int) -> None:
        self._exchange = exchange
        self._publisher = publisher
        self._topic = topics.ticks(exchange)
        self._started = started_ns // 1_000_000
        self._sequences: dict[str, int] = {}
        self._rates: dict[str, tuple[float, float]] = {}
        self._rate_states: dict[str, str] = {}
        self._books = metrics.TICKS.labels(exchange=exchange, kind="book")
        self._trades = metrics.TICKS.labels(exchange=exchange, kind="trade")

    def book(self, out: BookChanged) -> None:
        symbol = out.symbol
        sequence = self._next(symbol)
        if is_rate(symbol):
            self._rates[symbol] = (out.bids[0][0], out.asks[0][0])
            self._rate(symbol, sequence, out.received_ns, out.exchange_ns)
            return
        value = book_value(self._exchange, symbol, sequence, out.received_ns, out.exchange_ns, out.bids, out.asks)
        self._publisher.publish(self._topic, base_of(symbol), value)
        self._books.inc()

    def trade(self, out: Traded) -> None:
        if is_rate(out.symbol):
            return
        trade = out.trade
        value = trade_value(
            self._exchange,
            out.symbol,
            self._next(out.symbol),
            out.received_ns,
            trade.exchange_ns,
            trade.price,
            trade.size,
            trade.taker_side,
            trade.trade_id,
        )
        self._publisher.publish(self._topic, base_of(out.symbol), value)
        self._trades.inc()

    def health(self, out: HealthChanged) -> None:
        symbol = out.symbol
        sequence = self._next(symbol)
        metrics.BOOK_STATE.labels(exchange=self._exchange, symbol=symbol).set(out.state == "live")
        if self._rate_states.get(symbol) != out.state:
            self._rate_states[symbol] = out.state
            metrics.BOOK_CHANGES.labels(exchange=self._exchange, state=out.state).inc()
            log.info("book", exchange=self._exchange, symbol=symbol, state=out.state, reason=out.reason)
        if is_rate(symbol):
            self._rate(symbol, sequence, out.received_ns, None)
            return
        value = health_value(
            self._exchange, symbol, sequence, out.received_ns, out.state, out.reason, out.since_ns, out.alive_ns
        )
        self._publisher.publish(self._topic, base_of(symbol), value)
        metrics.TICKS.labels(exchange=self._exchange, kind="health").inc()

    def _rate(self, symbol: str, sequence: int, received_ns: int, exchange_ns: int | None) -> None:
        bid, ask = self._rates.get(symbol, (0.0, 0.0))
        state = self._rate_states.get(symbol, "syncing")
        if state == "live" and bid == 0.0:
            return  # its first book follows at once
        value = rate_value(self._exchange, symbol, sequence, received_ns, exchange_ns, bid, ask, state)
        self._publisher.publish(topics.FX_RATES, symbol, value)
        metrics.TICKS.labels(exchange=self._exchange, kind="rate").inc()

    def _next(self, symbol: str) -> int:
        number = self._sequences.get(symbol, self._started) + 1
        self._sequences[symbol] = number
        return number


class Collector:
    """Follows the configured symbols of one exchange until told to stop.

    Args:
        sleep, draw: Waiting and jitter, passed in by tests.
    """

    def __init__(
        self,
        exchange: Exchange,
        settings: ExchangeSettings,
        collector: CollectorSettings,
        publisher: Publisher,
        *,
        clock: Callable[[], int] = time.time_ns,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._exchange = exchange
        self._settings = settings
        self._collector = collector
        self._clock = clock
        self._sleep = sleep
        self._draw = draw
        self._emitter = Emitter(exchange.name, publisher, clock())
        self._frames = metrics.FRAMES.labels(exchange=exchange.name)

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`.

        Raises:
            UnknownSymbol, SubscriptionRefused: the exchange said no; other symbols stop too, loudly.
        """
        limits = httpx2.Timeout(self._collector.connect_s)
        async with httpx2.AsyncClient(timeout=limits, follow_redirects=False) as http:
            shards = _chunks(self._settings.symbols, self._exchange.books_per_connection)
            followers = [asyncio.create_task(self._follow(symbols, http)) for symbols in shards]
            stopped = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait([stopped, *followers], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (stopped, *followers):
                    task.cancel()
                results = await asyncio.gather(*followers, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _follow(self, symbols: tuple[str, ...], http: httpx2.AsyncClient) -> None:
        """One connection after the other, for some of the symbols."""
        exchange = self._exchange
        names = {exchange.native(symbol): symbol for symbol in symbols}
        waits = delays(self._collector.backoff_max_s, self._draw)
        while True:
            feed = Feed(
                exchange,
                names,
                self._settings.book_depth,
                self._collector.levels,
                self._collector.max_silence_ms * 1_000_000,
                self._clock(),
            )
            wait_s, reason = None, "closed"
            try:
                await self._connection(feed, tuple(names), http)
            except RateLimited as error:
                reason, wait_s = str(error), error.retry_after_s
            except FeedError as error:
                reason = str(error)
            except WebSocketException as error:  # closed while we were sending
                reason = f"connection lost: {error}"
            except asyncio.CancelledError:
                self._emit(feed.on_lost(self._clock(), "collector stopped"))
                raise
            self._emit(feed.on_lost(self._clock(), reason))
            if len(feed.unverified()) < len(names):
                waits = delays(self._collector.backoff_max_s, self._draw)  # data, not a handshake, proves the link
            metrics.RECONNECTS.labels(exchange=exchange.name, reason="lost" if wait_s is None else "rate_limited").inc()
            wait_s = next(waits) if wait_s is None else wait_s
            log.warning("feed lost", exchange=exchange.name, reason=reason, again_in_s=round(wait_s, 2))
            await self._sleep(wait_s)

    async def _connection(self, feed: Feed, natives: tuple[str, ...], http: httpx2.AsyncClient) -> None:
        async with _opened(self._exchange, self._settings.ws_url, natives, self._collector.connect_s) as socket:
            for frame in self._exchange.subscribe(natives, self._settings.book_depth):
                await socket.send(frame)
            await _Link(self, feed, socket, http).run()

    def _emit(self, outputs: list[Output]) -> None:
        emitter = self._emitter
        for out in outputs:
            kind = type(out)
            if kind is BookChanged:
                emitter.book(out)  # type: ignore[arg-type]  # narrowed by `kind`: the hot path
            elif kind is Traded:
                emitter.trade(out)  # type: ignore[arg-type]
            elif kind is HealthChanged:
                emitter.health(out)  # type: ignore[arg-type]


class _Link:
    """One open connection: reads, looks at silence, pings, fetches snapshots, until one of them fails."""

    def __init__(self, owner: Collector, feed: Feed, socket: ClientConnection, http: httpx2.AsyncClient) -> None:
        self._owner = owner
        self._feed = feed
        self._socket = socket
        self._http = http
        self._fetching: set[str] = set()
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Until the connection ends.

        Raises:
            FeedError, WebSocketException: why it is of no more use.
            UnknownSymbol, SubscriptionRefused: the exchange said no.
        """
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._look())
                if self._owner._exchange.ping_s is not None:
                    group.create_task(self._ping(self._owner._exchange.ping_s))
                await self._act(self._feed.on_connected(self._owner._clock()))
                await self._read()
        except BaseExceptionGroup as failures:
            raise _first(failures) from None

    async def _read(self) -> None:
        feed, clock, frames = self._feed, self._owner._clock, self._owner._frames
        while True:
            frame = await self._socket.recv(decode=False)
            frames.inc()
            outputs = feed.on_frame(frame, clock())
            if outputs:
                await self._act(outputs)

    async def _act(self, outputs: list[Output]) -> None:
        self._owner._emit(outputs)
        for out in outputs:
            if isinstance(out, Send):
                await self._socket.send(out.frame)
            elif isinstance(out, Fetch) and out.native not in self._fetching:
                self._fetching.add(out.native)
                assert self._group is not None
                self._group.create_task(self._fetch(out.native))
            elif isinstance(out, Reconnect):
                raise LinkLost(out.reason)

    async def _look(self) -> None:
        """Silence must be noticed while nothing comes; so must subscriptions that never bring data."""
        feed, clock = self._feed, self._owner._clock
        first_data_ns = clock() + int(self._owner._collector.first_data_s * 1e9)
        while True:
            await asyncio.sleep(LOOK_S)
            now_ns = clock()
            await self._act(feed.on_timer(now_ns))
            if now_ns - feed.alive_ns > DEAD_S * 1e9:
                raise LinkLost(f"nothing came for {DEAD_S:g} s")
            if now_ns > first_data_ns and (missing := feed.unverified()):
                wanted = self._owner._collector.first_data_s
                raise LinkLost(f"no book of {', '.join(missing)} within {wanted:g} s (collector.first_data_s)")

    async def _ping(self, every_s: float) -> None:
        while True:
            await (await self._socket.ping())
            await self._act(self._feed.on_proof(self._owner._clock()))
            await asyncio.sleep(every_s)

    async def _fetch(self, native: str) -> None:
        """A REST snapshot, again with growing waits while it is too old or the server is in trouble."""
        owner = self._owner
        exchange, rest_url = owner._exchange, owner._settings.rest_url
        assert exchange.snapshot_url is not None
        waits = delays(owner._collector.backoff_max_s, owner._draw)
        url = exchange.snapshot_url(rest_url, native, owner._settings.book_depth)
        while True:
            body = await self._get(url, native)
            if body is not None:
                self._fetching.discard(native)
                outputs = self._feed.on_rest(native, body, owner._clock())
                again = any(isinstance(out, Fetch) for out in outputs)
                if not again:
                    await self._act(outputs)
                    return
                self._fetching.add(native)
                owner._emit(outputs)
            await owner._sleep(next(waits))

    async def _get(self, url: str, native: str) -> bytes | None:
        exchange = self._owner._exchange
        try:
            answer = await self._http.get(url)
        except httpx2.HTTPError as error:
            log.warning("no snapshot", exchange=exchange.name, symbol=native, error=repr(error))
            return None
        if answer.status_code == 200:
            return answer.content
        words = exchange.refusal(answer.status_code, answer.content) if exchange.refusal is not None else None
        if words is not None:
            raise UnknownSymbol(exchange.name, self._feed.symbol_of(native), words)
        if answer.status_code in (418, 429):
            raise RateLimited(exchange.name, answer.status_code, _retry_after(answer.headers.get("retry-after")))
        if answer.status_code in (403, 451):
            raise SubscriptionRefused(
                exchange.name, f"HTTP {answer.status_code} from {url}: refused from this place; set another rest_url"
            )
        log.warning("no snapshot", exchange=exchange.name, symbol=native, status=answer.status_code)
        return None


def _chunks(symbols: tuple[str, ...], size: int) -> list[tuple[str, ...]]:
    return [symbols[i : i + size] for i in range(0, len(symbols), size)]


def _retry_after(text: str | None) -> float:
    """Seconds as the exchange says them; a minute where it does not say."""
    try:
        seconds = float(text or "")
    except ValueError:
        return 60.0
    return min(max(seconds, 1.0), 3 * 86_400) if seconds == seconds else 60.0


@contextlib.asynccontextmanager
async def _opened(
    exchange: Exchange, base_url: str, natives: tuple[str, ...], connect_s: float
) -> AsyncIterator[ClientConnection]:
    """An open socket; what cannot be opened is a FeedError."""
    url = exchange.url(base_url, natives)
    try:
        # No pings of the library: silence is measured by the feed, and within two seconds.
        socket = await connect(
            url, open_timeout=connect_s, ping_interval=None, max_size=MAX_FRAME_BYTES, close_timeout=1.0
        )
    except InvalidStatus as error:
        status = error.response.status_code
        if status in (418, 429):
            raise RateLimited(exchange.name, status, _retry_after(error.response.headers.get("retry-after"))) from None
        raise LinkLost(f"{base_url} answered HTTP {status}") from None
    except (OSError, WebSocketException) as error:  # TimeoutError is an OSError
        raise LinkLost(f"cannot connect to {base_url}: {error or type(error).__name__}") from None
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
