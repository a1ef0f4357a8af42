"""The collector's shell: which connections there are, when one takes the place of another, and what is asked by REST
beside them (what the exchange lists, what time it is there)."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx2
import structlog

from services.collector import instruments
from services.collector.allowance import Allowance
from services.collector.clock import ClockOffset, offset
from services.collector.emitter import Emitter
from services.collector.exchanges import exchange_named
from services.collector.exchanges.base import Exchange, Instrument, parse_answer, parse_listing
from services.collector.feed import Feed
from services.collector.instruments import Catalog
from services.collector.keeper import Timing
from services.collector.link import Link, Source, delays
from services.collector.outputs import HealthChanged
from services.collector.rest import Rest
from shared import metrics
from shared.errors import ArbiterError, FeedError, LinkLost, RateLimited, SubscriptionRefused, UsageError
from shared.kafka import Publisher
from shared.process import steady_ns
from shared.settings import CollectorSettings, ExchangeSettings

log = structlog.get_logger()

SWITCH_AFTER = 3
"""After so many connections without a book the other source is tried."""

HALTED_LOOK_S = 0.5

SECOND_FOR_S = 300.0
"""So long the second source is used before the first one is tried again."""


class Collector:
    """Follows the configured symbols of one exchange until told to stop.

    Args:
        exchange: Name in the settings; messages carry it.
        shard: (i, n): this process is number i (from 1) of n, and follows its part of the symbols.
        cache: Folder for the exchange's metadata.
        sleep, draw: Waiting and jitter, passed in by tests.
    """

    def __init__(
        self,
        exchange: str,
        settings: ExchangeSettings,
        collector: CollectorSettings,
        publisher: Publisher,
        *,
        cache: Path,
        shard: tuple[int, int] = (1, 1),
        protocol: Exchange | None = None,
        clock: Callable[[], int] = time.time_ns,
        ticks: Callable[[], int] = steady_ns,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._name = exchange
        self._settings = settings
        self._collector = collector
        self._cache = cache
        self._shard = shard
        self._protocol = protocol or exchange_named(exchange)
        self._symbols = instruments.shard(settings.symbols, *shard)
        self._clock = clock
        self._ticks = ticks
        self._sleep = sleep
        self._draw = draw
        self._emitter = Emitter(exchange, publisher, clock())
        self._names: dict[str, dict[str, str]] = {}
        self._halted: dict[str, dict[str, str]] = {}
        self._fetched_ns: dict[str, int] = {}
        self._proven: frozenset[str] = frozenset()
        self._links: set[Link] = set()
        self._timing = Timing(
            int(collector.first_data_s * 1e9), int(collector.refresh_s * 1e9), collector.max_silence_ms * 1_000_000
        )

    def books(self) -> tuple[bool, str]:
        """Whether any book is live, and in words how many are and what the rest is in. Any thread."""
        states = self._emitter.states()
        live = states.pop("live", 0)
        silent = len(self._symbols) - live - sum(states.values())
        rest = [f"{count} {state}" for state, count in sorted(states.items())]
        rest += [f"{silent} not heard of yet"] if silent > 0 else []
        return live > 0, "; ".join([f"{live} of {len(self._symbols)} live", *rest])

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`.

        Raises:
            UnknownSymbol, SubscriptionRefused, SettingsError: the exchange said no; all symbols stop, loudly.
        """
        limits = httpx2.Timeout(self._collector.connect_s)
        async with httpx2.AsyncClient(timeout=limits, follow_redirects=False) as http:
            work = asyncio.create_task(self._work(http))
            stopped = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait([stopped, work], return_when=asyncio.FIRST_COMPLETED)
            finally:
                stopped.cancel()
                work.cancel()
                (result,) = await asyncio.gather(work, return_exceptions=True)
                for link in self._links:
                    link.lost("collector stopped")
        failure = result
        while isinstance(failure, BaseExceptionGroup):
            failure = next((one for one in failure.exceptions if isinstance(one, ArbiterError)), failure.exceptions[0])
        if isinstance(failure, Exception):
            raise failure

    async def _work(self, http: httpx2.AsyncClient) -> None:
        sources = self._sources(http)
        first = sources[0]
        await self._list(first, wait=True)
        async with asyncio.TaskGroup() as group:
            for symbols in _chunks(self._symbols, min(source.exchange.limits.books for source in sources)):
                group.create_task(self._follow(symbols, sources))
            group.create_task(self._watch_instruments(sources))
            group.create_task(self._watch_clock(first))

    def _sources(self, http: httpx2.AsyncClient) -> list[Source]:
        configured = [(self._protocol, self._settings.ws_url, self._settings.rest_url)]
        second = self._settings.second
        if second is not None:
            configured.append((exchange_named(second.protocol), second.ws_url, second.rest_url))
        share = 1 / self._shard[1]
        found = []
        for protocol, ws_url, rest_url in configured:
            limits = protocol.limits
            requests = Allowance(limits.requests, share)
            found.append(
                Source(
                    protocol,
                    ws_url,
                    rest_url,
                    self._settings.book_depth,
                    Rest(protocol, http, requests, self._clock, self._ticks, self._sleep),
                    Allowance(limits.connects, share),
                    Allowance(limits.messages, share) if limits.messages_of_address else None,
                )
            )
        return found

    # ------------------------------------------------ connections

    async def _follow(self, symbols: tuple[str, ...], sources: list[Source]) -> None:
        """One connection after the other, for some of the symbols."""
        waits = delays(self._collector.backoff_max_s, self._draw)
        failures = 0
        before: Feed | None = None
        while True:
            await self._some_traded(symbols, sources[0])
            source = sources[failures // SWITCH_AFTER % len(sources)]
            try:
                link, task = await self._start(source, symbols, before, active=True)
            except FeedError as refused:
                failures += 1
                await self._wait(refused, next(waits))
                continue
            link, error = await self._keep(link, task, symbols, sources)
            before = link.feed
            link.lost(str(error))
            self._links.discard(link)
            self._proven |= before.verified()
            if before.verified():
                failures = 0
                waits = delays(self._collector.backoff_max_s, self._draw)  # data, not a handshake, proves the link
            else:
                failures += 1
            await self._wait(error, next(waits))

    async def _some_traded(self, symbols: tuple[str, ...], source: Source) -> None:
        """Returns when one of them is traded: a connection without a subscription would only be closed again."""
        told = False
        while True:
            halted = self._halted.get(source.exchange.name, {})
            names = {native: s for native, s in self._names[source.exchange.name].items() if s in symbols}
            if any(native not in halted for native in names):
                return
            now_ns = self._clock()
            for native, symbol in names.items() if not told else ():
                self._emitter.health(HealthChanged(symbol, "halted", halted[native], now_ns, now_ns, now_ns))
            told = True
            await asyncio.sleep(HALTED_LOOK_S)

    async def _wait(self, error: FeedError, backoff_s: float) -> None:
        wait_s = error.retry_after_s if isinstance(error, RateLimited) else backoff_s
        metrics.RECONNECTS.labels(exchange=self._name, reason=error.label).inc()
        log.warning("feed lost", exchange=self._name, reason=str(error), again_in_s=round(wait_s, 2))
        await self._sleep(wait_s)

    async def _keep(
        self, link: Link, task: asyncio.Task[None], symbols: tuple[str, ...], sources: list[Source]
    ) -> tuple[Link, FeedError]:
        """Until the link that is active then has ended; replaces it when it asks for that."""
        while True:
            asked = asyncio.create_task(link.replace.wait())
            try:
                await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                await _ended(task)
                raise
            finally:
                asked.cancel()
            if task.done():
                return link, _failure(task)
            link, task = await self._replace(link, task, symbols, sources)

    async def _replace(
        self, old: Link, old_task: asyncio.Task[None], symbols: tuple[str, ...], sources: list[Source]
    ) -> tuple[Link, asyncio.Task[None]]:
        """Another connection takes over when it has every book that the old one has; the old one goes on until then.

        When the old one ends first, the other takes over with what it has, if it is connected at all.
        """
        waits = delays(self._collector.backoff_max_s, self._draw)
        log.info("replacing a connection", exchange=self._name, reason=old.reason)
        new: Link | None = None
        new_task: asyncio.Task[None] | None = None
        try:
            while not old_task.done():
                try:
                    new, new_task = await self._start(sources[0], symbols, None, active=False)
                except FeedError as error:
                    log.warning("no replacement yet", exchange=self._name, reason=str(error))
                    await self._sleep_beside(old_task, next(waits))
                    continue
                while not (old_task.done() or new_task.done() or (new.connected and new.feed.covers(old.feed))):
                    await asyncio.wait({old_task, new_task}, timeout=0.05, return_when=asyncio.FIRST_COMPLETED)
                if new_task.done():
                    self._links.discard(new)
                    reason = _failure(new_task)
                    new = new_task = None
                    wait_s = reason.retry_after_s if isinstance(reason, RateLimited) else max(next(waits), 0.05)
                    log.warning("no replacement yet", exchange=self._name, reason=str(reason))
                    await self._sleep_beside(old_task, wait_s)
                    continue
                if not new.connected:
                    break  # the old one is gone, and this one waits for something: an ordinary loss
                old.retire()
                new.feed.adopt(old.feed)
                new.promote(old.feed)
                self._proven |= old.feed.verified()
                self._links.discard(old)
                promoted, promoted_task = new, new_task
                new = new_task = None  # its own from here on
                try:
                    await _ended(old_task)
                except asyncio.CancelledError:
                    await _ended(promoted_task)
                    raise
                metrics.RECONNECTS.labels(exchange=self._name, reason="replaced").inc()
                log.info("replaced a connection", exchange=self._name)
                return promoted, promoted_task
        except asyncio.CancelledError:
            await _ended(old_task)
            raise
        finally:
            if new is not None and new_task is not None:
                self._links.discard(new)
                await _ended(new_task)
        return old, old_task

    async def _sleep_beside(self, task: asyncio.Task[None], seconds: float) -> None:
        """Sleep, but not beyond the end of a task."""
        sleeping = asyncio.ensure_future(self._sleep(seconds))
        try:
            await asyncio.wait({sleeping, task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()

    async def _start(
        self, source: Source, symbols: tuple[str, ...], before: Feed | None, *, active: bool
    ) -> tuple[Link, asyncio.Task[None]]:
        """A new link and its task.

        Raises:
            FeedError: the source's metadata is not to be had.
        """
        protocol = source.exchange
        if protocol.name not in self._names:
            await self._list(source, wait=False)
        wanted = set(symbols)
        names = {native: symbol for native, symbol in self._names[protocol.name].items() if symbol in wanted}
        halted = self._halted.get(protocol.name, {})
        feed = Feed(
            protocol,
            names,
            source.depth,
            self._collector.levels,
            self._timing,
            self._clock(),
            halted,
            self._proven,
            self._collector.fast_tops,
        )
        if before is not None:
            feed.adopt(before)
        age_s = SECOND_FOR_S if protocol is not self._protocol else protocol.limits.age_s
        link = Link(
            source,
            feed,
            names,
            self._emitter,
            active=active,
            fast_tops=self._collector.fast_tops,
            connect_s=self._collector.connect_s,
            backoff_max_s=self._collector.backoff_max_s,
            age_s=age_s,
            clock=self._clock,
            ticks=self._ticks,
            sleep=self._sleep,
            draw=self._draw,
        )
        self._links.add(link)
        if protocol is not self._protocol:
            log.warning("second source", exchange=self._name, protocol=protocol.name, seconds=SECOND_FOR_S)
        return link, asyncio.create_task(link.run())

    # ------------------------------------------------ what the exchange lists

    async def _list(self, source: Source, *, wait: bool) -> None:
        """Names and status of the symbols, from the exchange or, if it cannot be asked, from the disk.

        Raises:
            UnknownSymbol, SettingsError: see `instruments.resolve`.
            FeedError: neither can be had, and `wait` is False.
        """
        protocol = source.exchange.name
        waits = delays(self._collector.backoff_max_s, self._draw)
        while True:
            try:
                catalog = await self._fetch_catalog(source)
            except (FeedError, SubscriptionRefused) as failure:
                if wait and isinstance(failure, SubscriptionRefused):
                    raise
                error = failure if isinstance(failure, FeedError) else LinkLost(str(failure), "refused")
                kept = instruments.read(instruments.path_of(self._cache, protocol), source.rest_url)
                if kept is None:
                    if not wait:
                        raise LinkLost(f"{protocol}: no metadata: {error}", "metadata") from None
                    self._say_disconnected(f"no metadata yet: {error}")
                    await self._wait(error, next(waits))
                    continue
                age_s = (self._clock() - kept.fetched_ns) / 1e9
                log.warning("metadata from disk", exchange=self._name, age_s=round(age_s), reason=str(error))
                catalog = kept
            listed = self._resolved(catalog, strict=wait)
            self._names[protocol] = listed.names
            self._halted[protocol] = listed.halted
            self._emitter.know(self._of_interest(catalog))
            self._fetched_ns[protocol] = catalog.fetched_ns
            self._show_age()
            return

    def _resolved(self, catalog: Catalog, *, strict: bool) -> instruments.Listed:
        """Of a second source: as far as it lists them; the first one decides what is wrong with the settings."""
        if strict:
            return instruments.resolve(catalog, self._symbols, self._name)
        listed = instruments.Listed({}, {})
        for symbol in self._symbols:
            try:
                one = instruments.resolve(catalog, [symbol], self._name)
            except UsageError as error:
                log.warning("not at the second source", exchange=self._name, symbol=symbol, reason=str(error))
                continue
            listed.names.update(one.names)
            listed.halted.update(one.halted)
        return listed

    def _of_interest(self, catalog: Catalog) -> list[Instrument]:
        return [one for one in catalog.instruments if one.native in self._names[catalog.protocol]]

    def _say_disconnected(self, reason: str) -> None:
        now_ns = self._clock()
        for symbol in self._symbols:
            self._emitter.health(HealthChanged(symbol, "disconnected", reason, now_ns, now_ns, now_ns))

    async def _fetch_catalog(self, source: Source) -> Catalog:
        return await _catalog(source.exchange, source.rest_url, source.rest, self._cache)

    async def _watch_instruments(self, sources: list[Source]) -> None:
        """Halts and delistings while we run: those books stop alone, and come back alone."""
        while True:
            await asyncio.sleep(self._collector.instruments_s)
            for source in sources:
                protocol = source.exchange.name
                if protocol not in self._names:
                    continue  # a second source that was not needed yet
                try:
                    catalog = await self._fetch_catalog(source)
                except (FeedError, SubscriptionRefused) as error:
                    log.warning("metadata not renewed", exchange=self._name, reason=str(error))
                    continue
                self._fetched_ns[protocol] = catalog.fetched_ns
                self._halted[protocol] = instruments.halted_now(catalog, self._names[protocol])
                self._emitter.know(self._of_interest(catalog))
                for link in tuple(self._links):
                    if link.source.exchange.name == protocol:
                        link.halted(self._halted[protocol])
            self._show_age()

    def _show_age(self) -> None:
        """Of the oldest metadata in use: it grows while it cannot be renewed."""
        age_ns = self._clock() - min(self._fetched_ns.values())
        metrics.INSTRUMENTS_AGE_S.labels(exchange=self._name).set(age_ns / 1e9)

    async def _watch_clock(self, source: Source) -> None:
        """The exchange's clock and ours."""
        exchange, known = source.exchange, ClockOffset()
        while True:
            try:
                answer = await source.rest.get(exchange.time_url(source.rest_url))
                server_ns, coarse_ns = parse_answer(exchange, exchange.parse_time, answer.body)
            except (FeedError, SubscriptionRefused) as error:
                log.warning("no clock sample", exchange=self._name, reason=str(error))
            else:
                known.add(offset(answer.sent_ns, server_ns, answer.received_ns, coarse_ns))
            best = known.best()
            if best is not None:
                metrics.CLOCK_OFFSET_MS.labels(exchange=self._name).set(best.offset_ns / 1e6)
                metrics.CLOCK_ERROR_MS.labels(exchange=self._name).set(best.error_ns / 1e6)
                if abs(best.offset_ns) > best.error_ns + 1_000_000_000:
                    log.warning("clocks are apart", exchange=self._name, offset_ms=best.offset_ns / 1e6)
            await asyncio.sleep(self._collector.clock_s)


async def fetch_catalog(exchange: Exchange, rest_url: str, http: httpx2.AsyncClient, cache: Path) -> Catalog:
    """What an exchange lists, asked once; kept on disk.

    Raises:
        FeedError: it cannot be asked, or its answer cannot be read.
    """
    rest = Rest(exchange, http, Allowance(exchange.limits.requests), time.time_ns, steady_ns, asyncio.sleep)
    return await _catalog(exchange, rest_url, rest, cache)


async def _catalog(exchange: Exchange, rest_url: str, rest: Rest, cache: Path) -> Catalog:
    answer = await rest.get(exchange.instruments_url(rest_url), exchange.instruments_cost)
    if answer.status != 200:
        raise LinkLost(f"{exchange.name}: HTTP {answer.status} for its metadata", "metadata")
    catalog = Catalog(exchange.name, rest_url, answer.received_ns, tuple(parse_listing(exchange, answer.body)))
    try:
        instruments.write(instruments.path_of(cache, exchange.name), catalog)
    except OSError as error:
        log.warning("metadata not kept", folder=str(cache), error=str(error))
    return catalog


def _chunks(symbols: tuple[str, ...], size: int) -> list[tuple[str, ...]]:
    return [symbols[i : i + size] for i in range(0, len(symbols), size)]


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancel and wait."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _failure(task: asyncio.Task[None]) -> FeedError:
    """Why a link ended; what must stop us is raised."""
    failure = task.exception()
    if isinstance(failure, FeedError):
        return failure
    if failure is not None:
        raise failure
    return LinkLost("connection ended", "closed")
