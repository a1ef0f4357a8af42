"""A provider that does everything wrong that HTTP, JSON and a model allow: a raw server on the loopback interface.

`Hostile` answers each call by the next behaviour of its script, then by `then`. A behaviour is bytes that are written as
they stand, or a coroutine function that gets the `Exchange` and does what it likes.
"""

import asyncio
import gzip
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from shared import settings
from shared.settings import Settings

GOOD: dict[str, Any] = {
    "p_edge": 0.8,
    "view": "buy",
    "veto": False,
    "volatility": 0.0,
    "code": "OK",
    "pressure": "buyers",
    "liquidity": "enough",
    "manipulation": "low",
    "note": "",
}
KEY = "sk-planted-secret-0123456789"
KEYS = {
    "OPENAI_API_KEY": KEY,
    "GEMINI_API_KEY": "AIzaPlanted-secret-of-the-second-provider",
    "DEEPSEEK_API_KEY": "sk-planted-secret-of-the-third",
    "HOLYSHEEP_API_KEY": "hs_planted-secret-of-the-gateway",
}
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def settings_at(base_urls: Mapping[str, str], **decider: object) -> Settings:
    """The default settings with some providers elsewhere, and other settings of the decider."""
    loaded = settings.load()
    providers = {
        name: provider.model_copy(update={"base_url": base_urls.get(name, provider.base_url)})
        for name, provider in loaded.providers.items()
    }
    return loaded.model_copy(
        update={"providers": providers, "decider": loaded.decider.model_copy(update=dict(decider))}
    )


# ---------------------------------------------------------------- bodies


def answer(**changes: object) -> str:
    """The text of a good answer, or one with other fields."""
    return json.dumps({**GOOD, **changes})


def reply(content: object = None, finish: object = "stop", **changes: object) -> bytes:
    """The body of a completion; `message` and any other field can be changed."""
    message: dict[str, object] = {"role": "assistant", "content": answer() if content is None else content}
    more = changes.pop("message", None)
    if isinstance(more, dict):
        message.update(more)
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m-2026",
        "system_fingerprint": "fp",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": USAGE,
        **changes,
    }
    return json.dumps(body).encode()


def http(status: int | str, body: bytes, *headers: str, length: int | None = None, reason: str = "X") -> bytes:
    """A whole response; `length` lies about the body's."""
    size = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status} {reason}", "content-type: application/json", f"content-length: {size}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def spelled(field_name: str, value: str) -> bytes:
    """A good answer in which one field's value is written like this: `NaN`, `1e999`, `"0.9"`."""
    fields = ", ".join(f'"{name}": {value if name == field_name else json.dumps(held)}' for name, held in GOOD.items())
    return http(200, reply("{" + fields + "}"))


def listed(*names: str) -> bytes:
    """A list of models."""
    rows = [{"id": name, "object": "model", "created": 1, "owned_by": "x"} for name in names]
    return http(200, json.dumps({"object": "list", "data": rows}).encode())


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


OK = http(200, reply())
LISTED = listed("m")


# ---------------------------------------------------------------- the server


@dataclass(frozen=True)
class Request:
    """One request as it came over the wire; names of headers in lower case, in order."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Exchange:
    """What a behaviour has to work with. `keep`: the connection may be used again."""

    request: Request
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    keep: bool = False

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


Behaviour = bytes | Callable[[Exchange], Awaitable[None]]


@dataclass
class Hostile:
    """A server for as long as the `async with` lasts.

    Attributes:
        script: Behaviours of the next calls (POST), first come first served; then `then` for all.
        listing: What GET gets.
        requests: All that came.
        connections: How many were ever accepted; `still_open`: how many are.
    """

    script: list[Behaviour] = field(default_factory=list)
    then: Behaviour = OK
    listing: Behaviour = LISTED
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    still_open: int = 0
    _server: asyncio.Server | None = None
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self.closed()

    @property
    def origin(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def base_url(self) -> str:
        return f"{self.origin}/v1"

    async def closed(self) -> None:
        """Until every connection is: a client that leaks one is a test that fails here, by its timeout."""
        await self.until(lambda: self.still_open == 0)

    async def until(self, true: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Wait for something that requests and closed connections can change."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(true)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.still_open += 1
        try:
            while (request := await _read(reader)) is not None:
                self.requests.append(request)
                await self._tell()
                exchange = Exchange(request, reader, writer)
                behaviour = self._next(request)
                if isinstance(behaviour, bytes):
                    exchange.keep = True
                    await exchange.send(behaviour)
                else:
                    await behaviour(exchange)
                if not exchange.keep:
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.transport.abort()
            self.still_open -= 1
            await self._tell()

    def _next(self, request: Request) -> Behaviour:
        if request.method == "GET":
            return self.listing
        return self.script.pop(0) if self.script else self.then

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    size = int(next((value for name, value in headers if name == "content-length"), "0"))
    return Request(method, path, headers, await reader.readexactly(size))


# ---------------------------------------------------------------- behaviours that take time or memory

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
STEP_S = 0.01


async def never(exchange: Exchange) -> None:
    """Takes the question and says nothing, until the client hangs up."""
    await exchange.reader.read()


def cut_off(data: bytes) -> Behaviour:
    """Closes after these bytes, whatever they promised."""

    async def behave(exchange: Exchange) -> None:
        await exchange.send(data)
        exchange.writer.close()
        await exchange.writer.wait_closed()

    return behave


async def hang_up(exchange: Exchange) -> None:
    """Closes at once."""


async def _drip(exchange: Exchange, data: bytes) -> None:
    for place in range(len(data)):
        await exchange.send(data[place : place + 1])
        await asyncio.sleep(STEP_S)


async def blank_lines(exchange: Exchange) -> None:
    """A good status, then blank lines for ever, each of which resets a read timeout."""
    await exchange.send(HEAD + b"content-length: 100000\r\n\r\n")
    await _drip(exchange, b"\n" * 100_000)


async def byte_by_byte(exchange: Exchange) -> None:
    """A valid answer, one byte every 10 ms: some six seconds."""
    await _drip(exchange, OK)


async def headers_for_ever(exchange: Exchange) -> None:
    """The head never ends, and comes a little at a time."""
    await exchange.send(HEAD)
    while True:
        await exchange.send(b"x-more: 1\r\n")
        await asyncio.sleep(STEP_S)


async def continues(exchange: Exchange) -> None:
    """100 Continue as fast as it goes, for ever."""
    while True:
        await exchange.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 500)


async def gigabytes(exchange: Exchange) -> None:
    """A body that only ends when the client hangs up."""
    await exchange.send(HEAD + b"transfer-encoding: chunked\r\n\r\n")
    part = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    while True:
        await exchange.send(part)


async def gigabytes_of_refusal(exchange: Exchange) -> None:
    """The same after a 401."""
    await exchange.send(b"HTTP/1.1 401 No\r\ncontent-length: 1000000000\r\n\r\n")
    while True:
        await exchange.send(b"x" * 0x10000)


async def headers_without_end(exchange: Exchange) -> None:
    """The head never ends, and comes fast."""
    await exchange.send(HEAD)
    while True:
        await exchange.send(b"x-more: " + b"y" * 8000 + b"\r\n")


def bomb(megabytes: int = 200) -> bytes:
    """A body of spaces around an answer that is a thousandth of its size on the wire."""
    packed = gzip.compress(b" " * megabytes * 1_000_000 + reply())
    return http(200, packed, "content-encoding: gzip")


def redirect(to: str) -> bytes:
    """The same request again, elsewhere: with its key."""
    return http(307, b"", f"location: {to}/v1/chat/completions")


async def echo(exchange: Exchange) -> None:
    """A 401 that repeats the key: in the reason, the headers and the body, as servers write such things."""
    await _echo(exchange, 401)


async def echo_in_answer(exchange: Exchange) -> None:
    """A good answer that says the key: as its note, its model, its request id and its fingerprint."""
    sent = exchange.request.header("authorization") or ""
    key = sent.removeprefix("Bearer ")
    body = reply(answer(note=key), model=f"m {sent}", system_fingerprint=key, usage={"prompt_tokens": sent, sent: sent})
    await exchange.send(http(200, body, f"x-request-id: {key}", f"set-cookie: key={key}", reason=key))


async def echo_in_refusal(exchange: Exchange) -> None:
    """A model that refuses with the key in its words."""
    sent = exchange.request.header("authorization") or ""
    await exchange.send(http(200, reply(message={"content": None, "refusal": f"not with {sent}"})))


async def echo_in_html(exchange: Exchange) -> None:
    """A 200 that is a page about the request, far down the page."""
    sent = exchange.request.header("authorization") or ""
    await exchange.send(http(200, b"<html>" + b"." * 4085 + sent.encode() + b"</html>"))


async def _echo(exchange: Exchange, status: int) -> None:
    sent = exchange.request.header("authorization") or ""
    key = sent.removeprefix("Bearer ")
    body = json.dumps(
        {"error": {"message": f"Incorrect API key provided: {key}", "headers": dict(exchange.request.headers)}}
    )
    await exchange.send(
        http(status, body.encode(), f"x-request-id: {key}", f"www-authenticate: {sent}", f"x-auth: {sent}", reason=key)
    )
