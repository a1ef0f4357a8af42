"""Every message that crosses Kafka. The models here are the definition; `docs/schemas` is generated from them.

Times are integer nanoseconds since the epoch, UTC (`*_ns`). Prices and sizes of books and trades are JSON
numbers with the digits that the exchange sent (the shortest repr of a float keeps them); money that we
computed is a decimal string. Readers ignore unknown fields. A changed meaning is a new `v` or a new `kind`.

The models validate at the edges (decider, client, tools, tests). Ticks are written and read as plain dicts on
the hot path: the `*_value` functions below build exactly what the models accept, and a test holds them to it.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

import msgspec
import orjson
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, TypeAdapter, ValidationError

from shared.errors import UndecodableRecord


def _money_text(value: Decimal) -> str:
    text = str(value)  # half the time of `format`, and the same but for very small and for rounded numbers
    return format(value, "f") if "E" in text else text


Money = Annotated[Decimal, PlainSerializer(_money_text, return_type=str, when_used="json")]
"""A decimal that travels as a string without an exponent."""

Level = tuple[float, float]
"""Price (quote per base) and size (base)."""

Nanoseconds = Annotated[int, Field(ge=0, le=2**63 - 1)]

BookState = Literal["live", "syncing", "stale", "gap", "crossed", "checksum", "disconnected", "halted"]
Phase = Literal["opened", "updated", "closed"]
Route = Literal["direct", "triangular", "synthetic"]
Outcome = Literal["execute", "hold", "reject"]
Limit = Literal["margin", "depth", "notional", "balance", "share"]
Mode = Literal["full", "partial", "cached", "rules_only"]
Role = Literal["sentiment", "risk", "volatility"]
Via = Literal["primary", "fallback", "hedge", "canary", "shadow"]


class Reason(StrEnum):
    """Why a gross crossing is not an opportunity. Closed list: the gate, and the setting that moves it."""

    NO_CROSSING = "no_crossing"  # `arb evaluate` only: the best bid is not above the best ask at all
    HEALTH = "health"  # a book is not live, or its proof of life is older than detector.max_silence_ms
    AGE = "age"  # a book has not changed for longer than detector.max_book_age_ms
    SKEW = "skew"  # the two books' proofs of life differ by more than detector.max_skew_ms
    RATE_MISSING = "rate_missing"  # no exchange quotes the conversion to USD
    RATE_STALE = "rate_stale"  # the conversion's proof of life is older than detector.max_silence_ms
    FEES = "fees"  # fees alone (without conversion) eat the gap
    CONVERSION = "conversion"  # the gap pays its fees, but not the conversion of its quote currencies
    THRESHOLD = "threshold"  # it pays, but less than detector.open_net_bps
    DEPTH = "depth"  # an empty side, or nothing left under the caps
    LOT = "lot"  # less than one common lot step
    MIN_NOTIONAL = "min_notional"  # below the smallest order (value or size) that a leg's exchange takes
    BALANCE = "balance"  # nothing to spend or to sell there (exchanges.<name>.balances)
    PERSISTENCE = "persistence"  # not yet there for detector.persistence_ms
    SANITY = "sanity"  # above detector.sanity_cap_bps: far more often bad data than profit
    IDENTITY = "identity"  # equal ticker, other coin (detector.not_the_same)
    HALTED = "halted"  # exchange or symbol halted


def _plain(value: Any) -> object:
    """What stands in JSON for a part of a message that is no plain value."""
    kind = type(value)
    if kind is Decimal:
        return _money_text(value)
    if kind is Tokens:
        return value.model_dump()  # the one that has an alias
    if hasattr(kind, "__pydantic_fields__"):  # `isinstance` of a model is a call in Python
        return value.__dict__
    raise TypeError(f"a {kind.__name__} has no place in a message")


_DEFAULTS: dict[type["Message"], dict[str, Any]] = {}


class Message(BaseModel):
    """Base of all: immutable, unknown fields ignored, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    def encode(self) -> bytes:
        """JSON on one line, fields in the order of the model: what `model_dump_json` writes, in half of its time."""
        try:
            return orjson.dumps(self.__dict__, default=_plain)
        except orjson.JSONEncodeError:  # an integer of more than 64 bits, say
            return self.model_dump_json().encode()

    @classmethod
    def trusted(cls, **values: Any) -> Self:
        """A message of values that are valid, unchecked: `model_construct` without its search for aliases, which takes
        three to ten times as long. For fields without aliases and factories."""
        defaults = _DEFAULTS.get(cls)
        if defaults is None:  # a value for each field, so that all stand in the model's order
            defaults = {name: field.get_default() for name, field in cls.model_fields.items()}
            _DEFAULTS[cls] = defaults
        made = cls.__new__(cls)
        place = object.__setattr__  # the class is frozen
        place(made, "__dict__", {**defaults, **values})
        place(made, "__pydantic_fields_set__", set(values))
        place(made, "__pydantic_extra__", None)
        place(made, "__pydantic_private__", None)
        return made

    def changed(self, **values: Any) -> Self:
        """This message with other values that are valid, unchecked: `model_copy`, in a tenth of its time."""
        return type(self).trusted(**{**self.__dict__, **values})


class Book(Message):
    """Top levels of one verified book, best first. Losing one makes the reader late, never wrong."""

    kind: Literal["book"] = "book"
    v: Literal[1] = 1
    exchange: str
    symbol: str
    sequence: int
    received_ns: Nanoseconds
    exchange_ns: Nanoseconds | None
    bids: list[Level]
    asks: list[Level]


class Trade(Message):
    """One trade. `taker_side` is None where the exchange's field is not understood."""

    kind: Literal["trade"] = "trade"
    v: Literal[1] = 1
    exchange: str
    symbol: str
    sequence: int
    received_ns: Nanoseconds
    exchange_ns: Nanoseconds | None
    price: float
    size: float
    taker_side: Literal["buy", "sell"] | None
    trade_id: str


class Health(Message):
    """State of one book: on each change, and about every second while live as proof of life.

    `since_ns` is when the state began, `alive_ns` the last proof of life (clock of `received_ns`). `lot_step` and
    `min_size` (base) and `min_notional` (quote) are what the exchange's metadata says of an order; None: nothing.
    """

    kind: Literal["health"] = "health"
    v: Literal[1] = 1
    exchange: str
    symbol: str
    sequence: int
    received_ns: Nanoseconds
    state: BookState
    reason: str | None
    since_ns: Nanoseconds
    alive_ns: Nanoseconds
    lot_step: Money | None = None
    min_size: Money | None = None
    min_notional: Money | None = None


class Rate(Message):
    """Best bid and ask of a pair of two kinds of cash (`USDT-USD`) on one exchange.

    Repeated about every second while live: `received_ns` is then its proof of life. In any other state the
    prices are the last ones known, 0 if there were none, and must not be used.
    """

    kind: Literal["rate"] = "rate"
    v: Literal[1] = 1
    exchange: str
    symbol: str
    sequence: int
    received_ns: Nanoseconds
    exchange_ns: Nanoseconds | None
    bid: float
    ask: float
    state: BookState


class Leg(Message):
    """One side of a gap. `vwap` and `limit` are None where no size is executable, `fee_bps` where no fee is known.

    `limit` is the worst price touched: the limit price of the order. `bids` and `asks` are the top of the book.
    `fee_in_base`: a purchase pays its fee out of the coin that was bought.
    """

    exchange: str
    symbol: str
    vwap: Money | None
    limit: Money | None
    fee_bps: Money | None
    levels: int
    alive_age_ms: int
    book_age_ms: int
    bids: list[Level]
    asks: list[Level]
    fee_in_base: bool = False


class RouteLeg(Leg):
    """One order of a route of three, in the order of the cycle. `size` is in the base of `symbol`."""

    side: Literal["buy", "sell"]
    size: Money


class RateUsed(Message):
    """A conversion that a verdict rests on: `ask` to obtain the quote currency, `bid` to give it away."""

    symbol: str
    exchange: str
    side: Literal["bid", "ask"]
    price: Money
    age_ms: int


class Context(Message):
    """What the books and trades of the last minute look like, computed by us. None where there is no data.

    Attributes:
        volatility_bps_1m: Of the mid prices of the last minute.
        buy_share_1m: Trades of the last minute whose taker bought, by count.
        imbalance_buy, imbalance_sell: (bids - asks) / (bids + asks) by size over the ten best levels, where one buys
            and where one sells.
        ask_depth_usd, bid_depth_usd: Value of the ten best asks where one buys, of the ten best bids where one sells.
    """

    volatility_bps_1m: Money | None = None
    trades_1m: int = 0
    buy_share_1m: Money | None = None
    imbalance_buy: Money | None = None
    imbalance_sell: Money | None = None
    ask_depth_usd: Money | None = None
    bid_depth_usd: Money | None = None


class Opportunity(Message):
    """A gap that pays after depth, fees and conversion. `size` in base; `net_bps` of the cost at that size.

    Attributes:
        buy, sell: The orders that buy and sell `base`.
        legs: All orders in the order of the cycle, where there are more than those two.
        sell_size: Size of the sale where it is not `size`: the buying exchange takes its fee in the coin.
        limited_by: What ended the size: the edge itself, the published depth, or a cap. None: nothing executable.
        integral_bps_s: Net edge over time, from `opened_ns` to the last look (bps times seconds).
        lifetime_ms: From `opened_ns` to the end of the edge; None while it is open.

    A closing message has the numbers of the last look with an edge, and the net edge of the moment.
    """

    kind: Literal["opportunity"] = "opportunity"
    v: Literal[1] = 1
    opportunity_id: str
    phase: Phase
    base: str
    route: Route = "direct"
    buy: Leg
    sell: Leg
    rates: list[RateUsed]
    size: Money
    notional_usd: Money
    profit_usd: Money
    naive_bps: Money
    net_bps: Money
    closed_loop_bps: Money | None
    depth_limited: bool
    opened_ns: Nanoseconds
    detected_ns: Nanoseconds
    expires_ns: Nanoseconds
    peak_net_bps: Money
    close_reason: str | None = None
    context: Context = Context()
    legs: list[RouteLeg] | None = None
    sell_size: Money | None = None
    limited_by: Limit | None = None
    integral_bps_s: Money = Decimal(0)
    lifetime_ms: int | None = None


class Rejection(Message):
    """A gross crossing and why it is not an opportunity; numbers are None where a leg, a rate or a fee fails."""

    kind: Literal["rejection"] = "rejection"
    v: Literal[1] = 1
    rejection_id: str
    phase: Phase
    base: str
    route: Route = "direct"
    buy: Leg
    sell: Leg
    rates: list[RateUsed] = []
    size: Money = Decimal(0)
    naive_bps: Money | None
    net_bps: Money | None
    closed_loop_bps: Money | None = None
    reasons: list[Reason]
    opened_ns: Nanoseconds
    detected_ns: Nanoseconds
    best_net_bps: Money | None
    close_reason: str | None = None
    legs: list[RouteLeg] | None = None
    sell_size: Money | None = None
    limited_by: Limit | None = None


class DelayedEdge(Message):
    """What an opportunity's books were worth `delay_ms` after it was published as opened: could one still have done it?

    Attributes:
        buy_exchange, buy_symbol, sell_exchange, sell_symbol: Its legs, so that a report needs no join.
        net_bps, profit_usd: At the size that was best at that moment; of the top of the books and 0 where nothing was
            executable. None where `missed`.
        executable: Every gate of depth, lot and least order let a size with a profit through.
        missed: Nobody could tell at that moment (a leg not live, no rate or fee, or the owner was gone): never guessed.
        opened_net_bps: Of the opportunity when it opened.
        evaluated_ns: The moment it is about: `detected_ns` of the opening plus the delay.
    """

    kind: Literal["outcome"] = "outcome"
    v: Literal[1] = 1
    opportunity_id: str
    base: str
    route: Route = "direct"
    buy_exchange: str
    buy_symbol: str
    sell_exchange: str
    sell_symbol: str
    delay_ms: int
    net_bps: Money | None
    profit_usd: Money | None
    executable: bool
    missed: bool
    opened_net_bps: Money
    evaluated_ns: Nanoseconds


class RoleAnswer(BaseModel):
    """What every role must answer, exactly. Strict: a model's `"0.9"` or `true` for a number is no answer.

    Attributes:
        p_edge: Probability that both legs still pay after fees at the horizon.
        view: Sentiment's direction; other roles answer "hold".
        veto: Honoured for the risk role only.
        volatility: The volatility role's estimate, 0 calm to 1 wild; other roles answer 0.
        code: "UNSURE" is an abstention.
        pressure: Which side of the books pushes.
        liquidity: Whether the size fits the books.
        manipulation: Risk that what the books show is not meant; the risk role's "high" is no approval.
        note: For people; no decision rests on it.

    The three lists are asked for since the second version of the prompts; None in older records only.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    p_edge: float = Field(ge=0, le=1)
    view: Literal["buy", "sell", "hold"]
    veto: bool
    volatility: float = Field(ge=0, le=1)
    code: Literal["OK", "STALE", "THIN", "EVENT", "FEES", "TRANSFER", "UNSURE"]
    pressure: Literal["buyers", "sellers", "balanced"] | None = None
    liquidity: Literal["ample", "enough", "thin"] | None = None
    manipulation: Literal["low", "medium", "high"] | None = None
    note: str = Field(max_length=120)


class Tokens(Message):
    """Token counts as reported, clamped to what was reserved: providers' numbers are untrusted."""

    input: int = Field(alias="in", default=0)
    cached: int = 0
    out: int = 0

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, serialize_by_alias=True)


class CallRecord(Message):
    """One call of a model, or (`skipped:...`) why none was made.

    Attributes:
        via: Why this model: it plays the role, or stands in for it, or is on trial for it.
        outcome: `ok` and `slow` are answers, everything else is none.
        cost_usd: Settled by the usage reported, or the whole reservation where that is not known.
    """

    provider: str
    model_asked: str
    via: Via = "primary"
    model_reported: str | None = None
    fingerprint: str | None = None
    outcome: str
    http: int | None = None
    request_id: str | None = None
    latency_ms: int = 0
    tokens: Tokens = Tokens()
    cost_usd: Money = Decimal(0)
    answer: RoleAnswer | None = None
    raw_sha256: str | None = None


class RoleRecord(CallRecord):
    """What one role did for one decision: the call that counts, and those (`others`) that failed or lost before it.

    `outcome` other than `ok` and `slow`: it abstained. Costs of `others` are not in `cost_usd`.
    """

    role: Role
    prompt_version: str
    prompt_sha256: str
    others: list[CallRecord] = []


class Score(Message):
    """Score interval in thousandths: worst and best case over what is unknown, and what is needed."""

    low: int
    high: int
    threshold: int


class Rules(Message):
    """What the rules said before (and after) the models were asked."""

    result: Literal["pass", "hold", "reject"]
    codes: list[str]


class Panel(Message):
    """One run of the panel: which version of roles, prompts and weights; time allowed, taken; what it cost."""

    version: str
    deadline_ms: int
    elapsed_ms: int
    cost_usd: Money


class Decision(Message):
    """The answer to one opportunity: what to do, and every step that led there.

    `buy` to `profit_usd`, `detected_ns`, `expires_ns`: of `execute` those of the opportunity's newest state, which the
    last check has passed; else those that were judged.
    `cached_from`: the decision whose panel's answers were used again (`mode` "cached").
    """

    kind: Literal["decision"] = "decision"
    v: Literal[1] = 1
    decision_id: str
    opportunity_id: str
    base: str
    outcome: Outcome
    mode: Mode
    reason: str
    score: Score
    p_edge: float | None
    p_low: float
    rules: Rules
    roles: list[RoleRecord]
    panel: Panel
    buy: Leg
    sell: Leg
    size: Money
    net_bps: Money
    profit_usd: Money
    detected_ns: Nanoseconds
    decided_ns: Nanoseconds
    expires_ns: Nanoseconds
    cached_from: str | None = None


class Question(Message):
    """What one role's models were asked, and what they answered, as text: at most 4 KiB each, keys blacked out.

    Attributes:
        system: The static part: the prompt's file, whose hash is `prompt_sha256` of the role's record.
        user: The numbers.
        raw: Answer by call: first the one of the role's record, then those of `others`. None: no text came.
    """

    role: Role
    system: str
    user: str
    raw: list[str | None]


class Arrival(Message):
    """Roles whose result was taken in at once, `after_ms` the panel had begun."""

    roles: list[Role]
    after_ms: int


class Audit(Message):
    """All that a decision rests on. `arb replay decisions` makes the same decision of it again, without a call.

    Attributes:
        decision: As published.
        opportunity: As it was read and judged.
        newest: Its newest state at the last check, where that was another message.
        admitted_ns: When it was taken up.
        admitted_closed: A newer message had closed it by then; `admitted_expires_ns`: until when the newest one held.
        superseded: A newer opportunity of the same route was waiting.
        killed: The kill switch was on at the last check.
        keys: Whether any model could be asked.
        asked_ns: When the panel began; None: it was not asked.
        arrivals: In order. Roles that are in none were cut off by the deadline or no longer needed.
        late: The panel ended by its deadline.
    """

    kind: Literal["audit"] = "audit"
    v: Literal[1] = 1
    decision: Decision
    opportunity: Opportunity
    newest: Opportunity | None = None
    admitted_ns: Nanoseconds
    admitted_closed: bool = False
    admitted_expires_ns: Nanoseconds
    superseded: bool = False
    killed: bool = False
    keys: bool
    asked_ns: Nanoseconds | None = None
    arrivals: list[Arrival] = []
    late: bool = False
    questions: list[Question] = []


class Shadow(Message):
    """What a candidate on trial answered to a question that another model was asked: never counted."""

    kind: Literal["shadow"] = "shadow"
    v: Literal[1] = 1
    decision_id: str
    opportunity_id: str
    base: str
    call: RoleRecord
    raw: str | None
    asked_ns: Nanoseconds


AnyMessage = Annotated[
    Book | Trade | Health | Rate | Opportunity | Rejection | DelayedEdge | Decision | Audit | Shadow,
    Field(discriminator="kind"),
]
MODELS: dict[str, type[Message]] = {
    "book": Book,
    "trade": Trade,
    "health": Health,
    "rate": Rate,
    "opportunity": Opportunity,
    "rejection": Rejection,
    "outcome": DelayedEdge,
    "decision": Decision,
    "audit": Audit,
    "shadow": Shadow,
}
_ADAPTER: TypeAdapter[AnyMessage] = TypeAdapter(AnyMessage)


def decode(value: bytes | None) -> AnyMessage:
    """The message in a record's value, validated in full.

    Raises:
        UndecodableRecord: not JSON, an unknown kind or version, or a field missing or wrong; names the field.
    """
    if not value:
        raise UndecodableRecord("empty record")
    try:
        return _ADAPTER.validate_json(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UndecodableRecord(f"{where}: {first['msg']}" if where else first["msg"]) from None


# ---------------------------------------------------------------- the hot path's reader


_Whole = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
LAST_NS = 2**62
"""In the year 2116: with what is added to a moment it still has 64 bits."""

_Moment = Annotated[int, msgspec.Meta(ge=0, le=LAST_NS)]


class _Tick(msgspec.Struct, tag_field="kind", gc=False):
    """What every message of a tick topic and of fx-rates begins with."""

    exchange: str
    symbol: str
    sequence: _Whole
    received_ns: _Moment


class BookTick(_Tick, tag="book", gc=False):
    """A `book` as a detector holds it: its sides stay text until something crosses; see `levels`."""

    bids: msgspec.Raw
    asks: msgspec.Raw
    v: Literal[1] = 1


class TradeTick(_Tick, tag="trade", gc=False):
    """A `trade`: what a detector needs of it."""

    taker_side: Literal["buy", "sell"] | None
    v: Literal[1] = 1


class HealthTick(_Tick, tag="health", gc=False):
    """A `health`: what a detector needs of it."""

    state: str
    alive_ns: _Moment
    lot_step: str | None = None
    min_size: str | None = None
    min_notional: str | None = None
    v: Literal[1] = 1


class RateTick(_Tick, tag="rate", gc=False):
    """A `rate`: what a detector needs of it."""

    bid: float
    ask: float
    state: str
    v: Literal[1] = 1


Tick = BookTick | TradeTick | HealthTick | RateTick
TICK_KINDS: dict[type[Tick], str] = {
    kind: str(kind.__struct_config__.tag) for kind in (BookTick, TradeTick, HealthTick, RateTick)
}
_TICK = msgspec.json.Decoder(Tick)


class Decided(msgspec.Struct, tag_field="kind", tag="decision"):
    """What of a `decision` says that there is one: its opportunity, and whether models were asked (`mode`)."""

    opportunity_id: str
    mode: str


_DECIDED = msgspec.json.Decoder(Decided)


def read_decided(value: bytes | None) -> Decided | None:
    """Which opportunity a `decision` is about; None: the value is none. For a tail of hundreds of thousands."""
    try:
        return _DECIDED.decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


_LEVELS = msgspec.json.Decoder(list[Level])


def read_tick(value: bytes | None) -> Tick:
    """The message of a tick topic or of fx-rates, its fields checked, a book's levels but for their JSON not.

    Raises:
        UndecodableRecord: not JSON, another kind or version, or a field missing or wrong; names the field.
    """
    try:
        tick: Tick = _TICK.decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UndecodableRecord(str(error)) from None
    return tick


def levels(side: bytes) -> list[Level]:
    """A side of a `BookTick`.

    Raises:
        UndecodableRecord: not a list of [price, size].
    """
    try:
        return _LEVELS.decode(side)
    except msgspec.DecodeError as error:
        raise UndecodableRecord(str(error)) from None


# ---------------------------------------------------------------- the hot path's writers


def book_value(
    exchange: str,
    symbol: str,
    sequence: int,
    received_ns: int,
    exchange_ns: int | None,
    bids: Sequence[Sequence[float]] | orjson.Fragment,
    asks: Sequence[Sequence[float]] | orjson.Fragment,
) -> bytes:
    """A `book` message; levels best first, or a side's JSON as it stands."""
    return orjson.dumps(
        {
            "kind": "book",
            "v": 1,
            "exchange": exchange,
            "symbol": symbol,
            "sequence": sequence,
            "received_ns": received_ns,
            "exchange_ns": exchange_ns,
            "bids": bids,
            "asks": asks,
        }
    )


def trade_value(
    exchange: str,
    symbol: str,
    sequence: int,
    received_ns: int,
    exchange_ns: int | None,
    price: float,
    size: float,
    taker_side: str | None,
    trade_id: str,
) -> bytes:
    """A `trade` message."""
    return orjson.dumps(
        {
            "kind": "trade",
            "v": 1,
            "exchange": exchange,
            "symbol": symbol,
            "sequence": sequence,
            "received_ns": received_ns,
            "exchange_ns": exchange_ns,
            "price": price,
            "size": size,
            "taker_side": taker_side,
            "trade_id": trade_id,
        }
    )


NO_TERMS: Mapping[str, str | None] = {"lot_step": None, "min_size": None, "min_notional": None}


def health_value(
    exchange: str,
    symbol: str,
    sequence: int,
    received_ns: int,
    state: str,
    reason: str | None,
    since_ns: int,
    alive_ns: int,
    terms: Mapping[str, str | None] = NO_TERMS,
) -> bytes:
    """A `health` message; `terms` are `lot_step`, `min_size` and `min_notional`, in this order."""
    return orjson.dumps(
        {
            "kind": "health",
            "v": 1,
            "exchange": exchange,
            "symbol": symbol,
            "sequence": sequence,
            "received_ns": received_ns,
            "state": state,
            "reason": reason,
            "since_ns": since_ns,
            "alive_ns": alive_ns,
            **terms,
        }
    )


def rate_value(
    exchange: str,
    symbol: str,
    sequence: int,
    received_ns: int,
    exchange_ns: int | None,
    bid: float,
    ask: float,
    state: str,
) -> bytes:
    """A `rate` message."""
    return orjson.dumps(
        {
            "kind": "rate",
            "v": 1,
            "exchange": exchange,
            "symbol": symbol,
            "sequence": sequence,
            "received_ns": received_ns,
            "exchange_ns": exchange_ns,
            "bid": bid,
            "ask": ask,
            "state": state,
        }
    )
