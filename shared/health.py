"""What a service says of itself over HTTP: `/metrics`, `/healthz` (its loop turns), `/readyz` (it does its job).

    {"service": "detector", "ready": false, "checks": [{"check": "kafka", "ok": false, "words": "no answer for 14 s"}]}

Checks are looked at when somebody asks: a service pays nothing for them in between, and none can be out of date. The
server has threads of its own; a service that is stuck still answers, with 503.
"""

import asyncio
import contextlib
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from socketserver import TCPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson
import structlog
from prometheus_client import REGISTRY, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from shared import metrics
from shared.errors import SettingsError

log = structlog.get_logger()

STUCK_S = 10.0
"""A loop that has not turned for so long is stuck, if the service names no other time."""

BEAT_S = 0.1

START_S = 60.0
"""So long a service may take to its first turn."""

REQUEST_S = 5.0
"""So long a request may take, from its connection to the last byte of the answer."""

MOST_CONNECTIONS = 32
"""With one more the oldest is cut: whoever opens connections and says nothing keeps nobody else out."""

Look = Callable[[], tuple[bool, str]]
"""Whether it is well, and in words. Called in a thread of the server."""


class Check(NamedTuple):
    """One thing that the service's job takes."""

    check: str
    ok: bool
    words: str


class Health:
    """Whether a service lives and whether it is ready. Thread-safe.

    Args:
        service: Its name.
        checks: Names of what its job takes. Each counts as failed until it is watched.
        stuck_s: A loop that has not turned for so long is stuck.
        clock: Seconds of a clock that only goes forward.
    """

    def __init__(
        self,
        service: str,
        checks: Sequence[str] = (),
        *,
        stuck_s: float = STUCK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.service = service
        self._stuck_s = stuck_s
        self._clock = clock
        self._looks: dict[str, Look] = dict.fromkeys(checks, _not_yet)
        self._began = clock()
        self._beat: float | None = None

    def beat(self) -> None:
        """The main loop has turned."""
        self._beat = self._clock()

    def watch(self, check: str, look: Look) -> None:
        """From now on `look` says how it is.

        Raises:
            KeyError: it is none of the checks that were announced.
        """
        if check not in self._looks:
            raise KeyError(check)
        self._looks[check] = look

    @contextlib.asynccontextmanager
    async def beating(self, each: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
        """Beats as long as the event loop turns, and measures how late it comes to it. `each` is called every time."""

        async def run() -> None:
            loop = asyncio.get_running_loop()
            while True:
                due = loop.time() + BEAT_S
                await asyncio.sleep(BEAT_S)
                metrics.LOOP_LAG_MS.observe((loop.time() - due) * 1000)
                self.beat()
                each()

        task = asyncio.create_task(run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def live(self) -> Check:
        """Whether the main loop turns."""
        beat = self._beat
        now = self._clock()
        if beat is None:
            return Check("loop", now - self._began <= START_S, f"starting for {now - self._began:.1f} s")
        return Check("loop", now - beat <= self._stuck_s, f"turned {now - beat:.1f} s ago")

    def ready(self) -> list[Check]:
        """Everything that the job takes, the turning loop first."""
        return [self.live(), *(Check(name, *_looked(look)) for name, look in self._looks.items())]

    def export(self) -> None:
        """Set the gauges that mirror the checks."""
        for check in self.ready():
            metrics.READY.labels(check=check.check).set(check.ok)


def _not_yet() -> tuple[bool, str]:
    return False, "not known yet: starting"


def _looked(look: Look) -> tuple[bool, str]:
    try:
        return look()
    except Exception as error:  # a check that fails is a failed check
        return False, f"the check failed: {type(error).__name__}: {error}"


def serve(health: Health, host: str, port: int) -> "Server | None":
    """Answer on `host` and `port` from threads of their own, until the process ends; port 0: not at all.

    Raises:
        SettingsError: the port cannot be opened.
    """
    # A second series for each counter, which nothing here asks for. For a whole process: not where metrics are defined,
    # which users' programs import, too.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    metrics.INFO.labels(service=health.service, version=version("arbiter")).set(1)
    if port == 0:
        return None
    try:
        server = Server(health, host, port)
    except OSError as error:
        raise SettingsError(
            f"metrics.port {port} on {host}: {error.strerror or error}; set another one with ARB_METRICS_PORT, or 0 "
            "to serve nothing"
        ) from None
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server


class Server(ThreadingHTTPServer):
    """One thread a request, none for longer than `REQUEST_S`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, health: Health, host: str, port: int) -> None:
        self.health = health
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._open: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # not HTTPServer's, which asks the name service for a name that nobody needs

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[request] = time.monotonic()
            if len(self._open) > MOST_CONNECTIONS:
                _cut(next(iter(self._open)))
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Called by the server between connections, at least twice a second."""
        late = time.monotonic() - REQUEST_S
        with self._lock:
            for request, since in self._open.items():
                if since < late:
                    _cut(request)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away or was cut is nothing that a service's log needs."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            log.error("a request for health failed", error=f"{type(error).__name__}: {error}")


def _cut(request: socket.socket) -> None:
    """Wakes the thread that waits for it; that one closes it."""
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version = "arb"
    sys_version = ""

    def do_GET(self) -> None:
        health = self.server.health
        match urlsplit(self.path).path:
            case "/metrics":
                health.export()
                encode, kind = choose_encoder(self.headers.get("Accept", ""))
                self._answer(200, kind, encode(REGISTRY))
            case "/healthz":
                self._report("live", [health.live()])
            case "/readyz":
                self._report("ready", health.ready())
            case _:
                self._answer(404, "text/plain; charset=utf-8", b"there are /metrics, /healthz and /readyz\n")

    do_HEAD = do_GET

    def _report(self, what: str, checks: list[Check]) -> None:
        good = all(check.ok for check in checks)
        body = {"service": self.server.health.service, what: good, "checks": [check._asdict() for check in checks]}
        self._answer(200 if good else 503, "application/json", orjson.dumps(body) + b"\n")

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # the base class's name
        """Nothing: probes come every few seconds."""
