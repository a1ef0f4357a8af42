"""Money for models: reserved before a call at its worst case, settled by what was used. Fails closed.

What was spent stands in the decider's file (`state.py`), so a restart forgets nothing and several processes share the
caps. Amounts are rounded up to whole pico-USD, caps down.
"""

import datetime
import functools
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

from services.decider.state import DAY_NS, PANEL, PROVIDER, SHADOW, Booking, Limits, State
from shared.messages import Tokens
from shared.settings import ModelSettings, Settings

MILLION = Decimal(1_000_000)
PICO = 10**12
"""Pico-USD in a USD."""

FRAME_TOKENS = 50
SCHEMA_TOKENS = 400
"""Providers count the schema of the answer as part of the prompt: about 200 tokens in two public tokenizers."""

_WORDS = b"abcdefghijklmnopqrstuvwxyz \n"
_MOST_PICO = 2**61
_WIDE = Context(prec=60)


@functools.lru_cache(256)  # asked of the same text by the guards, the budget and what was used
def estimated_tokens(text: str) -> int:
    """Upper estimate of a text's tokens as a prompt, the frame of its message included.

    Small letters and blanks are at least three to a token in English. Every other byte counts as a token of its own:
    digits, signs and capitals often are one, and a letter beyond ASCII is never more tokens than it has bytes. Our
    prompts come out half as large again as public tokenizers count them; words that no language knows may not.
    """
    whole = text.encode("utf-8", "surrogatepass")
    others = len(whole.translate(None, _WORDS))
    return others + (len(whole) - others + 2) // 3 + FRAME_TOKENS


def _most_in(model: ModelSettings, prompt: str) -> int:
    return estimated_tokens(prompt) + (SCHEMA_TOKENS if model.structured == "json_schema" else 0)


def worst_case(model: ModelSettings, prompt: str, day: datetime.date) -> Decimal:
    """Most that a call can cost in USD at the prices of the day: no cache helps, the answer is as long as allowed."""
    price = model.price(day)
    return (_most_in(model, prompt) * max(price.input, price.cached) + model.max_out * price.output) / MILLION


def clamp(model: ModelSettings, prompt: str, usage: object) -> Tokens:
    """Reported usage within what was reserved: providers' numbers are claims.

    A count that is no whole number counts in full; a cache that is not clearly claimed did not help. Tokens that are in
    the total but neither in the prompt nor in the answer were thought, and cost like the answer.
    """
    most_in = _most_in(model, prompt)
    read = _count(usage, "prompt_tokens")
    written = _count(usage, "completion_tokens")
    total = _count(usage, "total_tokens")
    if total is not None and read is not None and written is not None:
        written = max(written, total - max(read, 0))
    hits = [
        claimed
        for claimed in (
            _count(_field(usage, "prompt_tokens_details"), "cached_tokens"),
            _count(usage, "prompt_cache_hit_tokens"),  # DeepSeek's own name for it
        )
        if claimed is not None
    ]
    within = _within(read, most_in)
    cached = min(max(min(hits), 0), within) if hits and read is not None else 0
    return Tokens.trusted(input=within, cached=cached, out=_within(written, model.max_out))


def _field(thing: object, name: str) -> object:
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)


def _count(thing: object, name: str) -> int | None:
    value = _field(thing, name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _within(value: int | None, most: int) -> int:
    return most if value is None else min(max(value, 0), most)


def cost(model: ModelSettings, tokens: Tokens, day: datetime.date) -> Decimal:
    """USD for the tokens at the prices of the day."""
    price = model.price(day)
    fresh = tokens.input - tokens.cached
    return (fresh * price.input + tokens.cached * price.cached + tokens.out * price.output) / MILLION


@dataclass(slots=True)
class Reservation:
    """Money put aside for one call.

    Attributes:
        amount: USD that count: all of it until it is settled, then what was used.
        reserved: USD put aside at first.
    """

    provider: str
    amount: Decimal
    reserved: Decimal
    at_ns: int
    shadow: bool
    booking: Booking
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One cap in USD, and what counts against it."""

    spent: Decimal
    cap: Decimal

    @property
    def left(self) -> Decimal:
        return max(self.cap - self.spent, Decimal(0))


@dataclass(frozen=True, slots=True)
class Spent:
    """What counts now, open reservations included, and the caps. USD.

    Attributes:
        minute: The last 60 seconds, and up to one more: whole seconds are counted.
        day: The calendar day, UTC, without what candidates in the shadow cost.
        shadow: The same day's candidates in the shadow.
        providers: By provider: the same day, shadow included. One that is in no setting any more has the cap 0.
        day_ends_ns: When a new day begins.
        booked_until_ns: End of the latest second or day in the book. It is later than now if the clock was set back:
            what was booked under the later time counts until then.
    """

    call_cap: Decimal
    opportunity_cap: Decimal
    minute: Line
    day: Line
    shadow: Line
    providers: dict[str, Line]
    day_ends_ns: int
    booked_until_ns: int


class Budget:
    """Caps per call, opportunity, 60 seconds and day; a reservation counts in full until it is settled.

    They hold for all processes that share the file of `state`, under any usage reported and any clock. What a process
    had reserved when it was killed stays counted in full.
    """

    def __init__(self, settings: Settings, state: State) -> None:
        decider = settings.decider
        self._state = state
        self._settings = settings
        self._call = _down(decider.max_call_usd)
        self._opportunity = _down(decider.max_opportunity_usd)
        self._minute = _down(decider.max_minute_usd)
        self._day = _down(decider.max_day_usd)
        self._shadow = _down(settings.guards.shadow_max_day_usd)
        self._providers = {name: _down(provider.max_day_usd) for name, provider in settings.providers.items()}
        self._lock = threading.Lock()

    def reserve(
        self, provider: str, amount: Decimal, spent_on_opportunity: Decimal, now_ns: int, *, shadow: bool = False
    ) -> Reservation | None:
        """Put money aside; None if any cap would be passed or the book cannot be written. Never raises.

        Args:
            amount: USD, the worst case of the call.
            spent_on_opportunity: USD already put aside for the same opportunity.
            shadow: A candidate beside the panel: against its own cap of the day and the provider's, not against those
                of the opportunity, the minute and the panels' day.
        """
        return self.reserve_all([(provider, amount)], spent_on_opportunity, now_ns, shadow=shadow)[0]

    def reserve_all(
        self,
        wanted: Sequence[tuple[str, Decimal]],
        spent_on_opportunity: Decimal,
        now_ns: int,
        *,
        shadow: bool = False,
    ) -> list[Reservation | None]:
        """As `reserve` for each (provider, USD) of one opportunity in this order, in one change of the book."""
        found: list[Reservation | None] = [None] * len(wanted)
        before = 0 if shadow else _up(spent_on_opportunity)
        if before is None:
            return found
        asked: dict[int, tuple[int, str, Limits]] = {}
        for place, (provider, amount) in enumerate(wanted):
            cap, pico = self._providers.get(provider), _up(amount)
            if cap is not None and pico is not None and pico <= self._call:
                limits = Limits(None, self._shadow, cap) if shadow else Limits(self._minute, self._day, cap)
                asked[place] = pico, provider, limits
        if not asked:
            return found
        most = None if shadow else self._opportunity - before
        bookings = self._state.book_all(list(asked.values()), now_ns, shadow=shadow, most=most)
        for place, booking in zip(asked, bookings, strict=True):
            if booking is not None:
                usd = _usd(booking.pico)
                found[place] = Reservation(wanted[place][0], usd, usd, now_ns, shadow, booking)
        return found

    def settle(self, reservation: Reservation, actual: Decimal, now_ns: int) -> None:
        """Replace the worst case by what was used (USD), never more than was reserved and never less than 0.

        The first call counts, a later one does nothing. If the book cannot be written, all of the reservation stands.
        """
        self.settle_all([(reservation, actual)], now_ns)

    def settle_all(self, settlements: Iterable[tuple[Reservation, Decimal]], now_ns: int) -> None:
        """As `settle`, for several at once: what is not used of them goes back in one change of the book, or stands."""
        backs: list[tuple[Reservation, int]] = []
        for reservation, actual in settlements:
            with self._lock:
                if reservation.settled:
                    continue
                reservation.settled = True
            pico = reservation.booking.pico
            used = _up(max(actual, Decimal(0))) if actual.is_finite() else None
            if used is not None and used < pico:
                backs.append((reservation, pico - used))
        if backs and self._state.give_back([(reservation.booking, back) for reservation, back in backs], now_ns):
            for reservation, back in backs:
                reservation.amount = _usd(reservation.booking.pico - back)

    def spent(self, now_ns: int) -> Spent:
        """What counts now.

        Raises:
            SettingsError: the book cannot be read.
        """
        booked = self._state.booked(now_ns)
        decider = self._settings.decider

        def of_day(name: str, cap: Decimal) -> Line:
            return Line(_usd(booked.days.get(name, 0)), cap)

        providers = {name: of_day(PROVIDER + name, one.max_day_usd) for name, one in self._settings.providers.items()}
        for name in sorted(booked.days):
            former = name.removeprefix(PROVIDER)
            if name.startswith(PROVIDER) and former not in providers:
                providers[former] = of_day(name, Decimal(0))
        return Spent(
            call_cap=decider.max_call_usd,
            opportunity_cap=decider.max_opportunity_usd,
            minute=Line(_usd(booked.minute), decider.max_minute_usd),
            day=of_day(PANEL, decider.max_day_usd),
            shadow=of_day(SHADOW, self._settings.guards.shadow_max_day_usd),
            providers=providers,
            day_ends_ns=(now_ns // DAY_NS + 1) * DAY_NS,
            booked_until_ns=booked.latest_ns,
        )


def _up(usd: Decimal) -> int | None:
    """Pico-USD, at least so much; None for what is no amount of money."""
    if not usd.is_finite() or usd < 0 or usd > _MOST_PICO // PICO:
        return None
    return int(_WIDE.multiply(usd, Decimal(PICO)).to_integral_value(ROUND_CEILING))


def _down(cap: Decimal) -> int:
    if cap >= _MOST_PICO // PICO:
        return _MOST_PICO
    return int(_WIDE.multiply(cap, Decimal(PICO)).to_integral_value(ROUND_FLOOR))


def _usd(pico: int) -> Decimal:
    """Exact, and without an exponent: "0.0105", not "0.010500000000"."""
    value = (Decimal(pico) / PICO).normalize()
    return value.quantize(Decimal(1)) if value == value.to_integral_value() else value
