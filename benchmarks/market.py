"""Books of five exchanges as the detector reads them, with a known share of gross crossings in them.

Every book changes once in a round, in an order drawn anew, so each symbol is a symbol like any other however many
there are: the same updates a second, the same share of crossings, as many gaps open at a time. Crossings are planted
and nothing else crosses: exchanges differ from a common price by less than their spread. For five rounds (a second) of
every 250 of a symbol one exchange stands higher than the others, which crosses four pairs; in one of four cases by
enough to pay after fees. The symbols take turns, so that any number of rounds has the same share of them.

As with the default settings three exchanges quote in USDT and two in USD, and a rate comes once a second.
"""

import datetime
import random
from collections.abc import Iterator
from decimal import Decimal
from typing import Literal, NamedTuple

from shared import settings
from shared.messages import Level, book_value, rate_value

EXCHANGES = ("binance", "coinbase", "kraken", "bybit", "okx")
IN_USDT = frozenset({"binance", "bybit", "okx"})
BOOK_HZ = 5
"""Updates a second of one book; in our captures it is 5 to 40."""

PERIOD, LASTS = 250, 5
"""Rounds from one planted crossing of a symbol to its next, and how many it lasts."""

HIGHER, PAYS = 0.0012, 0.0040
"""How far the one exchange stands above the others: fees of 10 bps a side eat the first."""

Crossings = Literal["planted", "none", "standing"]

STANDS = 0.0006
"""How far an exchange stands apart where it always does: the books are two basis points wide."""

SECOND_NS = 1_000_000_000
FEE_BPS = Decimal(10)
LEVELS = 10


class Tick(NamedTuple):
    """A record: its key, its moment, its bytes, and whether its symbol has a crossing now."""

    base: str
    at_ns: int
    value: bytes
    crossing: bool


def configured() -> settings.Settings:
    """The default settings with five exchanges at 10 bps."""
    loaded = settings.load()
    fee = settings.Fee(valid_from=datetime.date(2020, 1, 1), taker_bps=FEE_BPS)
    one = loaded.exchanges["kraken"].model_copy(update={"fees": (fee,)})
    return loaded.model_copy(update={"exchanges": dict.fromkeys(EXCHANGES, one)})


def symbol_of(base: str, exchange: str) -> str:
    """The pair of a coin that an exchange has."""
    return f"{base}-{'USDT' if exchange in IN_USDT else 'USD'}"


def spacing_ns(symbols: int) -> int:
    """Between two ticks, where each book has its `BOOK_HZ`."""
    return SECOND_NS // (symbols * len(EXCHANGES) * BOOK_HZ)


def higher(which: int, number: int) -> float:
    """By how much one exchange stands above the others for symbol `which` in round `number`."""
    turn, at = divmod(number + which * 97, PERIOD)
    if at >= LASTS:
        return 0.0
    return PAYS if (turn + which) % 4 == 0 else HIGHER


def levels(mid: float, sizes: list[float]) -> tuple[list[Level], list[Level]]:
    """Ten bids and asks around a price, a basis point apart."""
    bids = [(round(mid * (1 - 0.0001 * (n + 1)), 4), sizes[n]) for n in range(LEVELS)]
    asks = [(round(mid * (1 + 0.0001 * (n + 1)), 4), sizes[-1 - n]) for n in range(LEVELS)]
    return bids, asks


def ticks(
    symbols: int, count: int, begin_ns: int, spacing: int, seed: int = 1, *, crossings: Crossings = "planted"
) -> Iterator[Tick]:
    """`count` books of `symbols` coins, `spacing` nanoseconds apart, and the rates between them.

    Args:
        crossings: "planted" now and then (`higher`); "none" at all; "standing": of each symbol one exchange is above
            the others all the time, by less than fees.
    """
    draw = random.Random(seed)
    sizes = [[round(draw.uniform(0.01, 3), 8) for _ in range(LEVELS)] for _ in range(64)]
    books = [(which, place) for which in range(symbols) for place in range(len(EXCHANGES))]
    mids = [100.0] * symbols
    rate_ns, rates, made, number = begin_ns, 0, 0, 0
    while made < count:
        draw.shuffle(books)
        for which in range(symbols):
            mids[which] *= 1 + draw.gauss(0, 0.00002)
        for which, place in books[: count - made]:
            at_ns = begin_ns + made * spacing
            if at_ns >= rate_ns:
                rate_ns, rates = rate_ns + SECOND_NS, rates + 1
                yield Tick(
                    "USDT", at_ns, rate_value("kraken", "USDT-USD", rates, at_ns, None, 0.9999, 1.0001, "live"), False
                )
            by = higher(which, number) if crossings == "planted" else STANDS if crossings == "standing" else 0.0
            mid = mids[which] * (1 + draw.uniform(-0.00004, 0.00004))
            if by and place == which % len(EXCHANGES):
                mid *= 1 + by
            bids, asks = levels(mid, sizes[draw.randrange(64)])
            exchange, base = EXCHANGES[place], f"C{which}"
            value = book_value(exchange, symbol_of(base, exchange), number, at_ns, None, bids, asks)
            yield Tick(base, at_ns, value, by > 0)
            made += 1
        number += 1
