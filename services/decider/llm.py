"""Calls of language models: the only importer of `openai` and `aiohttp`. A call gives a value, never an exception.

Whatever goes wrong becomes an outcome code, and every code but `ok` and `slow` is an abstention. No exception of the
client is logged or kept: they can carry prompts and headers. Nothing that a provider sends is trusted: its body is read
up to a bound, its status and headers reach us as plain values, its JSON is parsed here and not by the client, and its
words go on redacted and cut.
"""

import asyncio
import email.utils
import hashlib
import json
import logging
import math
import os
import re
import select
import ssl
import time
import weakref
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

import aiohttp
import httpx2
import openai
import orjson
from aiohttp.connector import Connection
from multidict import CIMultiDict
from openai import AsyncOpenAI, DefaultAsyncHttpx2Client
from pydantic import SecretStr
from yarl import URL

from services.decider.prompt import SCHEMA, NoAnswer, parse_answer
from shared.messages import RoleAnswer
from shared.secrets import redact
from shared.settings import ModelSettings

MOST_CONNECTIONS = 32
POOL_S = 0.1
"""How long a call waits for one of them."""
CONNECT_S = 0.75
"""To connect to one address, TLS included: enough for a far gateway, and half of a usual panel is left."""
REACH_S = 1.0
"""To connect to any of a provider's addresses, the look-up of its name included."""
READ_S = 3.0
"""Of silence: a server that drips is ended by the caller's deadline."""
KEEP_S = 90.0
TIMES = aiohttp.ClientTimeout(connect=REACH_S, sock_connect=CONNECT_S)

MOST_WAIT_S = 300.0
MOST_BODY = 256 * 1024
"""Bytes of an answer that are read, and that it may have once unpacked: an answer has some hundreds."""
MOST_LISTING = 2 * 1024 * 1024
"""The same of a list of models: gateways have hundreds of them, with prices and descriptions."""
MOST_HEAD = 100 * 1024
"""Bytes of all headers of an answer."""
MOST_HEADER, MOST_HEADERS = 16 * 1024, 128
"""Bytes of one of them, and how many there may be."""
MOST_OBJECTS = 2000
MOST_OBJECTS_LISTED = 20_000
"""Objects in a JSON text that is looked at: 256 KiB of `{},` would hold everybody up for 0.3 s (measured)."""
MOST_RAW = 4096
"""Bytes of an answer's text that are kept."""
MOST_WORDS = 200
"""Characters that are kept of what a provider says of itself."""
MOST_TOKENS = 10**9

_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f]")
"""What no line of a request's head may have: one that ends early would begin another."""

KEPT_HEADERS = frozenset(
    (
        *("x-request-id", "x-ds-trace-id", "retry-after-ms", "retry-after"),
        *("llm_provider-retry-after-ms", "llm_provider-retry-after", "content-encoding"),
    )
)
LIBRARIES = ("openai", "httpx2", "httpcore2", "aiohttp")
"""They log requests, headers and reason phrases, the first even without being told to (OPENAI_LOG)."""

UNREACHED = "unreached"
"""Of an exchange: the outcome is "network", and nothing was sent."""

LISTING = "models"
"""The kind of request that lists the models; the others are named by what a model's `request` adds."""

HEADERS, QUERY = "extra_headers", "extra_query"
"""Fields of a model's `request` that are not part of the body."""


@dataclass(frozen=True, slots=True)
class CachedTokens:
    """Of the prompt's tokens, those that were paid for as cached; None: not told."""

    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as a provider reports them, a claim: what is no number of tokens is None, and will be charged in full."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_cache_hit_tokens: int | None = None
    prompt_tokens_details: CachedTokens = CachedTokens()


@dataclass(frozen=True, slots=True)
class CallResult:
    """What became of one call. All text in it is redacted and valid Unicode.

    Attributes:
        outcome: `ok` or `slow` (an answer, within the model's `slow_ms` or not); `unsure` (the model says that it
            cannot judge), `refusal`, `content_filter`, `invalid` (no answer in the reply), `auth`, `quota`,
            `rate_limited`, `bad_request`, `server`, `network`, `saturated` (no free connection). Callers have others.
        http: The status, where one came.
        usage: Reported and untrusted; None: the reply had none.
        raw: What the model wrote, or the body where there is no such text; at most 4 KiB.
        raw_sha256: Of that text in whole, before it was redacted and cut; None where it was too long to be read.
        retry_after_s: How long the provider asks us to wait, 0 to 300 s (`rate_limited` only); None: it does not say.
        unsent: No connection was there: nothing can have been billed.
        latency_ms: From the first byte, connecting included.
    """

    outcome: str
    answer: RoleAnswer | None = None
    http: int | None = None
    request_id: str | None = None
    model_reported: str | None = None
    fingerprint: str | None = None
    usage: Usage | None = None
    raw: str | None = None
    raw_sha256: str | None = None
    retry_after_s: float | None = None
    latency_ms: int = 0
    unsent: bool = False

    def answered(self) -> bool:
        """Whether there is an answer that counts."""
        return self.answer is not None

    def billed(self) -> bool:
        """Whether the provider did the work, or may have (and will want money)."""
        return self.outcome == "invalid" or (self.http is not None and 200 <= self.http < 300)


@dataclass(frozen=True, slots=True)
class Listing:
    """The models that a provider says it has; `names` None: it could not be told, `outcome` says why as for a call."""

    outcome: str
    names: frozenset[str] | None = None
    http: int | None = None


# ---------------------------------------------------------------- the wire


@dataclass(frozen=True, slots=True)
class _Reply:
    """What came over the wire. `broken`: the connection failed before the end; `whole`: not cut at the most."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    whole: bool = True
    broken: bool = False


class _Drafts(httpx2.AsyncBaseTransport):
    """Sends nothing: hands the request that the client built over beside an empty 200.

    What the client does not send it cannot trip over: it would build its exceptions out of a bad status, with body and
    headers in them, and some it cannot read at all (an unknown charset, JSON too deep to print).
    """

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=b"", extensions={"draft": request})


@dataclass(frozen=True, slots=True)
class _Draft:
    """A request but for its body: where it goes, and all of its head before the body's length."""

    to: aiohttp.ClientRequest = field(repr=False)
    head: bytes = field(repr=False)

    @classmethod
    def of(cls, built: httpx2.Request, tls: ssl.SSLContext) -> "_Draft":
        """Raises ValueError: a header that would end early."""
        # As it stands: another library must not spell the path anew. A name and password in it are a header by now.
        url = URL(str(built.url.copy_with(username=None, password=None)), encoded=True)
        to = aiohttp.ClientRequest(built.method, url, headers=CIMultiDict(built.headers.multi_items()), ssl=tls)
        to.headers.popall("content-length", None)
        lines = [f"{to.method} {url.raw_path_qs} HTTP/1.1", *(f"{name}: {value}" for name, value in to.headers.items())]
        if any(_CONTROL.search(line) for line in lines):
            raise ValueError("a header has an end of line or another control character in it")
        return cls(to, "\r\n".join(lines).encode())


class _Connector(aiohttp.TCPConnector):
    """Uses no connection again on which anything has come since its last answer."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._used: weakref.WeakSet[asyncio.BaseProtocol] = weakref.WeakSet()

    async def connect(self, *args: Any, **kwargs: Any) -> Connection:
        # A provider may have hung up while the loop was busy. A call on such a connection would be lost and paid for,
        # and what has come unasked would be taken for the answer to the next question.
        while True:
            connection = await super().connect(*args, **kwargs)
            protocol = connection.protocol
            assert protocol is not None
            if protocol not in self._used:  # made just now; what TLS has to say at first is no reason to give it up
                self._used.add(protocol)
                return connection
            if not protocol.should_close and not _has_come(connection.transport):
                return connection
            connection.close()


def _has_come(transport: asyncio.Transport | None) -> bool:
    """Whether there is something to read, an end included, that the loop has not seen yet."""
    if transport is None:
        return True
    poll = select.poll()
    poll.register(transport.get_extra_info("socket"), select.POLLIN)
    return bool(poll.poll(0))


class Client:
    """A provider's client for one event loop, as `make_client` makes it.

    `openai` builds a request once for each kind of them (where to, which headers). `aiohttp` connects, keeps the
    connections and reads the answers; what its session would do anew for each request (URL, headers, cookies, a task
    that writes) is done once. Through the first and its HTTP library a call took 2.6 ms of CPU, through the second's
    session 0.5, of which this saves 0.2 (measured).
    """

    def __init__(self, builder: AsyncOpenAI) -> None:
        self._builder = builder
        self._drafts: dict[str, _Draft] = {}
        self._tls = httpx2.create_ssl_context(trust_env=False)
        self._tls.set_alpn_protocols(["http/1.1"])
        self._places = asyncio.Semaphore(MOST_CONNECTIONS)
        self._connector: _Connector | None = None

    async def draft(self, kind: str, build: Callable[[AsyncOpenAI], Awaitable[Any]]) -> _Draft:
        """The request of this kind; `build` calls the client for it, the first time."""
        draft = self._drafts.get(kind)
        if draft is None:
            built = await build(self._builder)
            request: httpx2.Request = getattr(built, "http_response", built).extensions["draft"]
            draft = self._drafts[kind] = _Draft.of(request, self._tls)
        return draft

    async def send(self, draft: _Draft, body: bytes | None) -> _Reply | str:
        """What came back, or the outcome code if nothing did; of a body no more than a bound is read."""
        if self._places.locked():
            try:
                async with asyncio.timeout(POOL_S):
                    await self._places.acquire()
            except TimeoutError:
                return "saturated"
        else:
            await self._places.acquire()  # at once
        try:
            try:
                connection = await self._opened().connect(draft.to, [], TIMES)
            except Exception:  # no word of it: it may have the key in it
                return UNREACHED
            # From here on money counts as spent: what breaks now may have reached the provider.
            try:
                return await _talk(connection, draft, body)
            except Exception:
                return "network"
            finally:
                connection.close()  # one whose answer is read to its end was given back before
        finally:
            self._places.release()

    def _opened(self) -> _Connector:
        if self._connector is None:  # made here, since it takes the loop that runs
            self._connector = _Connector(
                ssl=self._tls,
                limit=MOST_CONNECTIONS,
                keepalive_timeout=KEEP_S,
                resolver=aiohttp.ThreadedResolver(),
                use_dns_cache=False,  # a lookup that nobody waits for any more would go on
            )
        return self._connector

    async def close(self) -> None:
        """Close all connections; nothing can be asked after it."""
        await self._builder.close()
        if self._connector is not None:
            await self._connector.close()


async def _talk(connection: Connection, draft: _Draft, body: bytes | None) -> _Reply | str:
    """One request and its answer, of which no more than a bound is read. Raises whatever breaks."""
    protocol, transport = connection.protocol, connection.transport
    assert protocol is not None
    assert transport is not None
    protocol.set_response_params(
        auto_decompress=False,
        read_timeout=READ_S,
        read_until_eof=True,
        max_line_size=MOST_HEADER,
        max_field_size=MOST_HEADER,
        max_headers=MOST_HEADERS,
    )
    length = b"" if body is None else b"\r\ncontent-length: %d" % len(body)
    transport.write(b"%b%b\r\n\r\n%b" % (draft.head, length, body or b""))
    protocol.start_timeout()
    message, content = await protocol.read()
    while 100 <= message.code < 200 and message.code != 101:
        message, content = await protocol.read()
    if message.code < 200 or sum(len(name) + len(value) for name, value in message.raw_headers) > MOST_HEAD:
        return "network"  # 101 is the end of HTTP, which nobody asked for
    most = MOST_LISTING if body is None else MOST_BODY
    read, broken = bytearray(), False
    try:
        while len(read) <= most and (part := await content.readany()):
            read += part[: most + 1 - len(read)]
    except Exception:  # a body that ends too early, or in bad chunks
        broken = True
    else:
        if content.is_eof() and transport.get_write_buffer_size() == 0:  # it may answer before it has read all
            connection.release()
    headers = _kept(message.raw_headers)
    found, whole = _unpacked(bytes(read), headers.get("content-encoding", "identity"), most)
    return _Reply(message.code, headers, found, whole, broken)


def _kept(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The headers that we read, the first of each; those that are not plain text are not there."""
    headers: dict[str, str] = {}
    for name, value in raw:
        try:
            key, text = name.decode("ascii").lower(), value.decode("ascii").strip()
        except UnicodeDecodeError:
            continue
        if key in KEPT_HEADERS and text.isprintable():
            headers.setdefault(key, text)
    return headers


def _unpacked(body: bytes, encoding: str, most: int) -> tuple[bytes, bool]:
    """The body and whether that is all of it. We ask for none, but some gateways compress whatever they are asked."""
    if encoding.lower() in ("gzip", "x-gzip", "deflate"):
        unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32)
        try:
            body = unpacking.decompress(body, most + 1)
        except zlib.error:
            return b"", False
    elif encoding.lower() != "identity":
        return b"", False
    return body[:most], len(body) <= most


def make_client(base_url: str, api_key: SecretStr) -> Client:
    """A client that inherits nothing from the environment, follows no redirect and never asks a model twice."""
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    inherited = [line.partition(":")[0].strip() for line in os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")]
    unwanted: dict[str, Any] = {
        name: openai.Omit()
        for name in (*inherited, "OpenAI-Organization", "OpenAI-Project")
        if name and name.lower() != "authorization"
    }
    builder = AsyncOpenAI(
        base_url=base_url,
        api_key=api_key.get_secret_value(),
        admin_api_key="",
        organization="",
        project="",
        webhook_secret="",
        max_retries=0,
        timeout=READ_S,
        # The client's documentation names Omit() for what must not be inherited. Authorization is named so that the one
        # of OPENAI_CUSTOM_HEADERS is not taken, whatever its case.
        default_headers={**unwanted, "Authorization": f"Bearer {api_key.get_secret_value()}"},
        http_client=DefaultAsyncHttpx2Client(
            follow_redirects=False,
            trust_env=False,
            headers={"Accept-Encoding": "identity"},
            transport=_Drafts(),
        ),
    )
    # It is imported when it is first used, which takes longer than a panel may: here rather than in one.
    _ = builder.models.with_raw_response
    return Client(builder)


# ---------------------------------------------------------------- a call


async def ask(
    client: Client, name: str, model: ModelSettings, request: dict[str, Any], system: str, user: str
) -> CallResult:
    """One question to one model; cancelled from outside when its time is over.

    Args:
        name: What the provider calls the model.
        request: The model's further fields, which go out as they stand; those of `extra_body` are fields, too.

    Raises:
        CancelledError: nothing else.
    """
    wanted = {"type": "json_schema", "json_schema": SCHEMA} if model.structured == "json_schema" else None
    body = {
        "model": name,
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
        model.token_param: model.max_out,
        "n": 1,
        "response_format": wanted or {"type": "json_object"},
        **{key: value for key, value in request.items() if key not in ("extra_body", HEADERS, QUERY)},
        **(request.get("extra_body") or {}),
    }

    headers, params = request.get(HEADERS) or {}, request.get(QUERY) or {}

    def build(builder: AsyncOpenAI) -> Awaitable[httpx2.Response]:
        return builder.post(
            "/chat/completions", body={}, cast_to=httpx2.Response, options={"headers": headers, "params": params}
        )

    began = time.monotonic()
    reply = await _exchange(client, repr((headers, params)), build, body)
    elapsed_ms = int((time.monotonic() - began) * 1000)
    if isinstance(reply, str):
        unsent = reply in (UNREACHED, "saturated")
        return CallResult("network" if reply == UNREACHED else reply, latency_ms=elapsed_ms, unsent=unsent)
    if 200 <= reply.status < 300:
        return _judge(reply, elapsed_ms, model.slow_ms)
    return _refused(reply, elapsed_ms)


async def list_models(client: Client) -> Listing:
    """The names of a provider's models; also warms the connection.

    Raises:
        CancelledError: nothing else.
    """
    reply = await _exchange(client, LISTING, _list)
    if isinstance(reply, str):
        return Listing("network" if reply == UNREACHED else reply)
    if not 200 <= reply.status < 300:
        return Listing(_refused(reply, 0).outcome, http=reply.status)
    if reply.broken:
        return Listing("network", http=reply.status)
    document = _document(reply, MOST_OBJECTS_LISTED)
    rows = document.get("data") if isinstance(document, dict) else None
    if not isinstance(rows, list):
        return Listing("invalid", http=reply.status)
    found = (_text(row.get("id")) for row in rows if isinstance(row, dict))
    # Gemini lists "models/gemini-..." and is asked without it.
    return Listing("ok", frozenset(name.removeprefix("models/") for name in found if name), reply.status)


async def ping(client: Client) -> None:
    """Keep the connection warm; what comes back is read and not looked at.

    Raises:
        CancelledError: nothing else.
    """
    await _exchange(client, LISTING, _list)


def _list(builder: AsyncOpenAI) -> Awaitable[Any]:
    return builder.models.with_raw_response.list()


async def _exchange(
    client: Client, kind: str, build: Callable[[AsyncOpenAI], Awaitable[Any]], body: Mapping[str, Any] | None = None
) -> _Reply | str:
    """What came back, or the outcome code if nothing did."""
    try:
        draft = await client.draft(kind, build)
        content = None if body is None else orjson.dumps(body)
    except Exception:  # fields or headers that cannot be written; the client leaks whatever is below it
        return "invalid"
    return await client.send(draft, content)


# ---------------------------------------------------------------- what came back


def _judge(reply: _Reply, elapsed_ms: int, slow_ms: int) -> CallResult:
    """A reply with a good status: is there an answer in it?"""
    document = _document(reply)
    known = document if isinstance(document, dict) else {}
    choice = _first(known.get("choices"))
    said = choice.get("message")
    message: dict[str, Any] = said if isinstance(said, dict) else {}
    content, refusal = message.get("content"), message.get("refusal")
    words = next((text for text in (content, refusal) if isinstance(text, str) and text), None)

    def result(outcome: str, answer: RoleAnswer | None = None) -> CallResult:
        return CallResult(
            outcome,
            answer,
            http=reply.status,
            request_id=_request_id(reply),
            model_reported=_text(known.get("model")),
            fingerprint=_text(known.get("system_fingerprint")),
            usage=_usage(known.get("usage")),
            raw=_raw(_words(reply) if words is None else words),
            raw_sha256=_sha256(reply, words),
            latency_ms=elapsed_ms,
        )

    if reply.broken:
        return result("network")
    if known.get("error") or not choice:
        return result("invalid")
    finish = choice.get("finish_reason")
    if refusal:
        return result("refusal")
    if finish == "content_filter":
        return result("content_filter")
    if finish in ("length", "insufficient_system_resource"):
        return result("invalid")
    try:
        answer = parse_answer(content)
    except (NoAnswer, ValueError, RecursionError, MemoryError):
        return result("invalid")
    if answer.code == "UNSURE":
        return result("unsure")
    if (note := redact(answer.note)) != answer.note:
        answer = answer.model_copy(update={"note": note})
    return result("slow" if elapsed_ms > slow_ms else "ok", answer)


def _refused(reply: _Reply, elapsed_ms: int) -> CallResult:
    """A bad status, sorted by what it asks of us. A broken body changes nothing: the status has come."""
    status, text = reply.status, _words(reply)
    small = text[:MOST_RAW].lower()
    wait_s = None
    if status in (401, 403):
        outcome = "auth"
    elif status == 402 or (status == 429 and ("insufficient_quota" in small or "insufficient balance" in small)):
        outcome = "quota"
    elif status == 429:
        outcome, wait_s = "rate_limited", retry_after_s(reply.headers, _document(reply))
    elif status in (408, 409) or status >= 500 or status < 200:
        outcome = "server"
    else:
        outcome = "bad_request"
    return CallResult(
        outcome,
        http=status,
        request_id=_request_id(reply),
        raw=_raw(text),
        raw_sha256=_sha256(reply, None),
        retry_after_s=wait_s,
        latency_ms=elapsed_ms,
    )


def _document(reply: _Reply, most_objects: int = MOST_OBJECTS) -> object:
    """The body's JSON, None if it has none: cut off, not UTF-8, a name twice, a number too long, too deep, too much."""
    if not reply.whole or reply.broken or reply.body.count(b"{") > most_objects:
        return None
    try:
        document: object = _JSON.decode(reply.body.decode("utf-8-sig"))
    except (ValueError, RecursionError, MemoryError):
        return None
    return document


def _no_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_no_twins)


def _first(choices: object) -> dict[str, Any]:
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _usage(reported: object) -> Usage | None:
    if not isinstance(reported, dict):
        return None
    details = reported.get("prompt_tokens_details")
    return Usage(
        prompt_tokens=_tokens(reported.get("prompt_tokens")),
        completion_tokens=_tokens(reported.get("completion_tokens")),
        total_tokens=_tokens(reported.get("total_tokens")),
        prompt_cache_hit_tokens=_tokens(reported.get("prompt_cache_hit_tokens")),  # DeepSeek's own name for it
        prompt_tokens_details=CachedTokens(
            _tokens(details.get("cached_tokens")) if isinstance(details, dict) else None
        ),
    )


def _tokens(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_TOKENS:
        return None
    return value


def _words(reply: _Reply) -> str:
    return reply.body.decode("utf-8", "replace")


def _request_id(reply: _Reply) -> str | None:
    return _text(reply.headers.get("x-request-id") or reply.headers.get("x-ds-trace-id"))


def _text(value: object) -> str | None:
    return _sound(redact(value))[:MOST_WORDS] if isinstance(value, str) else None


def _raw(text: str) -> str:
    """Redacted before it is cut: half a key is one that nobody recognises."""
    return _sound(redact(text)).encode()[:MOST_RAW].decode(errors="ignore")


def _sound(text: str) -> str:
    """JSON can say half a surrogate pair, which nothing that writes UTF-8 takes."""
    return text.encode(errors="replace").decode()


def _sha256(reply: _Reply, words: str | None) -> str | None:
    if words is not None:
        return hashlib.sha256(words.encode(errors="surrogatepass")).hexdigest()
    return hashlib.sha256(reply.body).hexdigest() if reply.whole else None


# ---------------------------------------------------------------- how long to wait


def retry_after_s(headers: Mapping[str, str], body: object, now_s: float | None = None) -> float | None:
    """How long a provider asks us to wait, in seconds up to five minutes; None if it does not say usefully."""
    for name, unit in (
        ("retry-after-ms", 1000.0),
        ("retry-after", 1.0),
        ("llm_provider-retry-after-ms", 1000.0),
        ("llm_provider-retry-after", 1.0),
    ):
        found = _seconds(headers.get(name), unit, now_s)
        if found is not None:
            return found
    for error in body if isinstance(body, list) else [body]:
        inner = error.get("error", error) if isinstance(error, dict) else None
        if not isinstance(inner, dict):
            continue
        found = _seconds(inner.get("retry_after"), 1.0, now_s)
        if found is not None:
            return found
        details = inner.get("details")
        for detail in details if isinstance(details, list) else []:
            delay = detail.get("retryDelay") if isinstance(detail, dict) else None
            found = _seconds(delay.removesuffix("s") if isinstance(delay, str) else None, 1.0, now_s)
            if found is not None:
                return found
    return None


def _seconds(value: object, unit: float, now_s: float | None) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value) / unit
    except OverflowError:  # an integer beyond all floats
        return None
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(str(value))
            if moment.tzinfo is None:  # "-0000", or no zone: HTTP dates are UTC
                moment = moment.replace(tzinfo=UTC)
            number = moment.timestamp() - (time.time() if now_s is None else now_s)
        except (ValueError, OverflowError, TypeError, IndexError):
            return None
    if not math.isfinite(number) or number < 0:
        return None
    return min(number, MOST_WAIT_S)
