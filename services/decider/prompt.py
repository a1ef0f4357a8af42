"""What the models are asked, and what counts as an answer. Pure; the answer contract is `messages.RoleAnswer`."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import orjson
from pydantic import ValidationError

from shared import symbols
from shared.messages import Leg, Opportunity, Role, RoleAnswer

VERSION = "1"
MAX_ANSWER_BYTES = 8192

_RULES = """
You judge one price gap between two spot exchanges. Both legs are traded at once with prefunded balances; the trade
is market neutral. All numbers were computed from the order books: net_bps is the return after depth, taker fees and
currency conversion. You see no news and no history beyond these numbers.

Answer with one JSON object and nothing else, with exactly these fields:
p_edge: number 0 to 1, probability that both legs still pay after fees one second from now
view: "buy", "sell" or "hold"
veto: true or false
volatility: number 0 (calm) to 1 (wild)
code: "OK", "STALE", "THIN", "EVENT", "FEES", "TRANSFER" or "UNSURE"; "UNSURE" if you cannot judge
note: at most 120 characters

Example: {"p_edge":0.62,"view":"hold","veto":false,"volatility":0.0,"code":"OK","note":"fresh books, thin ask"}
"""

SYSTEM: dict[Role, str] = {
    "sentiment": "Your role is sentiment: does the order flow (buy_share_1m, imbalances) help or hurt this trade? Set "
    'view "buy" if it helps, "sell" if it hurts, "hold" if neither. veto is false, volatility is 0.' + _RULES,
    "risk": "Your role is risk: look for stale or thin books, fees, halted transfers, data too good to be true. Set "
    'veto true if this trade must not be made. view is "hold", volatility is 0.' + _RULES,
    "volatility": "Your role is volatility: how likely is a move against us within one second, from volatility_bps_1m, "
    'trades_1m and the spreads? Set volatility. view is "hold", veto is false.' + _RULES,
}

SHA256: dict[Role, str] = {role: hashlib.sha256(text.encode()).hexdigest() for role, text in SYSTEM.items()}

SCHEMA: dict[str, Any] = {
    "name": "role_answer",
    "strict": True,
    "schema": {
        "type": "object",
        "properties": {
            "p_edge": {"type": "number"},
            "view": {"type": "string", "enum": ["buy", "sell", "hold"]},
            "veto": {"type": "boolean"},
            "volatility": {"type": "number"},
            "code": {"type": "string", "enum": ["OK", "STALE", "THIN", "EVENT", "FEES", "TRANSFER", "UNSURE"]},
            "note": {"type": "string"},
        },
        "required": ["p_edge", "view", "veto", "volatility", "code", "note"],
        "additionalProperties": False,
    },
}


def version_of(role: Role) -> str:
    return f"{role}-{VERSION}"


def allowed(opportunity: Opportunity, exchanges: Iterable[str]) -> bool:
    """Whether every text in the question comes from a closed list: nobody talks to a model through a symbol."""
    known = set(exchanges)
    return all(
        leg.exchange in known and symbols.is_canonical(leg.symbol) and symbols.base_of(leg.symbol) == opportunity.base
        for leg in (opportunity.buy, opportunity.sell)
    )


def question(role: Role, opportunity: Opportunity, now_ns: int) -> str:
    """The user message: one compact JSON object of numbers and closed lists."""
    context = opportunity.context
    numbers = {
        "role": role,
        "base": opportunity.base,
        "buy_exchange": opportunity.buy.exchange,
        "buy_symbol": opportunity.buy.symbol,
        "sell_exchange": opportunity.sell.exchange,
        "sell_symbol": opportunity.sell.symbol,
        "net_bps": float(opportunity.net_bps),
        "naive_bps": float(opportunity.naive_bps),
        "closed_loop_bps": None if opportunity.closed_loop_bps is None else float(opportunity.closed_loop_bps),
        "profit_usd": round(float(opportunity.profit_usd), 2),
        "notional_usd": round(float(opportunity.notional_usd), 2),
        "depth_limited": opportunity.depth_limited,
        "opened_for_ms": max(0, (now_ns - opportunity.opened_ns) // 1_000_000),
        **_leg("buy", opportunity.buy),
        **_leg("sell", opportunity.sell),
        "volatility_bps_1m": None if context.volatility_bps_1m is None else float(context.volatility_bps_1m),
        "trades_1m": context.trades_1m,
        "buy_share_1m": None if context.buy_share_1m is None else float(context.buy_share_1m),
        "imbalance_buy": None if context.imbalance_buy is None else float(context.imbalance_buy),
        "imbalance_sell": None if context.imbalance_sell is None else float(context.imbalance_sell),
    }
    return orjson.dumps(numbers).decode()


def _leg(name: str, leg: Leg) -> dict[str, float | int | None]:
    bid, ask = (leg.bids[0] if leg.bids else None), (leg.asks[0] if leg.asks else None)
    spread = None
    if bid is not None and ask is not None:
        spread = round((ask[0] - bid[0]) / (ask[0] + bid[0]) * 20_000, 3)
    return {
        f"{name}_age_ms": leg.alive_age_ms,
        f"{name}_book_age_ms": leg.book_age_ms,
        f"{name}_spread_bps": spread,
        f"{name}_levels": leg.levels,
        f"{name}_fee_bps": None if leg.fee_bps is None else float(leg.fee_bps),
    }


class NoAnswer(Exception):
    """The text is no answer; the words say why, without repeating the text."""


def parse_answer(content: object) -> RoleAnswer:
    """An answer in the model's words.

    Raises:
        NoAnswer: blank, too long, not JSON, a field twice, missing, unknown or of another type.
    """
    if not isinstance(content, str):
        raise NoAnswer("no text")
    if len(content.encode()) > MAX_ANSWER_BYTES:
        raise NoAnswer("too long")
    text = content.strip()
    if text.startswith("```") and text.endswith("```") and len(text) >= 6:
        text = text[3:-3].removeprefix("json").strip()
    if not text:
        raise NoAnswer("blank")
    try:
        json.loads(text, object_pairs_hook=_no_twins, parse_constant=_no_constants)
        return RoleAnswer.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise NoAnswer(f"{'.'.join(str(part) for part in first['loc'])}: {first['type']}") from None
    except (ValueError, RecursionError) as error:
        raise NoAnswer(f"not JSON: {type(error).__name__}") from None


def _no_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field stands twice")
    return found


def _no_constants(name: str) -> None:
    raise ValueError(f"{name} is no number")
