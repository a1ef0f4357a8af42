"""Faults on request: what may go wrong, when, and what it does to frames and books. No sockets, no clock.

A fault is scheduled (`Faults.add`), begins and ends as `Faults.tick` is told the time, and counts each strike. The
shell asks which faults are active on an exchange and does what needs a socket; what happens to a frame on its way out
is decided here (`Line`), and so is how a book is crossed (`Crossing`).
"""

import contextlib
import random
import re
import tomllib
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.simulator.market import BookEvent, SimBook
from shared import symbols
from shared.errors import InputError

Kind = Literal[
    "drop",
    "duplicate",
    "reorder",
    "corrupt",
    "stall",
    "close",
    "refuse",
    "rate_limit",
    "cross",
    "announce",
    "halt",
    "silent",
]
KINDS: tuple[str, ...] = get_args(Kind)
FRAME_KINDS = ("drop", "corrupt", "duplicate", "reorder")
"""In the order in which they strike a frame."""

GENERATED_ONLY = ("cross", "announce", "halt", "silent")
"""They need the exchange's books and sessions, which a replay does not have."""

ANY = "*"
MOST_FAULTS = 100
"""Scheduled and active at the same time; as many that are over stay in the list."""

_TAKES: dict[str, tuple[str, ...]] = {
    "symbol": (*FRAME_KINDS, "cross", "halt", "silent"),
    "for_s": tuple(kind for kind in KINDS if kind != "announce"),
    "share": FRAME_KINDS,
    "status": ("refuse", "rate_limit"),
    "retry_after_s": ("refuse", "rate_limit"),
    "notice_s": ("announce",),
}
"""Fields that not every kind has, with the kinds that have them."""

_RATE_LIMITS = (429, 418, 403, 451)
_CUT_SHARE = 0.25
_YEAR_S = 31_536_000

Seconds = Annotated[float, Field(ge=0, le=_YEAR_S)]


class Fault(BaseModel):
    """One thing that goes wrong.

    Attributes:
        exchange: One that is simulated, or "*" for all.
        symbol: Canonical; None: all (and heartbeats and answers too, where frames are struck).
        at_s: Seconds after it was given until it begins.
        for_s: How long; None: until cleared. `close` without it closes once; `announce` lasts `notice_s`.
        share: Probability with which each frame is struck.
        status, retry_after_s: Of the HTTP answers of `refuse` (503) and `rate_limit` (429, after 5 s).
        notice_s: From the announced end to the close; 5.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True, allow_inf_nan=False)

    kind: Kind
    exchange: str = Field(min_length=1)
    symbol: str | None = None
    at_s: Seconds = 0.0
    for_s: Annotated[float, Field(gt=0, le=_YEAR_S)] | None = None
    share: float = Field(1.0, ge=0, le=1)
    status: int | None = Field(None, ge=400, le=599)
    retry_after_s: int | None = Field(None, ge=0, le=86_400)
    notice_s: Seconds | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Fault":
        for name, kinds in _TAKES.items():
            given = name in self.model_fields_set and getattr(self, name) is not None
            if given and self.kind not in kinds:
                raise ValueError(f"{name}: not for {self.kind}; only for {', '.join(kinds)}")
        if self.symbol is not None and not symbols.is_canonical(self.symbol):
            raise ValueError(f"symbol: {self.symbol!r} is not of the form BASE-QUOTE, such as BTC-USDT")
        if self.kind == "rate_limit" and self.status is not None and self.status not in _RATE_LIMITS:
            raise ValueError(f"status: of rate_limit, allowed are {', '.join(map(str, _RATE_LIMITS))}")
        return self

    @property
    def lasts_s(self) -> float | None:
        """Seconds from its beginning to its end; None: until cleared; 0: it strikes once."""
        if self.kind == "announce":
            return 5.0 if self.notice_s is None else self.notice_s
        if self.kind == "close" and self.for_s is None:
            return 0.0
        return self.for_s


# ---------------------------------------------------------------- reading


def read(path: Path) -> list[Fault]:
    """Faults of a TOML file: one `[[fault]]` table each.

    Raises:
        InputError: it cannot be read, or a fault in it is wrong: which one, and what is allowed.
    """
    try:
        found = tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(str(path), error.strerror or str(error)) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(str(path), f"not TOML: {error}") from None
    tables = found.pop("fault", None)
    if found:
        raise InputError(str(path), f"unknown {', '.join(found)}; allowed are [[fault]] tables only")
    if not isinstance(tables, list) or not tables:
        raise InputError(str(path), "holds no fault; allowed are [[fault]] tables, each with kind and exchange")
    return [_fault(str(path), f"fault {number}: ", item) for number, item in enumerate(tables, 1)]


def from_json(body: bytes, source: str = "request") -> list[Fault]:
    """One fault (an object) or several (a list).

    Raises:
        InputError: what is wrong with it.
    """
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InputError(source, f"not JSON: {error}") from None
    if isinstance(found, list) and found:
        return [_fault(source, f"fault {number}: ", item) for number, item in enumerate(found, 1)]
    if isinstance(found, dict):
        return [_fault(source, "", found)]
    raise InputError(source, "must be one fault (an object) or a list of faults")


def _fault(source: str, which: str, item: object) -> Fault:
    if not isinstance(item, dict):
        raise InputError(source, f"{which}must be an object with kind and exchange")
    try:
        return Fault.model_validate(item)
    except ValidationError as error:
        problems = []
        for one in error.errors(include_url=False, include_input=False):
            where = ".".join(str(part) for part in one["loc"])
            words = one["msg"].removeprefix("Value error, ")
            if one["type"] == "extra_forbidden":
                words = f"no such field; there are {', '.join(Fault.model_fields)}"
            problems.append(f"{where}: {words}" if where else words)
        raise InputError(source, which + "; ".join(problems)) from None


# ---------------------------------------------------------------- the schedule


@dataclass(slots=True, eq=False)
class Running:
    """A fault with its times and how often it has struck."""

    id: str
    fault: Fault
    starts_ns: int
    ends_ns: int | None
    state: Literal["scheduled", "active", "over"] = "scheduled"
    struck: int = 0

    def strike(self, times: int = 1) -> None:
        """Count what it has done."""
        self.struck += times

    def concerns(self, exchange: str) -> bool:
        """Whether it is about this exchange."""
        return self.fault.exchange in (exchange, ANY)

    def as_dict(self, now_ns: int) -> dict[str, Any]:
        """For people and programs that look: the fault as it was given, its state and its times from now."""
        row = {"id": self.id, "state": self.state, **self.fault.model_dump(exclude_unset=True, exclude_none=True)}
        if self.state == "scheduled":
            row["begins_in_s"] = round((self.starts_ns - now_ns) / 1e9, 1)
        elif self.state == "active" and self.ends_ns is not None:
            row["ends_in_s"] = round(max(0, self.ends_ns - now_ns) / 1e9, 1)
        return row | {"struck": self.struck}


class Change(NamedTuple):
    """A fault has begun, has ended by itself, or was taken away while it was active."""

    what: Literal["began", "ended", "cleared"]
    fault: Running


class Refusal(NamedTuple):
    """What a new connection and any REST request get instead of an answer."""

    status: int
    retry_after_s: int | None


class Faults:
    """All faults of one simulator: scheduled, active and over.

    Args:
        draw: Decides which frames are struck, and how they are corrupted.
    """

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self._places: dict[str, tuple[str, ...] | None] = {}
        self._running: dict[str, Running] = {}
        self._over: deque[Running] = deque(maxlen=MOST_FAULTS)
        self._cleared: list[Change] = []
        self._last = 0

    def cover(self, exchange: str, listed: Collection[str] | None) -> None:
        """Faults of this exchange are possible; `listed` are its symbols, None for a replay."""
        self._places[exchange] = None if listed is None else tuple(listed)

    # ------------------------------------------------ in

    def add(self, faults: list[Fault], now_ns: int, source: str = "request") -> list[Running]:
        """Schedule all of them, or none.

        Raises:
            InputError: one cannot strike anything here: which, and what is allowed.
        """
        for number, fault in enumerate(faults, 1):
            problem = self._problem(fault)
            if problem is not None:
                raise InputError(source, f"fault {number}: {problem}" if len(faults) > 1 else problem)
        if len(self._running) + len(faults) > MOST_FAULTS:
            raise InputError(source, f"too many faults; allowed are {MOST_FAULTS} at the same time")
        added = []
        for fault in faults:
            self._last += 1
            starts_ns = now_ns + int(fault.at_s * 1e9)
            ends_ns = None if fault.lasts_s is None else starts_ns + int(fault.lasts_s * 1e9)
            running = self._running[str(self._last)] = Running(str(self._last), fault, starts_ns, ends_ns)
            added.append(running)
        return added

    def _problem(self, fault: Fault) -> str | None:
        if fault.exchange != ANY and fault.exchange not in self._places:
            return f"exchange: {fault.exchange!r} is not simulated here; allowed are {', '.join([*self._places, ANY])}"
        places = {name: listed for name, listed in self._places.items() if fault.exchange in (name, ANY)}
        if fault.kind in GENERATED_ONLY:
            places = {name: listed for name, listed in places.items() if listed is not None}
            if not places:
                others = ", ".join(kind for kind in KINDS if kind not in GENERATED_ONLY)
                return f"kind: {fault.kind} needs the generated market; on a replay allowed are {others}"
        if fault.symbol is None or any(listed is None or fault.symbol in listed for listed in places.values()):
            return None
        known = ", ".join(dict.fromkeys(symbol for listed in places.values() for symbol in listed or ()))
        return f"symbol: {fault.exchange} has no {fault.symbol}; allowed are {known}"

    def clear(self, number: str | None = None) -> list[Running]:
        """Take away one fault, or all; those that were there. The next `tick` tells of those that were active."""
        wanted = [one for one in self._running.values() if number in (None, one.id)]
        for one in wanted:
            del self._running[one.id]
            if one.state == "active":
                self._cleared.append(Change("cleared", one))
            one.state = "over"
        gone = [one for one in self._over if number in (None, one.id)]
        for one in gone:
            self._over.remove(one)
        return sorted(wanted + gone, key=lambda one: int(one.id))

    def tick(self, now_ns: int) -> list[Change]:
        """What has begun and ended by now. A fault that strikes once is active from one tick to the next."""
        changes, self._cleared = self._cleared, []
        for one in list(self._running.values()):
            if one.state == "scheduled" and now_ns >= one.starts_ns:
                one.state = "active"
                changes.append(Change("began", one))
            elif one.state == "active" and one.ends_ns is not None and now_ns >= one.ends_ns:
                one.state = "over"
                del self._running[one.id]
                self._over.append(one)
                changes.append(Change("ended", one))
        return changes

    # ------------------------------------------------ looking

    def listing(self, now_ns: int) -> list[dict[str, Any]]:
        """All that are known, in the order in which they were given."""
        known = sorted([*self._over, *self._running.values()], key=lambda one: int(one.id))
        return [one.as_dict(now_ns) for one in known]

    def active(self, exchange: str, *kinds: str) -> list[Running]:
        """Those of these kinds that are active on an exchange now."""
        return [
            one
            for one in self._running.values()
            if one.state == "active" and one.fault.kind in kinds and one.concerns(exchange)
        ]

    def struck_symbols(self, exchange: str, kind: str) -> dict[str, Running]:
        """The exchange's symbols that a fault of this kind is about, with the (first) fault."""
        found: dict[str, Running] = {}
        listed = self._places.get(exchange) or ()
        for one in self.active(exchange, kind):
            for symbol in listed if one.fault.symbol is None else (one.fault.symbol,):
                if symbol in listed:
                    found.setdefault(symbol, one)
        return found

    def refusal(self, exchange: str) -> Refusal | None:
        """What a newcomer is answered; None: it may come in."""
        for one in self.active(exchange, "refuse", "rate_limit"):
            one.strike()
            status, after_s = one.fault.status, one.fault.retry_after_s
            if one.fault.kind == "refuse":
                return Refusal(status or 503, after_s)
            status = status or 429
            return Refusal(status, 5 if after_s is None and status in (418, 429) else after_s)
        return None


# ---------------------------------------------------------------- frames

_ANSWER = re.compile(r'"(?:method|op|event|type|channel)":\s*"(?:un)?subscri')
_NUMBERED = re.compile(r'("sequence_num":\s*)(\d+)')


@lru_cache(maxsize=1024)
def _names(symbol: str) -> re.Pattern[str]:
    """A symbol as the exchanges write it: `"BTC-USD"`, `"BTC/USD"`, `"BTCUSD"`."""
    base, quote = symbols.split(symbol)
    return re.compile(f'"{base}[-/]?{quote}"')


def _is_about(frame: str, symbol: str) -> bool:
    """Whether a frame brings data of a symbol: answers to subscriptions name it too, but bring none."""
    return _names(symbol).search(frame) is not None and _ANSWER.search(frame) is None


def corrupted(frame: str, draw: random.Random) -> str:
    """The frame with one digit or letter changed into another, or cut somewhere."""
    places = [place for place, sign in enumerate(frame) if sign.isascii() and sign.isalnum()]
    if not places or draw.random() < _CUT_SHARE:
        return frame[: draw.randrange(len(frame))] if frame else frame
    place = draw.choice(places)
    old = frame[place]
    signs = "0123456789" if old.isdigit() else "abcdefghijklmnopqrstuvwxyz"
    signs = signs.upper() if old.isupper() else signs
    return frame[:place] + draw.choice([sign for sign in signs if sign != old]) + frame[place + 1 :]


class Line:
    """One connection's way out: every frame after its opening goes through here."""

    def __init__(self, faults: Faults, exchange: str) -> None:
        self._faults = faults
        self._exchange = exchange
        self._held: list[str] = []
        self._holder: Running | None = None
        self._withheld = 0

    def passed(self, frames: list[str]) -> list[str]:
        """What really goes out, in order."""
        active = self._faults.active(self._exchange, "silent", *FRAME_KINDS)
        if not (active or self._held or self._withheld):
            return frames
        active.sort(key=lambda one: FRAME_KINDS.index(one.fault.kind) if one.fault.kind in FRAME_KINDS else -1)
        return [*self.release(), *(out for frame in frames for out in self._one(frame, active))]

    def release(self, *, last: bool = False) -> list[str]:
        """A frame that was held back: by a fault that is over, or in any case if it is the `last`."""
        if self._holder is None or (self._holder.state == "active" and not last):
            return []
        held, self._held, self._holder = self._held, [], None
        return held

    def _one(self, frame: str, active: list[Running]) -> list[str]:
        out = [self._renumbered(frame)]
        for one in active:
            symbol, kind = one.fault.symbol, one.fault.kind
            if symbol is not None and not _is_about(frame, symbol):
                continue
            if kind == "silent":
                if symbol is None and not self._is_about_any(frame):
                    continue
                # The exchange never sent it, so its counter must not show a gap.
                self._withheld += _NUMBERED.search(frame) is not None
                one.strike()
                return []
            if kind == "reorder" and self._holder is one:
                out = [*out, *self._held]
                self._held, self._holder = [], None
                continue
            if one.fault.share < 1 and self._faults.draw.random() >= one.fault.share:
                continue
            if kind == "reorder" and self._held:
                continue  # another fault holds a frame already
            one.strike()
            match kind:
                case "drop":
                    return []
                case "corrupt":
                    out = [corrupted(text, self._faults.draw) for text in out]
                case "duplicate":
                    out = out * 2
                case "reorder":
                    self._held, self._holder, out = out, one, []
        return out

    def _is_about_any(self, frame: str) -> bool:
        listed = self._faults.struck_symbols(self._exchange, "silent")
        return any(_is_about(frame, symbol) for symbol in listed)

    def _renumbered(self, frame: str) -> str:
        less = self._withheld
        if not less:
            return frame
        return _NUMBERED.sub(lambda found: f"{found[1]}{int(found[2]) - less}", frame, count=1)


# ---------------------------------------------------------------- books


def merged(event: BookEvent, later: BookEvent) -> BookEvent:
    """Two changes of one book as one."""
    bids, asks = dict(event.bids) | dict(later.bids), dict(event.asks) | dict(later.asks)
    return BookEvent(event.exchange, event.symbol, list(bids.items()), list(asks.items()))


class Crossing:
    """A bid above the best ask of one book, there whatever the market does.

    The market's own book stays as it is: the bid is laid over it only while the exchange looks at it (`laid`), and the
    market's changes become those that a client of the crossed book must be told (`over`).
    """

    def __init__(self, book: SimBook, fault: Running) -> None:
        self.fault = fault
        self._book = book
        self._bid: tuple[int, int] | None = None

    def over(self, event: BookEvent) -> BookEvent:
        """A change of the market, with what it does to the bid above it. An empty change at first."""
        ask = min(self._book.asks)
        new = (ask + self._book.grid, self._book.asks[ask])
        bids = dict(event.bids)
        if self._bid is not None:
            bids.setdefault(self._bid[0], 0)  # a rung of the ladder by now stands in the change with its size
        bids[new[0]] = new[1]
        self._bid = new
        return event._replace(bids=list(bids.items()))

    def closed(self) -> BookEvent:
        """The change that takes the bid away."""
        price = None if self._bid is None else self._bid[0]
        gone = [] if price is None else [(price, self._book.bids.get(price, 0))]
        return BookEvent(self._book.exchange, self._book.symbol, gone, [])

    @contextlib.contextmanager
    def laid(self) -> Iterator[None]:
        """The book is crossed inside."""
        if self._bid is None:
            yield
            return
        (price, size), bids = self._bid, self._book.bids
        before = bids.get(price)
        bids[price] = size
        try:
            yield
        finally:
            if before is None:
                del bids[price]
            else:
                bids[price] = before
