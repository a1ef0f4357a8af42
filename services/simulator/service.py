"""The simulator's shell: sockets, the clock, files. What is said on them is decided in the other modules."""

import asyncio
import contextlib
import datetime
import http
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import orjson
import structlog
import uvicorn
from websockets.asyncio.server import Server as WebSocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from services.simulator.capture import Recording, TimedFrame
from services.simulator.exchanges import SERVERS
from services.simulator.exchanges.base import Answer, Server, Session
from services.simulator.market import BookEvent, Market
from services.simulator.model import ModelEndpoint
from services.simulator.truth import Truth
from shared import symbols
from shared.settings import Settings

log = structlog.get_logger()

TIMER_S = 0.1
MOST_SLEEP_S = 0.02
SLOW_CLIENT_FRAMES = 5000
"""A client that is so far behind is disconnected, as an exchange would."""


def _response(answer: Answer | None) -> Response:
    answer = answer or Answer(404, b'{"error":"no such path"}')
    headers = Headers({"content-type": "application/json", "content-length": str(len(answer.body))})
    return Response(answer.status, http.HTTPStatus(answer.status).phrase, headers, answer.body)


class _Client:
    """One connection and what waits to be sent on it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.queue: asyncio.Queue[str | None] = asyncio.Queue()

    def send(self, frames: list[str]) -> None:
        for frame in frames:
            self.queue.put_nowait(frame)
        if self.queue.qsize() > SLOW_CLIENT_FRAMES:
            self.queue.put_nowait(None)


class GeneratedExchange:
    """One exchange of the generated market on its own port."""

    def __init__(self, server: Server, clock: Callable[[], int]) -> None:
        self.server = server
        self._clock = clock
        self.clients: set[_Client] = set()

    async def handle(self, connection: ServerConnection) -> None:
        """One client until it goes."""
        assert connection.request is not None
        client = _Client(self.server.session(connection.request.path, self._clock()))
        client.send(client.session.on_open(self._clock()))
        self.clients.add(client)
        writer = asyncio.create_task(self._write(connection, client))
        try:
            async for text in connection:
                words = text if isinstance(text, str) else text.decode(errors="replace")
                client.send(client.session.on_client(words, self._clock()))
        except ConnectionClosed:
            pass
        finally:
            self.clients.discard(client)
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, connection: ServerConnection, client: _Client) -> None:
        with contextlib.suppress(ConnectionClosed):
            while (frame := await client.queue.get()) is not None:
                await connection.send(frame)
            await connection.close(1008, "too slow")

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """REST on the same port: any request that is no WebSocket handshake."""
        if "upgrade" in request.headers:
            return None
        return _response(self.server.rest(request.path, self._clock()))

    def timer(self) -> None:
        """Heartbeats, and clients that did not subscribe in time."""
        now_ns = self._clock()
        for client in self.clients:
            client.send(client.session.on_timer(now_ns))
            if client.session.overdue(now_ns):
                client.queue.put_nowait(None)


class ReplayedExchange:
    """One recording on its own port: each client gets it from the beginning, in its own timing."""

    def __init__(self, recording: Recording, speed: float, loop: bool) -> None:
        self._recording = recording
        self._speed = speed
        self._loop = loop
        self._began: float | None = None
        self.played = asyncio.Event()

    async def handle(self, connection: ServerConnection) -> None:
        """Replay once; a looped recording begins again on the client's next connection, with its sequences."""
        began = self._began = time.monotonic()
        reader = asyncio.create_task(self._swallow(connection))
        try:
            for item in self._recording.frames:
                wait_s = began + item.at_s / self._speed - time.monotonic()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                await connection.send(item.frame)
            await connection.close(1001, "end of the recording")
            if not self._loop:
                self.played.set()
        except ConnectionClosed:
            pass
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _swallow(self, connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for _ in connection:
                pass

    async def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """The recorded REST answer, not before the replay has come to it."""
        if "upgrade" in request.headers:
            return None
        kept = self._find(request.path)
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


async def serve_models(endpoint: ModelEndpoint, host: str, port: int) -> tuple[str, _Uvicorn, asyncio.Task[None]]:
    """Start the model endpoint; its base URL, the server and its task."""
    listener = socket.create_server((host, port))
    config = uvicorn.Config(endpoint.app, log_level="error", access_log=False, lifespan="off", ws="none")
    server = _Uvicorn(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)  # uvicorn offers no event to wait for
        if task.done():
            await task
    return f"http://{host}:{listener.getsockname()[1]}/v1", server, task


def _address(server: WebSocketServer) -> str:
    host, port = next(iter(server.sockets)).getsockname()[:2]
    return f"{host}:{port}"


async def listen(handler: Any, host: str, port: int, path: str = "") -> tuple[WebSocketServer, dict[str, str]]:
    """Open a port for an exchange; the server and its addresses."""
    server = await serve(
        handler.handle, host, port, process_request=handler.answer, ping_interval=20, max_size=2**20, compression=None
    )
    address = _address(server)
    return server, {"ws_url": f"ws://{address}{path}", "rest_url": f"http://{address}"}


class Simulation:
    """The generated market, alive: steps it by the clock and tells the clients."""

    def __init__(
        self, settings: Settings, seed: int, rate: float, truth: Path | None, clock: Callable[[], int]
    ) -> None:
        served = tuple(SERVERS)
        self.market = Market(settings, served, seed, rate)
        today = datetime.datetime.fromtimestamp(clock() / 1e9, datetime.UTC).date()
        self._truth = Truth(settings, self.market, today)
        self._truth_file: TextIO | None = truth.open("w") if truth is not None else None
        self._clock = clock
        self.exchanges: dict[str, GeneratedExchange] = {}
        names = dict.fromkeys(exchange for exchange, _ in self.market.books)
        for name in names:
            books = {symbol: book for (exchange, symbol), book in self.market.books.items() if exchange == name}
            self.exchanges[name] = GeneratedExchange(SERVERS[name](books), clock)

    async def run(self) -> None:
        """Until cancelled."""
        began_ns = time.monotonic_ns()
        timer_s = time.monotonic()
        while True:
            elapsed_ns = time.monotonic_ns() - began_ns
            for _, event in self.market.step(elapsed_ns):
                exchange = self.exchanges[event.exchange]
                now_ns = self._clock()
                if isinstance(event, BookEvent):
                    exchange.server.before_book(event)
                    for client in exchange.clients:
                        client.send(client.session.on_book(event, now_ns))
                    self._note(event.symbol, now_ns)
                else:
                    for client in exchange.clients:
                        client.send(client.session.on_trade(event, now_ns))
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
