"""A scorecard in sentences and as JSON. Pure."""

from decimal import Decimal
from typing import Any

from services.cli.report import USD_STEP, counted, delay, money, percent
from services.cli.scorecard.forecasts import Estimate
from services.cli.scorecard.sums import Card, Gain, Scorecard
from shared.weights import MIN_OUTCOMES


def headline(found: Scorecard, span: str) -> str:
    """The answer. `span` is such as "in the last 7 d"."""
    panel, at = found.panel, delay(found.horizon_ms)
    decisions = f"{counted(panel.decisions, 'decision')} {span}"
    gain = panel.over_rule
    match found.reason:
        case "none":
            return f"nothing to score: no decision {span}"
        case "no_outcomes":
            return (
                f"nothing to score: {decisions}, but no outcome {at} after the opening of any of them (does a detector "
                "run, with this delay in detector.outcome_delays_ms?)"
            )
        case "unseen":
            return f"nothing to score: {decisions}, but nobody saw what any was worth after {at}: all outcomes missed"
        case "not_asked":
            return f"nothing to score: {decisions}, {panel.known:,} with a known outcome, but no model was asked in any"
        case "few":
            n = 0 if gain is None else gain.n
            return f"not enough outcomes: {n:,} of {MIN_OUTCOMES} needed, {MIN_OUTCOMES - n:,} more; {decisions}"
    assert gain is not None
    said = f"{_gained(gain)} over {counted(gain.n, 'decision')} {span}"
    match found.reason:
        case "better":
            return f"the models added value: {said}"
        case "worse":
            return f"the models cost more than they brought: {said}"
    return f"the models added nothing that can be told from chance: {said}"


def _gained(gain: Gain) -> str:
    return f"{usd(gain.mean_usd.value)} USD a decision ({usd_interval(gain.mean_usd)})"


def beside(found: Scorecard) -> list[str]:
    """What the panel brought beside the rule, and beside always saying yes."""
    lines = []
    at = delay(found.horizon_ms)
    for name, gain in (
        ("executing all that the models were asked about (the rule)", found.panel.over_rule),
        ("executing every opportunity (always yes)", found.panel.over_yes),
    ):
        if gain is not None:
            lines.append(
                f"Beside {name}: {signed(gain.total_usd)} USD over {counted(gain.n, 'decision')}, {_gained(gain)}. The "
                f"panel's own made {signed(gain.panel_usd)}, the other way {signed(gain.other_usd)}, the models cost "
                f"{money(gain.cost_usd)}."
            )
    if lines:
        lines.append(
            f"Assumed: filled {at} after the opening at the books of that moment; what was gone by then is a loss of "
            "the net edge at the top of the books on the decision's own size, a lower bound of the real one."
        )
    return lines


def apart(found: Scorecard, unreadable: int) -> str | None:
    """What was counted apart."""
    panel, parts = found.panel, []
    if panel.missed:
        parts.append(f"{counted(panel.missed, 'decision')} whose outcome nobody saw: in no score")
    if panel.without:
        parts.append(f"{counted(panel.without, 'decision')} without an outcome at {delay(found.horizon_ms)}")
    if panel.cached:
        parts.append(f"{counted(panel.cached, 'decision')} made of earlier answers, which count once")
    if panel.unpriced:
        parts.append(f"{counted(panel.unpriced, 'decision')} that cannot be priced: in no sum of USD")
    if panel.late:
        parts.append(f"{counted(panel.late, 'decision')} made after the horizon (a longer --horizon-ms is fairer)")
    if panel.duplicates:
        parts.append(f"{counted(panel.duplicates, 'duplicate')} counted once")
    if unreadable:
        parts.append(f"{counted(unreadable, 'record')} could not be read")
    return "; ".join(parts) + "." if parts else None


def name_of(card: Card) -> str:
    """`risk gemini-x risk-2 (on trial)`."""
    return f"{card.role} {card.model} {card.prompt_version}{' (on trial)' if card.on_trial else ''}"


def verdict(card: Card) -> str:
    """What its answers have been worth, in one sentence."""
    if card.bss is None:
        return f"{counted(card.answers, 'answer')}, no outcome of any is known"
    if not card.followed:
        return f"not enough outcomes: {card.n:,} of {MIN_OUTCOMES} needed, {MIN_OUTCOMES - card.n:,} more"
    match card.bss.sign:
        case 1:
            return "knows more than the base rate"
        case -1:
            return "worse than always saying the base rate"
    return "cannot be told from always saying the base rate"


def reasons(card: Card) -> str:
    """`late 3, invalid 1`."""
    return ", ".join(f"{why} {count:,}" for why, count in card.abstained) or "-"


def usd(value: float) -> str:
    return signed(Decimal(repr(round(value, 6))))


def signed(value: Decimal) -> str:
    """With its sign: `+0.42`."""
    return ("+" if value > 0 else "-" if value < 0 else "") + money(abs(value))


def usd_interval(one: Estimate) -> str:
    """`95 %: -0.10 to +0.94`, or that there is none."""
    if one.low is None or one.high is None:
        return "no interval: all in one minute"
    return f"95 %: {usd(one.low)} to {usd(one.high)}"


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def scored(one: Estimate | None, digits: int = 3) -> str:
    """`0.193 (0.181-0.213)`; `(-0.02 to 0.10)` where one end is below 0."""
    if one is None:
        return "-"
    if one.low is None or one.high is None:
        return f"{one.value:.{digits}f}"
    joined = " to " if one.low < 0 else "-"
    return f"{one.value:.{digits}f} ({one.low:.{digits}f}{joined}{one.high:.{digits}f})"


def share(value: float | None) -> str:
    return "-" if value is None else percent(value)


# ---------------------------------------------------------------- as JSON


def as_value(found: Scorecard, unreadable: int, span: str) -> dict[str, Any]:
    """A scorecard as JSON; USD are decimal strings, as in the messages."""
    panel = found.panel
    return {
        "good": found.good,
        "reason": found.reason,
        "headline": headline(found, span),
        "horizon_ms": found.horizon_ms,
        "needed": MIN_OUTCOMES,
        "first_ns": found.first_ns,
        "last_ns": found.last_ns,
        "unreadable": unreadable,
        "models": [_card_value(card) for card in found.cards],
        "panel": {
            "decisions": panel.decisions,
            "duplicates": panel.duplicates,
            "cached": panel.cached,
            "known": panel.known,
            "missed": panel.missed,
            "without": panel.without,
            "asked": panel.asked,
            "late": panel.late,
            "unpriced": panel.unpriced,
            "cost_usd": _usd(panel.cost_usd),
            "outcomes": {fate.outcome: {"n": fate.n, "known": fate.known, "paid": fate.paid} for fate in panel.fates},
            "over_rule": _gain_value(panel.over_rule),
            "over_yes": _gain_value(panel.over_yes),
            "pool": None
            if panel.pool is None
            else {"n": panel.pool.n, "brier": _estimate(panel.pool.brier), "bss": _estimate(panel.pool.bss)},
        },
    }


def _usd(value: Decimal | None) -> str | None:
    return None if value is None else format(value.quantize(USD_STEP), "f")


def _estimate(one: Estimate | None) -> dict[str, float | None] | None:
    return None if one is None else one._asdict()


def _gain_value(gain: Gain | None) -> dict[str, Any] | None:
    if gain is None:
        return None
    low, high = (None if end is None else _usd(Decimal(repr(end))) for end in gain.mean_usd[1:])
    return {
        "n": gain.n,
        "total_usd": _usd(gain.total_usd),
        "panel_usd": _usd(gain.panel_usd),
        "other_usd": _usd(gain.other_usd),
        "cost_usd": _usd(gain.cost_usd),
        "mean_usd": _usd(Decimal(repr(gain.mean_usd.value))),
        "low_usd": low,
        "high_usd": high,
    }


def _card_value(card: Card) -> dict[str, Any]:
    return {
        "role": card.role,
        "model": card.model,
        "prompt_version": card.prompt_version,
        "on_trial": card.on_trial,
        "via": dict(card.vias),
        "verdict": verdict(card),
        "calls": card.calls,
        "needed": card.needed,
        "answers": card.answers,
        "valid": card.valid,
        "abstained": dict(card.abstained),
        "p50_ms": card.p50_ms,
        "p95_ms": card.p95_ms,
        "cost_usd": _usd(card.cost_usd),
        "cost_per_answer_usd": _usd(card.cost_per_answer),
        "cost_per_useful_usd": _usd(card.cost_per_useful),
        "n": card.n,
        "useful": card.useful,
        "base_rate": card.base_rate,
        "mean_p": card.mean_p,
        "brier": _estimate(card.brier),
        "bss": _estimate(card.bss),
        "calibration_error": card.ece,
        "calibration_error_by_chance": card.chance,
        "weight": card.weight,
        "followed": card.followed,
        "bins": [
            {"n": one.n, "mean_p": one.mean_p, "share": one.share, "low": one.interval[0], "high": one.interval[1]}
            for one in card.bins
        ],
        "calibration": [list(point) for point in card.calibration],
    }
