"""GET requests to one exchange, within its limits. When it says "wait", everything waits."""

import email.utils
import math
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import httpx2

from services.collector.allowance import Allowance
from services.collector.exchanges.base import Exchange
from shared import metrics
from shared.errors import LinkLost, RateLimited, SubscriptionRefused

LEAST_WAIT_S = 1.0
MOST_WAIT_S = 3 * 86_400.0
"""Binance bans for up to three days."""

DEFAULT_WAIT_S = 60.0
"""Where the exchange asks us to wait and does not say how long."""


class Answer(NamedTuple):
    """An answer that is neither a limit nor a failure of the server; when it was asked for and came (wall clock)."""

    status: int
    body: bytes
    sent_ns: int
    received_ns: int


def retry_after_s(header: str | None, now_s: float) -> float | None:
    """Seconds of a `Retry-After` header, which may also be a date; None if there is none that can be read."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - now_s
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(seconds, LEAST_WAIT_S), MOST_WAIT_S) if math.isfinite(seconds) else None


def judge(exchange: Exchange, status: int, retry_after: str | None, body: bytes, where: str, now_s: float) -> None:
    """What an HTTP status means before its body is looked at; returns if it may be looked at.

    Raises:
        RateLimited: 429, 418 (banned), 403 (firewall), or a body that says so.
        SubscriptionRefused: 451: this place is not served.
    """
    asked_s = exchange.limited(status, body)
    if status in (418, 429) or asked_s is not None:
        told_s = retry_after_s(retry_after, now_s)
        raise RateLimited(exchange.name, status, told_s or asked_s or DEFAULT_WAIT_S)
    if status == 403:
        raise RateLimited(exchange.name, status, retry_after_s(retry_after, now_s) or exchange.limits.forbidden_wait_s)
    if status == 451:
        raise SubscriptionRefused(
            exchange.name, f"HTTP 451 from {where}: not served from this place; set other addresses for the exchange"
        )


class Rest:
    """One exchange's REST side.

    Args:
        clock: Wall clock in ns; ticks: a clock that is never set back, in ns.
        sleep: Waiting, passed in by tests.
    """

    def __init__(
        self,
        exchange: Exchange,
        http: httpx2.AsyncClient,
        allowance: Allowance,
        clock: Callable[[], int],
        ticks: Callable[[], int],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._exchange = exchange
        self._http = http
        self._allowance = allowance
        self._clock = clock
        self._ticks = ticks
        self._sleep = sleep

    async def get(self, url: str, cost: int = 1) -> Answer:
        """Ask, when it is allowed to.

        Raises:
            RateLimited: it was not after all; nothing is asked before the wait is over.
            SubscriptionRefused: HTTP 451.
            LinkLost: no answer, or the server is in trouble.
        """
        name = self._exchange.name
        now = self._ticks()
        wait_ns = self._allowance.reserve(now, cost) - now
        if wait_ns > 0:
            await self._sleep(wait_ns / 1e9)
            still_s = (self._allowance.blocked_until_ns() - self._ticks()) / 1e9
            if still_s > 0.01:
                raise RateLimited(name, "another request was told to wait", still_s)
        sent_ns = self._clock()
        try:
            answer = await self._http.get(url)
        except httpx2.HTTPError as error:
            metrics.REST.labels(exchange=name, outcome="failed").inc()
            raise LinkLost(f"{name}: no answer from {url}: {error or type(error).__name__}") from None
        received_ns = self._clock()
        header = answer.headers.get("retry-after")
        try:
            judge(self._exchange, answer.status_code, header, answer.content, url, received_ns / 1e9)
        except RateLimited as error:
            metrics.REST.labels(exchange=name, outcome="rate_limited").inc()
            self._allowance.block(self._ticks() + int(error.retry_after_s * 1e9))
            raise
        if answer.status_code >= 500:
            metrics.REST.labels(exchange=name, outcome="failed").inc()
            raise LinkLost(f"{name}: HTTP {answer.status_code} from {url}")
        metrics.REST.labels(exchange=name, outcome="answered").inc()
        return Answer(answer.status_code, answer.content, sent_ns, received_ns)
