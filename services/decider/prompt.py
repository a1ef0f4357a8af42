"""What the models are asked, and what counts as an answer. Pure; the answer contract is `messages.RoleAnswer`.

The static texts are files, `prompts/<role>-<n>.txt`. A published one is never edited: decisions carry its hash, which
`prompts/SHA256SUMS` pins. To change a prompt, add the next version there and name it in `roles.<role>.prompt`.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import orjson
from pydantic import ValidationError

from shared.errors import SettingsError
from shared.messages import Leg, Limit, Opportunity, Role, RoleAnswer, Route, RouteLeg
from shared.settings import ExchangeSettings

FOLDER = Path(__file__).with_name("prompts")
LEDGER = "SHA256SUMS"
MAX_ANSWER_BYTES = 8192

MOST = 1e15
"""No number of ours that means something is larger; a larger one is asked as null, or cut if it is a count."""


def _one_of(*words: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(words)}


_FIELDS: dict[str, dict[str, Any]] = {
    "p_edge": {"type": "number"},
    "view": _one_of("buy", "sell", "hold"),
    "veto": {"type": "boolean"},
    "volatility": {"type": "number"},
    "code": _one_of("OK", "STALE", "THIN", "EVENT", "FEES", "TRANSFER", "UNSURE"),
    "pressure": _one_of("buyers", "sellers", "balanced"),
    "liquidity": _one_of("ample", "enough", "thin"),
    "manipulation": _one_of("low", "medium", "high"),
    "note": {"type": "string"},
}

SCHEMA: dict[str, Any] = {
    "name": "role_answer",
    "strict": True,
    "schema": {
        "type": "object",
        "properties": _FIELDS,
        "required": list(_FIELDS),
        "additionalProperties": False,
    },
}
"""The answer contract as OpenAI's `json_schema` wants it. Ranges and lengths are ours to check: not every provider
takes them."""


# ---------------------------------------------------------------- the static text


@dataclass(frozen=True, slots=True)
class Prompt:
    """A published static text: `name` such as "risk-2", and the SHA-256 of the file's bytes."""

    name: str
    role: Role
    text: str
    sha256: str


def published(folder: Path = FOLDER) -> dict[str, Prompt]:
    """Every prompt that ever was, by name; also those whose answers are not read any more.

    Raises:
        SettingsError: a file is gone or is not what the ledger says, or the ledger cannot be read.
    """
    found: dict[str, Prompt] = {}
    try:
        for line in (folder / LEDGER).read_text().splitlines():
            pinned, _, file = line.partition("  ")
            name = file.removesuffix(".txt")
            role = _role_of(name)
            if role is None:
                raise SettingsError(f"prompts/{LEDGER}: {line!r} is not of the form HASH  ROLE-NUMBER.txt")
            content = (folder / file).read_bytes()
            if hashlib.sha256(content).hexdigest() != pinned:
                raise SettingsError(
                    f"prompts/{file} is not what was published (prompts/{LEDGER}): undo the change and make it in "
                    "a new version instead"
                )
            found[name] = Prompt(name, role, content.decode(), pinned)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"prompts: {error}") from None
    return found


def load(name: str, folder: Path = FOLDER) -> Prompt:
    """A prompt by its name, such as "risk-2".

    Raises:
        SettingsError: there is none, it is not in the ledger, it was edited after it was published, or it does not ask
            for all that an answer must have; says which ones can be used.
    """
    there = published(folder)
    usable = ", ".join(sorted(one.name for one in there.values() if not _not_asked_for(one.text)))
    if name in there:
        missing = _not_asked_for(there[name].text)
        if missing:
            words = ", ".join(missing)
            raise SettingsError(
                f"prompt {name} does not ask for {words}: it is only kept for records; usable: {usable}"
            )
        return there[name]
    file = folder / f"{name}.txt"
    if _role_of(name) is not None and file.exists():
        line = f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}"
        raise SettingsError(f"prompt {name} is not published: add this line to prompts/{LEDGER}: {line}")
    raise SettingsError(f"no prompt {name!r} in prompts/; there are {usable}")


def require_role(found: Prompt, role: Role, name: str) -> None:
    """Raises SettingsError: the prompt that the setting `roles.<role>.prompt` names is another role's."""
    if found.role != role:
        raise SettingsError(f"roles.{role}.prompt: {name} is a prompt of the role {found.role}")


def _role_of(name: str) -> Role | None:
    if re.fullmatch(r"[a-z]+-[0-9]+", name) is None:
        return None
    return next((role for role in get_args(Role) if name.startswith(f"{role}-")), None)


def _not_asked_for(text: str) -> list[str]:
    """Fields of an answer that a prompt does not name with all their words; "json", without which DeepSeek refuses."""
    missing = [
        name
        for name, field in _FIELDS.items()
        if f"\n{name}: " not in text or not all(f'"{word}"' in text for word in field.get("enum", ()))
    ]
    return missing if "json" in text.lower() else [*missing, "json"]


# ---------------------------------------------------------------- the question


def allowed(opportunity: Opportunity, exchanges: Mapping[str, ExchangeSettings]) -> bool:
    """Whether every text in the question comes from a closed list: nobody talks to a model through a symbol.

    Exchanges and symbols must be those of the settings, and the orders those of the route.
    """
    orders = opportunity.legs or ()
    legs: tuple[Leg, ...] = (opportunity.buy, opportunity.sell, *orders)
    listed = all(leg.exchange in exchanges and leg.symbol in exchanges[leg.exchange].symbols for leg in legs)
    bases = {leg.symbol.partition("-")[0] for leg in legs[:2]}
    shaped = not orders if opportunity.route == "direct" else len(orders) == 3 and _bridge(opportunity) is not None
    return (
        listed
        and bases == {opportunity.base}
        and opportunity.route in get_args(Route)
        and (opportunity.limited_by is None or opportunity.limited_by in get_args(Limit))
        and shaped
    )


def question(role: Role, opportunity: Opportunity, now_ns: int) -> str:
    """The user message: one compact JSON object of numbers and closed lists, below 2 KiB; the static text explains it.

    Ask `allowed` first: exchanges and symbols go in as they stand.
    """
    return questions((role,), opportunity, now_ns)[role]


def questions(roles: Iterable[Role], opportunity: Opportunity, now_ns: int) -> dict[Role, str]:
    """The `question` of each role: they differ in the role's name only."""
    context, bridge = opportunity.context, _bridge(opportunity)
    asked: dict[str, Any] = {
        "route": opportunity.route,
        "orders": 2 if bridge is None else 3,
        "base": opportunity.base,
        "net_bps": _number(opportunity.net_bps, 2),
        "naive_bps": _number(opportunity.naive_bps, 2),
        "closed_loop_bps": _number(opportunity.closed_loop_bps, 2),
        "peak_net_bps": _number(opportunity.peak_net_bps, 2),
        "notional_usd": _number(opportunity.notional_usd, 2),
        "profit_usd": _number(opportunity.profit_usd, 2),
        "limited_by": opportunity.limited_by,
        "open_ms": _count((now_ns - opportunity.opened_ns) // 1_000_000),
        "seen_ms": _count((now_ns - opportunity.detected_ns) // 1_000_000),
        "volatility_bps_1m": _number(context.volatility_bps_1m, 2),
        "trades_1m": _count(context.trades_1m),
        "buy_share_1m": _number(context.buy_share_1m, 2),
        "buy": _order(opportunity.buy) | _depth(context.imbalance_buy, context.ask_depth_usd, opportunity.notional_usd),
        "sell": _order(opportunity.sell)
        | _depth(context.imbalance_sell, context.bid_depth_usd, opportunity.notional_usd),
    }
    if bridge is not None:
        asked["bridge"] = {"side": bridge.side, **_order(bridge)}
    rest = orjson.dumps(asked).decode()[1:]
    return {role: f'{{"role":"{role}",{rest}' for role in roles}


def _bridge(opportunity: Opportunity) -> RouteLeg | None:
    """The order of a cycle that is neither its purchase nor its sale; None if there is not exactly one."""
    coin = [(leg.exchange, leg.symbol) for leg in (opportunity.buy, opportunity.sell)]
    others = [leg for leg in opportunity.legs or () if (leg.exchange, leg.symbol) not in coin]
    return others[0] if len(others) == 1 and others[0].side in ("buy", "sell") else None


def _order(leg: Leg) -> dict[str, str | float | int | None]:
    bid, ask = (leg.bids[0][0] if leg.bids else math.nan), (leg.asks[0][0] if leg.asks else math.nan)
    return {
        "exchange": leg.exchange,
        "symbol": leg.symbol,
        "fee_bps": _number(leg.fee_bps, 2),
        "age_ms": _count(leg.alive_age_ms),
        "book_age_ms": _count(leg.book_age_ms),
        "spread_bps": _number((ask - bid) / (ask + bid) * 20_000, 2) if ask + bid > 0 else None,
        "levels": _count(leg.levels),
    }


def _depth(imbalance: Decimal | None, depth_usd: Decimal | None, notional_usd: Decimal) -> dict[str, float | None]:
    depth, notional = _number(depth_usd, 0), _number(notional_usd, 2)
    fits = None if depth is None or not notional else _number(depth / notional, 1)
    return {"imbalance": _number(imbalance, 2), "depth_usd": depth, "fits": fits}


def _number(value: Decimal | float | None, digits: int) -> float | None:
    """As a float with so many decimals; None for what is not known or no number that means something."""
    if value is None or not abs(found := float(value)) <= MOST:
        return None
    return round(found, digits) + 0.0  # -0.0 becomes 0.0


def _count(value: int) -> int:
    return min(max(value, 0), int(MOST))


# ---------------------------------------------------------------- the answer


class NoAnswer(Exception):
    """The text is no answer; the words say why, without repeating the text."""


def parse_answer(content: object) -> RoleAnswer:
    """An answer in the model's words. All fields are required, also those that older records may lack.

    Raises:
        NoAnswer: blank, too long, not JSON, a field twice, missing, unknown or of another type.
    """
    if not isinstance(content, str):
        raise NoAnswer("no text")
    try:
        size = len(content.encode())
    except UnicodeEncodeError:
        raise NoAnswer("not text: half a surrogate pair") from None
    if size > MAX_ANSWER_BYTES:
        raise NoAnswer("too long")
    text = content.strip()
    if text.startswith("```") and text.endswith("```") and len(text) >= 6:
        text = text[3:-3].removeprefix("json").strip()
    if not text:
        raise NoAnswer("blank")
    try:
        _JSON.decode(text)
        answer = RoleAnswer.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = first["loc"][0] if first["loc"] else "answer"
        if where not in (*_FIELDS, "answer"):  # the name of a field that we did not ask for is the model's text too
            where = "a field not asked for"
        raise NoAnswer(f"{where}: {first['type']}") from None
    except (ValueError, RecursionError) as error:
        raise NoAnswer(f"not JSON: {type(error).__name__}") from None
    for name in _FIELDS:
        if getattr(answer, name) is None:
            raise NoAnswer(f"{name}: missing")
    return answer


def _no_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field stands twice")
    return found


def _no_constants(name: str) -> None:
    raise ValueError(f"{name} is no number")


_JSON = json.JSONDecoder(object_pairs_hook=_no_twins, parse_constant=_no_constants)
