"""Money for models: reserved before a call at its worst case, settled by what was used. Pure, fails closed."""

from collections import deque
from dataclasses import dataclass
from decimal import Decimal

from shared.messages import Tokens
from shared.settings import DeciderSettings, ModelSettings

MILLION = Decimal(1_000_000)
MINUTE_NS = 60_000_000_000
DAY_NS = 86_400_000_000_000


def estimated_tokens(text: str) -> int:
    """Upper estimate of a prompt's tokens: three characters each, and some for the frame."""
    return len(text) // 3 + 50


def worst_case(model: ModelSettings, prompt: str) -> Decimal:
    """Most that a call can cost in USD: nothing cached, the answer as long as allowed."""
    return (estimated_tokens(prompt) * model.price_in + model.max_out * model.price_out) / MILLION


def clamp(model: ModelSettings, prompt: str, usage: object) -> Tokens:
    """Reported usage within what was reserved: providers' numbers are claims."""

    def number(value: object, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            return most  # unusable numbers are charged in full
        return min(max(value, 0), most)

    most_in = estimated_tokens(prompt)
    read = number(getattr(usage, "prompt_tokens", None), most_in)
    details = getattr(usage, "prompt_tokens_details", None)
    cached = getattr(details, "cached_tokens", 0)
    written = number(getattr(usage, "completion_tokens", None), model.max_out)
    cached = number(cached, read) if isinstance(cached, int) else 0
    return Tokens.model_validate({"in": read, "cached": cached, "out": written})


def cost(model: ModelSettings, tokens: Tokens) -> Decimal:
    """USD for the tokens."""
    fresh = tokens.input - tokens.cached
    total = fresh * model.price_in + tokens.cached * model.price_cached + tokens.out * model.price_out
    return total / MILLION


@dataclass(slots=True)
class Reservation:
    """Money put aside for one call."""

    amount: Decimal
    at_ns: int
    settled: bool = False


class Budget:
    """Caps per call, opportunity, minute and day; a reservation counts in full until it is settled."""

    def __init__(self, settings: DeciderSettings) -> None:
        self._settings = settings
        self._spent: deque[Reservation] = deque()
        self._minute: deque[Reservation] = deque()
        self._day_total = Decimal(0)
        self._minute_total = Decimal(0)

    def reserve(self, amount: Decimal, spent_on_opportunity: Decimal, now_ns: int) -> Reservation | None:
        """Put money aside; None if any cap would be passed."""
        self._forget(now_ns)
        limits = self._settings
        if (
            amount > limits.max_call_usd
            or spent_on_opportunity + amount > limits.max_opportunity_usd
            or self._minute_total + amount > limits.max_minute_usd
            or self._day_total + amount > limits.max_day_usd
        ):
            return None
        reservation = Reservation(amount, now_ns)
        self._spent.append(reservation)
        self._minute.append(reservation)
        self._day_total += amount
        self._minute_total += amount
        return reservation

    def settle(self, reservation: Reservation, actual: Decimal, now_ns: int) -> None:
        """Replace the worst case by what was used, never more than was reserved."""
        if reservation.settled:
            return
        self._forget(now_ns)
        reservation.settled = True
        given_back = reservation.amount - min(max(actual, Decimal(0)), reservation.amount)
        reservation.amount -= given_back
        if now_ns - reservation.at_ns < DAY_NS:
            self._day_total -= given_back
        if now_ns - reservation.at_ns < MINUTE_NS:
            self._minute_total -= given_back

    def spent(self, now_ns: int) -> tuple[Decimal, Decimal]:
        """Within the last minute and the last day, open reservations included (USD)."""
        self._forget(now_ns)
        return self._minute_total, self._day_total

    def _forget(self, now_ns: int) -> None:
        while self._minute and now_ns - self._minute[0].at_ns >= MINUTE_NS:
            self._minute_total -= self._minute.popleft().amount
        while self._spent and now_ns - self._spent[0].at_ns >= DAY_NS:
            self._day_total -= self._spent.popleft().amount
