"""What REST answers mean, and a small server of the test's own on the loopback interface that gives them."""

import asyncio
import email.utils
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http import HTTPStatus

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from services.collector.allowance import Allowance
from services.collector.exchanges import EXCHANGES
from services.collector.exchanges.base import Exchange, Rule
from services.collector.rest import DEFAULT_WAIT_S, LEAST_WAIT_S, MOST_WAIT_S, Answer, Rest, judge, retry_after_s
from shared.errors import LinkLost, RateLimited, SubscriptionRefused

NOW_S = 1_790_000_000.0
S = 1_000_000_000


# ---------------------------------------------------------------- Retry-After


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("37", 37.0),
        (" 37 ", 37.0),
        ("2.5", 2.5),
        ("0", LEAST_WAIT_S),
        ("-5", LEAST_WAIT_S),
        ("99999999", MOST_WAIT_S),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("-inf", None),
        ("1e999", None),
        ("Mon, 99 Foo 2026 00:00:00 GMT", None),
        ("Mon, 01 Jan 2024 25:61:61 GMT", None),
    ],
)
def test_retry_after_in_seconds_or_unreadable(header, seconds):
    assert retry_after_s(header, NOW_S) == seconds


@given(st.integers(-5 * 86_400, 5 * 86_400))
def test_retry_after_as_a_date_is_the_time_until_then(seconds):
    date = email.utils.format_datetime(datetime.fromtimestamp(NOW_S + seconds, UTC), usegmt=True)
    assert retry_after_s(date, NOW_S) == min(max(seconds, LEAST_WAIT_S), MOST_WAIT_S)


@given(
    st.text(max_size=40) | st.floats().map(str) | st.from_regex(r"[A-Z][a-z]{2}, \d{1,6} [A-Z][a-z]{2} \d{1,6} .{0,20}")
)
def test_whatever_the_header_says_the_wait_is_none_or_within_bounds(header):
    seconds = retry_after_s(header, NOW_S)
    assert seconds is None or (math.isfinite(seconds) and LEAST_WAIT_S <= seconds <= MOST_WAIT_S)


@pytest.mark.parametrize(
    "header",
    [
        "Fri, 31 Dec 99999999999999999999 23:59:59 GMT",
        "Wed, 21 Oct 2015 07:28:00 +99999999999999999999999",
        "Wed, 21 Oct 2015 99999999999999:28:00 GMT",
    ],
)
def test_an_enormous_date_is_unreadable(header):
    assert retry_after_s(header, NOW_S) is None


# ---------------------------------------------------------------- judge


def waits_s(exchange: Exchange, status: int, body: bytes = b"", retry_after: str | None = None) -> float:
    with pytest.raises(RateLimited) as raised:
        judge(exchange, status, retry_after, body, "https://somewhere", NOW_S)
    return raised.value.retry_after_s


@pytest.mark.parametrize("status", [200, 400, 404, 500, 503])
@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"<html>", b'{"error":[],"result":{}}', b'{"code":"0","data":[]}'])
@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES)
def test_other_answers_may_be_looked_at(exchange, status, body):
    judge(exchange, status, "37", body, "https://somewhere", NOW_S)


@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES)
def test_too_many_requests_and_bans_are_waited_out_as_told(exchange):
    for status in (418, 429):
        assert waits_s(exchange, status) == DEFAULT_WAIT_S
        assert waits_s(exchange, status, retry_after="37") == 37.0
        assert waits_s(exchange, status, retry_after="soon") == DEFAULT_WAIT_S
        assert waits_s(exchange, status, retry_after="604800") == MOST_WAIT_S


@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES)
def test_the_firewall_is_waited_out_as_long_as_it_stands(exchange):
    assert waits_s(exchange, 403) == exchange.limits.forbidden_wait_s
    assert waits_s(exchange, 403, b"<html>Forbidden</html>") == exchange.limits.forbidden_wait_s
    assert waits_s(exchange, 403, retry_after="37") == 37.0


@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES)
def test_a_place_that_is_not_served_is_final_and_says_where(exchange):
    with pytest.raises(SubscriptionRefused, match=f"{exchange.name} refused.*451 from https://somewhere"):
        judge(exchange, 451, None, b"", "https://somewhere", NOW_S)


@pytest.mark.parametrize(
    ("exchange", "status", "body", "seconds"),
    [
        ("kraken", 200, b'{"error":["EGeneral:Too many requests"]}', 5.0),
        ("kraken", 200, b'{"error":["EAPI:Rate limit exceeded"],"result":{}}', 5.0),
        ("okx", 200, b'{"code":"50011","data":[],"msg":"Too Many Requests"}', 2.0),
        ("okx", 429, b'{"msg": "Too Many Requests", "code": "50011", "data": []}', 2.0),
        ("bybit", 200, b'{"retCode":10006,"retMsg":"Too many visits!","result":{}}', 5.0),
        ("bybit", 200, b'{"retCode": 10006, "retMsg": "Too many visits!"}', 5.0),
        ("bybit", 403, b"403, access too frequent, please try it again later", 600.0),
    ],
)
def test_a_limit_in_the_body_is_a_limit_whatever_the_status(exchange, status, body, seconds):
    assert waits_s(EXCHANGES[exchange], status, body) == seconds
    assert waits_s(EXCHANGES[exchange], status, body, "37") == 37.0, "a header knows better"


# ---------------------------------------------------------------- over a socket


class Clock:
    """Time passes only while somebody waits."""

    def __init__(self) -> None:
        self.now_ns = int(NOW_S) * S
        self.waits: list[float] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def __call__(self) -> int:
        return self.now_ns

    async def sleep(self, seconds: float) -> None:
        self.waits.append(round(seconds, 6))
        self.now_ns += round(seconds * S)
        self.meanwhile()


Answers = list[tuple[int, bytes, dict[str, str]]]


class Server:
    """Gives the answers one after the other; knows what it was asked."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.port = 0

    def url(self, path: str = "/time") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def answer(self, connection: ServerConnection, request: Request) -> Response:
        self.asked.append(request.path)
        status, body, extra = self.answers.pop(0)
        headers = Headers({"content-length": str(len(body)), "connection": "close", **extra})
        return Response(status, HTTPStatus(status).phrase, headers, body)


@asynccontextmanager
async def server(*answers: tuple[int, bytes, dict[str, str]]) -> AsyncIterator[Server]:
    async def never(connection: ServerConnection) -> None: ...

    made = Server(list(answers))
    async with serve(never, "127.0.0.1", 0, process_request=made.answer) as listening:
        made.port = next(iter(listening.sockets)).getsockname()[1]
        yield made


@asynccontextmanager
async def client(clock: Clock, allowance: Allowance, exchange: str = "binance") -> AsyncIterator[Rest]:
    async with httpx2.AsyncClient(timeout=5.0) as http:
        yield Rest(EXCHANGES[exchange], http, allowance, clock, clock, clock.sleep)


def counted(outcome: str, exchange: str = "binance") -> float:
    return REGISTRY.get_sample_value("arb_rest_requests_total", {"exchange": exchange, "outcome": outcome}) or 0


async def test_an_answer_comes_with_its_status_and_body_and_is_counted():
    clock, before = Clock(), counted("answered")
    async with server((200, b'{"serverTime":1}', {}), (400, b'{"code":-1121}', {})) as there:
        async with client(clock, Allowance([])) as rest:
            assert await rest.get(there.url("/a?b=c")) == Answer(200, b'{"serverTime":1}', clock(), clock())
            assert await rest.get(there.url()) == Answer(400, b'{"code":-1121}', clock(), clock())
    assert there.asked == ["/a?b=c", "/time"]
    assert counted("answered") == before + 2
    assert clock.waits == []


async def test_after_a_429_the_server_is_not_asked_again_before_the_time_it_said():
    clock, before = Clock(), counted("rate_limited")
    asked_until_then: list[int] = []
    async with server((429, b"", {"retry-after": "37"}), (200, b"{}", {})) as there:
        clock.meanwhile = lambda: asked_until_then.append(len(there.asked))
        async with client(clock, Allowance([])) as rest:
            with pytest.raises(RateLimited, match="HTTP 429, waiting 37 s") as raised:
                await rest.get(there.url())
            assert raised.value.retry_after_s == 37.0
            assert clock.waits == []
            assert (await rest.get(there.url())).status == 200
    assert clock.waits == [37.0]
    assert asked_until_then == [1]
    assert counted("rate_limited") == before + 1


async def test_a_limit_in_a_good_answers_body_holds_the_next_request_back():
    clock = Clock()
    async with server((200, b'{"error":["EGeneral:Too many requests"]}', {}), (200, b"{}", {})) as there:
        async with client(clock, Allowance([]), "kraken") as rest:
            with pytest.raises(RateLimited):
                await rest.get(there.url())
            await rest.get(there.url())
    assert clock.waits == [5.0]


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_server_in_trouble_is_a_lost_link(status):
    before = counted("failed")
    async with server((status, b"<html>", {})) as there, client(Clock(), Allowance([])) as rest:
        with pytest.raises(LinkLost, match=f"binance: HTTP {status} from {there.url()}"):
            await rest.get(there.url())
    assert counted("failed") == before + 1


async def test_a_port_where_nobody_listens_is_a_lost_link():
    async with server() as there:
        pass
    async with client(Clock(), Allowance([])) as rest:
        with pytest.raises(LinkLost, match=f"no answer from {there.url()}"):
            await rest.get(there.url())


async def test_a_server_that_closes_without_an_answer_is_a_lost_link():
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        async with client(Clock(), Allowance([])) as rest:
            with pytest.raises(LinkLost, match="no answer"):
                await rest.get(f"http://127.0.0.1:{port}/time")


async def test_a_place_that_is_not_served_ends_it():
    async with server((451, b"", {})) as there, client(Clock(), Allowance([])) as rest:
        with pytest.raises(SubscriptionRefused, match=f"HTTP 451 from {there.url()}"):
            await rest.get(there.url())


async def test_costs_are_paced():
    clock = Clock()
    async with server(*[(200, b"{}", {})] * 5) as there, client(clock, Allowance([Rule(10, 1.0)])) as rest:
        for cost in (6, 4, 6, 250, 1):
            await rest.get(there.url(), cost)
    assert clock.waits == [1.0, 1.0, 1.0], "6 + 4 at once; then 6; then the whole window; then 1"


async def test_a_request_that_fails_has_cost_something_too():
    clock = Clock()
    async with server((500, b"", {}), (200, b"{}", {})) as there, client(clock, Allowance([Rule(1, 2.0)])) as rest:
        with pytest.raises(LinkLost):
            await rest.get(there.url())
        await rest.get(there.url())
    assert clock.waits == [2.0]


async def blocked_while_waiting(block_s: float) -> list[str]:
    """What the server is asked by a request that waits ten seconds, when another one is told to wait at their end."""
    clock, allowance = Clock(), Allowance([Rule(1, 10.0)])
    allowance.reserve(clock())
    clock.meanwhile = lambda: allowance.block(clock() + int(block_s * S))
    async with server((200, b"{}", {})) as there, client(clock, allowance) as rest:
        with pytest.raises(RateLimited, match="told to wait") as raised:
            await rest.get(there.url())
    assert raised.value.retry_after_s == block_s
    return there.asked


async def test_a_request_that_waits_for_its_turn_hears_of_a_limit_that_came_meanwhile():
    assert await blocked_while_waiting(30.0) == []


async def test_a_request_that_waited_long_hears_of_a_short_limit_too():
    assert await blocked_while_waiting(5.0) == []
