"""The simulator's shell: sockets, the clock, files. What is said on them is decided in the other modules."""

import asyncio
import contextlib
import datetime
import http
import random
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import orjson
import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.routing import Route
from websockets.asyncio.server import Server as WebSocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.protocol import State

from services.simulator.capture import Recording, TimedFrame
from services.simulator.exchanges import SERVERS
from services.simulator.exchanges.base import Answer, Server, Session
from services.simulator.faults import Change, Crossing, Faults, Line, Running, from_json, merged
from services.simulator.market import BookEvent, Market, MarketEvent
from services.simulator.model import ModelEndpoint
from services.simulator.truth import Truth
from shared import symbols
from shared.errors import InputError
from shared.settings import Settings

log = structlog.get_logger()

TIMER_S = 0.1
MOST_SLEEP_S = 0.02
MOST_TURN_NS = 50_000_000
"""Market time of one turn of the loop: sockets and the control endpoint must be heard in between."""

TOO_LATE_NS = 1_000_000_000
SLOW_CLIENT_FRAMES = 5000
"""A client that is so far behind is disconnected, as an exchange would."""

HANG_S = 10.0
"""A handshake or a REST request during a stall hangs for so long at most; then its connection is cut."""

FAULTS_S = 0.02
"""How often the schedule of faults is looked at."""

GOING_AWAY = 1001


def _response(answer: Answer | None, retry_after_s: int | None = None) -> Response:
    answer = answer or Answer(404, b'{"error":"no such path"}')
    headers = Headers({"content-type": "application/json", "content-length": str(len(answer.body))})
    if retry_after_s is not None:
        headers["retry-after"] = str(retry_after_s)
    try:
        phrase = http.HTTPStatus(answer.status).phrase
    except ValueError:
        phrase = "Refused"
    return Response(answer.status, phrase, headers, answer.body)


class SimulatedExchange(ABC):
    """What a generated and a replayed exchange share: connections, and the faults that need sockets.

    Args:
        faults: Of the whole simulator; those for `name` are ours.
    """

    def __init__(self, name: str, faults: Faults) -> None:
        self.name = name
        self.faults = faults
        self.connections: set[ServerConnection] = set()
        self._paused: set[ServerConnection] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._closing: set[asyncio.Task[None]] = set()

    @abstractmethod
    async def handle(self, connection: ServerConnection) -> None:
        """One client until it goes."""

    async def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """A REST answer; None lets a WebSocket handshake go on."""
        for stall in self.faults.active(self.name, "stall")[:1]:
            stall.strike()
        await self._flowing.wait()  # `listen` bounds it
        refusal = self.faults.refusal(self.name)
        if refusal is not None:
            return _response(Answer(refusal.status, b'{"error":"refused by a simulated fault"}'), refusal.retry_after_s)
        return None if "upgrade" in request.headers else await self._rest(request.path)

    @abstractmethod
    async def _rest(self, path: str) -> Response:
        """Answer a GET."""

    def follow(self, changes: list[Change]) -> None:
        """Do what the faults that are active now ask for; `changes` are those since the last call."""
        stalls = self.faults.active(self.name, "stall")
        if stalls:
            self._flowing.clear()
            for connection in self.connections:
                self._pause(connection, stalls[0])
        elif not self._flowing.is_set():
            self._flow()
        for fault in self.faults.active(self.name, "close"):
            for connection in self.connections:
                if connection.state is State.OPEN:
                    fault.strike()
                    self.close(connection, "closed by a simulated fault")

    def _pause(self, connection: ServerConnection, stall: Running) -> None:
        """A half-open socket: nothing is read, so that no ping is answered; no ping of ours goes out either."""
        connection.transport.pause_reading()  # again and again: the library resumes when it has emptied its buffer
        if connection not in self._paused:
            self._paused.add(connection)
            stall.strike()
            if connection.keepalive_task is not None:
                connection.keepalive_task.cancel()

    def _flow(self) -> None:
        for connection in self._paused & self.connections:
            connection.transport.resume_reading()
            if connection.state is State.OPEN:
                connection.start_keepalive()
        self._paused.clear()
        self._flowing.set()

    def close(self, connection: ServerConnection, words: str) -> None:
        """Begin the closing handshake."""
        task = asyncio.create_task(connection.close(GOING_AWAY, words))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def send(self, connection: ServerConnection, frame: str) -> None:
        """Send a frame as soon as nothing is stalled.

        Raises:
            ConnectionClosed: the client has gone.
        """
        await self._flowing.wait()
        await connection.send(frame)


class _Client:
    """One connection and what waits to be sent on it."""

    def __init__(self, connection: ServerConnection, session: Session, line: Line) -> None:
        self.connection = connection
        self.session = session
        self.line = line
        self.queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._ended = False

    def send(self, frames: list[str]) -> None:
        """Frames of the session, as far as the faults let them through."""
        self.put(self.line.passed(frames))

    def put(self, frames: list[str]) -> None:
        """Frames to send as they are."""
        if self._ended:
            return
        for frame in frames:
            self.queue.put_nowait(frame)
        if self.queue.qsize() > SLOW_CLIENT_FRAMES:
            self.end()

    def end(self) -> None:
        """Nothing more is sent; the connection is closed as soon as what waits is gone."""
        if not self._ended:
            self._ended = True
            self.queue.put_nowait(None)


class GeneratedExchange(SimulatedExchange):
    """One exchange of the generated market on its own port."""

    def __init__(self, name: str, server: Server, clock: Callable[[], int], faults: Faults) -> None:
        super().__init__(name, faults)
        self.server = server
        self._clock = clock
        self.clients: set[_Client] = set()
        self._crossings: dict[str, Crossing] = {}
        self._withheld: dict[str, tuple[Running, BookEvent | None]] = {}
        self._halted: set[str] = set()
        self._offline = False
        self._told: dict[str, set[_Client]] = {}
        faults.cover(name, server.books)

    async def handle(self, connection: ServerConnection) -> None:
        """One client until it goes."""
        assert connection.request is not None
        line = Line(self.faults, self.name)
        client = _Client(connection, self.server.session(connection.request.path, self._clock()), line)
        with self._crossed():
            client.put(client.session.on_open(self._clock()))
        if self._offline:
            client.send(_status_frames(client.session, online=False))
        self.clients.add(client)
        self.connections.add(connection)
        writer = asyncio.create_task(self._write(connection, client))
        try:
            async for text in connection:
                words = text if isinstance(text, str) else text.decode(errors="replace")
                with self._crossed():
                    client.send(client.session.on_client(words, self._clock()))
        except ConnectionClosed:
            pass
        finally:
            self.clients.discard(client)
            self.connections.discard(connection)
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, connection: ServerConnection, client: _Client) -> None:
        with contextlib.suppress(ConnectionClosed):
            while (frame := await client.queue.get()) is not None:
                await self.send(connection, frame)
            await connection.close(1008, "too slow")

    async def _rest(self, path: str) -> Response:
        with self._crossed():
            return _response(self.server.rest(path, self._clock()))

    def timer(self) -> None:
        """Heartbeats, and clients that did not subscribe in time."""
        now_ns = self._clock()
        for client in self.clients:
            client.send(client.session.on_timer(now_ns))
            if client.session.overdue(now_ns):
                client.end()

    # ------------------------------------------------ the market

    def on_event(self, event: MarketEvent) -> None:
        """Tell the clients what has happened on the market, as far as the faults let them know."""
        withheld = self._withheld.get(event.symbol)
        if withheld is not None:
            withheld[0].strike()
            if isinstance(event, BookEvent):
                fault, before = withheld
                self._withheld[event.symbol] = (fault, event if before is None else merged(before, event))
        elif isinstance(event, BookEvent):
            crossing = self._crossings.get(event.symbol)
            if crossing is not None:
                crossing.fault.strike()
                event = crossing.over(event)
            self._tell(event)
        else:
            now_ns = self._clock()
            for client in self.clients:
                client.send(client.session.on_trade(event, now_ns))

    def _tell(self, event: BookEvent) -> None:
        now_ns = self._clock()
        with self._crossed():
            self.server.before_book(event)
            for client in self.clients:
                client.send(client.session.on_book(event, now_ns))

    @contextlib.contextmanager
    def _crossed(self) -> Iterator[None]:
        """Inside, the books are as this exchange shows them; the market's own are never crossed."""
        with contextlib.ExitStack() as stack:
            for crossing in self._crossings.values():
                stack.enter_context(crossing.laid())
            yield

    # ------------------------------------------------ faults

    def follow(self, changes: list[Change]) -> None:
        super().follow(changes)
        for change in changes:
            if change.fault.fault.kind == "announce" and change.fault.concerns(self.name):
                self._announce(change)
        self._cross()
        self._silence()
        self._halt()
        for client in self.clients:
            client.put(client.line.release())

    def _announce(self, change: Change) -> None:
        """Who is connected now is told, and closed in the end; who connects meanwhile stays."""
        number = change.fault.id
        if change.what == "began":
            self._told[number] = set(self.clients)
            for client in self._told[number]:
                change.fault.strike()
                client.send(client.session.announce_end(self._clock()))
            return
        for client in self._told.pop(number, set()) & self.clients:
            if change.what == "ended":
                self.close(client.connection, "the announced end")

    def _cross(self) -> None:
        wanted = self.faults.struck_symbols(self.name, "cross")
        for symbol in self._crossings.keys() - wanted.keys():
            event = self._crossings.pop(symbol).closed()
            if event.bids:
                self.on_event(event)
        for symbol in wanted.keys() - self._crossings.keys():
            self._crossings[symbol] = Crossing(self.server.books[symbol], wanted[symbol])
            self.on_event(BookEvent(self.server.books[symbol].exchange, symbol, [], []))

    def _silence(self) -> None:
        wanted = self.faults.struck_symbols(self.name, "silent")
        for symbol in self._withheld.keys() - wanted.keys():
            _, missed = self._withheld.pop(symbol)
            if missed is not None:
                self.on_event(missed)  # one change for all that was not told, so that no client's book stays wrong
        for symbol in wanted.keys() - self._withheld.keys():
            self._withheld[symbol] = (wanted[symbol], None)

    def _halt(self) -> None:
        wanted = self.faults.struck_symbols(self.name, "halt")
        for symbol in wanted.keys() - self._halted:
            wanted[symbol].strike()
        if wanted.keys() != self._halted:
            self._halted = set(wanted)
            self.server.halted.clear()
            self.server.halted.update(wanted)
        offline = any(one.fault.symbol is None for one in self.faults.active(self.name, "halt"))
        if offline != self._offline:
            self._offline = offline
            for client in self.clients:
                client.send(_status_frames(client.session, online=not offline))


def _status_frames(session: Session, online: bool) -> list[str]:
    """What an exchange that tells its own state says now (Kraken); nothing from the others."""
    frames = getattr(session, "status_frames", None)
    return [] if frames is None else list(frames(online))


class ReplayedExchange(SimulatedExchange):
    """One recording on its own port: each client gets it from the beginning, in its own timing."""

    def __init__(self, recording: Recording, speed: float, loop: bool, faults: Faults | None = None) -> None:
        super().__init__(recording.exchange, faults or Faults(random.Random(1)))
        self.faults.cover(self.name, None)
        self._recording = recording
        self._speed = speed
        self._loop = loop
        self._began: float | None = None
        self.played = asyncio.Event()

    async def handle(self, connection: ServerConnection) -> None:
        """Replay once; a looped recording begins again on the client's next connection, with its sequences."""
        began = self._began = time.monotonic()
        reader = asyncio.create_task(self._swallow(connection))
        line = Line(self.faults, self.name)
        self.connections.add(connection)
        try:
            for item in self._recording.frames:
                wait_s = began + item.at_s / self._speed - time.monotonic()
                if wait_s > 0 and (await asyncio.wait([reader], timeout=wait_s))[0]:
                    return  # the client has gone; a pause of the recording can be long
                for frame in line.passed([item.frame]):
                    await self.send(connection, frame)
            for frame in line.release(last=True):
                await self.send(connection, frame)
            await connection.close(GOING_AWAY, "end of the recording")
            if not self._loop:
                self.played.set()
        except ConnectionClosed:
            pass
        finally:
            self.connections.discard(connection)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _swallow(self, connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for _ in connection:
                pass

    async def _rest(self, path: str) -> Response:
        """The recorded REST answer, not before the replay has come to it."""
        kept = self._find(path)
        if kept is None:
            return _response(None)
        began = self._began or time.monotonic()
        item = next((i for i in kept if began + i.at_s / self._speed >= time.monotonic()), kept[-1])
        await asyncio.sleep(min(10.0, max(0.0, began + item.at_s / self._speed - time.monotonic())))
        return _response(Answer(200, item.frame.encode()))

    def _find(self, path: str) -> list[TimedFrame] | None:
        """By path and query, whatever the order of the query's parts."""
        base, _, query = path.partition("?")
        wanted = (base, sorted(query.split("&")))
        for name, items in self._recording.rest.items():
            known, _, known_query = name.partition("?")
            if (known, sorted(known_query.split("&"))) == wanted:
                return items
        return None


class _Uvicorn(uvicorn.Server):
    """Signals are handled by our own process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class FaultControl:
    """The faults while it runs: keeps their times, tells the exchanges, and answers HTTP.

    `GET /faults` lists them, `POST /faults` adds one or a list, `DELETE /faults/{id}` and `DELETE /faults` clear them.

    Args:
        clock: Of the schedule; monotonic, so that a corrected wall clock moves no fault.
    """

    def __init__(
        self, faults: Faults, exchanges: Mapping[str, SimulatedExchange], clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._faults = faults
        self._exchanges = exchanges
        self._clock = clock
        routes = [
            Route("/faults", self._list, methods=["GET"]),
            Route("/faults", self._add, methods=["POST"]),
            Route("/faults", self._clear, methods=["DELETE"]),
            Route("/faults/{number}", self._clear, methods=["DELETE"]),
        ]
        self.app = Starlette(routes=routes)

    async def run(self) -> None:
        """Until cancelled; then nothing stays stalled or halted."""
        try:
            while True:
                self.look()
                await asyncio.sleep(FAULTS_S)
        finally:
            self._faults.clear()
            self.look()

    def look(self) -> None:
        """Begin and end what is due."""
        changes = self._faults.tick(self._clock())
        for what, one in changes:
            about = one.fault.model_dump(include={"kind", "exchange", "symbol"}, exclude_none=True)
            log.info(f"fault {what}", id=one.id, **about, struck=one.struck)
        for exchange in self._exchanges.values():
            exchange.follow(changes)

    async def _list(self, request: HttpRequest) -> JSONResponse:
        return JSONResponse({"faults": self._faults.listing(self._clock())})

    async def _add(self, request: HttpRequest) -> JSONResponse:
        try:
            added = self._faults.add(from_json(await request.body()), self._clock())
        except InputError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        self.look()
        return JSONResponse({"ids": [one.id for one in added]}, status_code=201)

    async def _clear(self, request: HttpRequest) -> JSONResponse:
        number = request.path_params.get("number")
        gone = self._faults.clear(number)
        if number is not None and not gone:
            return JSONResponse({"error": f"no fault {number}; GET /faults lists those that are known"}, 404)
        self.look()
        return JSONResponse({"cleared": [one.as_dict(self._clock()) for one in gone]})


async def serve_models(endpoint: ModelEndpoint, host: str, port: int) -> tuple[str, _Uvicorn, asyncio.Task[None]]:
    """Start the model endpoint; its base URL, the server and its task."""
    url, server, task = await serve_app(endpoint.app, host, port)
    return f"{url}/v1", server, task


async def serve_app(app: Starlette, host: str, port: int) -> tuple[str, _Uvicorn, asyncio.Task[None]]:
    """Start an HTTP application; its URL, the server (`should_exit` ends it) and its task."""
    listener = socket.create_server((host, port))
    config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="off", ws="none")
    server = _Uvicorn(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)  # uvicorn offers no event to wait for
        if task.done():
            await task
    return f"http://{host}:{listener.getsockname()[1]}", server, task


def _address(server: WebSocketServer) -> str:
    host, port = next(iter(server.sockets)).getsockname()[:2]
    return f"{host}:{port}"


async def listen(
    handler: SimulatedExchange, host: str, port: int, path: str = ""
) -> tuple[WebSocketServer, dict[str, str]]:
    """Open a port for an exchange; the server and its addresses."""
    server = await serve(
        handler.handle,
        host,
        port,
        process_request=handler.answer,
        open_timeout=HANG_S,
        ping_interval=20,
        max_size=2**20,
        compression=None,
    )
    address = _address(server)
    return server, {"ws_url": f"ws://{address}{path}", "rest_url": f"http://{address}"}


class Simulation:
    """The generated market, alive: steps it by the clock and tells the clients.

    Attributes:
        exchanges: By name; a second source stands under the name of its protocol.
        seconds: Exchange to the name of its second source, which shows the same books.
    """

    def __init__(
        self,
        settings: Settings,
        seed: int,
        rate: float,
        truth: Path | None,
        clock: Callable[[], int],
        faults: Faults | None = None,
        pace: float = 1.0,
    ) -> None:
        faults = faults or Faults(random.Random(seed))
        served = tuple(SERVERS)
        self.market = Market(settings, served, seed, rate, pace)
        today = datetime.datetime.fromtimestamp(clock() / 1e9, datetime.UTC).date()
        self._truth = Truth(settings, self.market, today)
        self._truth_file: TextIO | None = truth.open("w") if truth is not None else None
        self._clock = clock
        self.exchanges: dict[str, GeneratedExchange] = {}
        names = dict.fromkeys(exchange for exchange, _ in self.market.books)
        self.seconds: dict[str, str] = {}
        self._shown: dict[str, list[GeneratedExchange]] = {}
        for name in names:
            books = {symbol: book for (exchange, symbol), book in self.market.books.items() if exchange == name}
            self.exchanges[name] = GeneratedExchange(name, SERVERS[name](books), clock, faults)
            self._shown[name] = [self.exchanges[name]]
            second = settings.exchanges[name].second
            if second is None or second.protocol not in SERVERS or second.protocol in {*names, *self.exchanges}:
                continue
            self.seconds[name] = second.protocol
            other = GeneratedExchange(second.protocol, SERVERS[second.protocol](books), clock, faults)
            self.exchanges[second.protocol] = other
            self._shown[name].append(other)

    async def run(self) -> None:
        """Until cancelled."""
        began_ns = time.monotonic_ns()
        timer_s = time.monotonic()
        reached_ns = 0
        while True:
            elapsed_ns = time.monotonic_ns() - began_ns
            if elapsed_ns - reached_ns > TOO_LATE_NS:
                # Too little processor for this rate. To catch up would make the next turn later still.
                log.warning("the market is late, its clock waits", by_ms=(elapsed_ns - reached_ns) // 1_000_000)
                began_ns += elapsed_ns - reached_ns - MOST_TURN_NS
            reached_ns = min(elapsed_ns, reached_ns + MOST_TURN_NS)
            for _, event in self.market.step(reached_ns):
                for exchange in self._shown[event.exchange]:
                    exchange.on_event(event)
                if isinstance(event, BookEvent):
                    self._note(event.symbol, self._clock())
            if time.monotonic() >= timer_s:
                timer_s = time.monotonic() + TIMER_S
                for one in self.exchanges.values():
                    one.timer()
            due_s = (self.market.next_ns() - (time.monotonic_ns() - began_ns)) / 1e9
            await asyncio.sleep(min(max(due_s, 0.0), MOST_SLEEP_S))

    def _note(self, symbol: str, now_ns: int) -> None:
        """Keep the truth after each change; a rate concerns every coin, which the next quotes will notice."""
        if not symbols.is_rate(symbol):
            self._write(self._truth.look(symbols.base_of(symbol), now_ns))

    def close(self) -> None:
        """Write down what is still open."""
        self._write(self._truth.still_open(self._clock()))
        if self._truth_file is not None:
            self._truth_file.close()

    def _write(self, gaps: list[dict[str, Any]]) -> None:
        if self._truth_file is not None and gaps:
            self._truth_file.writelines(orjson.dumps(gap).decode() + "\n" for gap in gaps)
            self._truth_file.flush()
