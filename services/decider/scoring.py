"""From the panel's answers to a verdict: a score interval in integer thousandths. Pure.

A role that has not answered yet spans its worst to its best case; one that has abstained counts its worst case on
both ends. So a late, broken or missing model can only make a verdict more careful, never open the gate.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple, get_args

from shared.messages import Outcome, Role, RoleAnswer

ROLES: tuple[Role, ...] = get_args(Role)

PENDING = "pending"
ABSTAINED = "abstained"
Vote = RoleAnswer | str
"""An answer, PENDING or ABSTAINED."""

RANGES: dict[Role, tuple[int, int]] = {"sentiment": (-300, 500), "risk": (0, 300), "volatility": (0, 200)}
"""Worst and best contribution of each role."""

WEIGHTS_VERSION = "1"
"""Counts up whenever a contribution below changes: it is part of the panel's version."""

CONFIDENT = 0.70
AFFIRMATIVE = 0.50
CALM = 0.40


class Why(StrEnum):
    """What decided. Closed list."""

    SCORE = "score"
    VETO = "veto"
    RISK = "risk"
    RISK_ABSENT = "risk_absent"
    P_LOW = "p_low"
    DEADLINE = "deadline"


class Verdict(NamedTuple):
    """An outcome and what decided it. `execute` still has to pass the final gate."""

    outcome: Outcome
    why: Why


def contribution(role: Role, answer: RoleAnswer) -> int:
    """What an answer adds to the score."""
    if role == "sentiment":
        view = {"buy": 300, "sell": -300, "hold": 0}[answer.view]
        return view + (200 if answer.p_edge > CONFIDENT else 0)
    if role == "risk":
        return 300 if not answer.veto and answer.p_edge >= AFFIRMATIVE else 0
    return 200 if answer.volatility < CALM else 0


def interval(votes: Mapping[Role, Vote]) -> tuple[int, int]:
    """Worst and best score that is still possible."""
    low = high = 0
    for role in ROLES:
        vote = votes[role]
        worst, best = RANGES[role]
        if isinstance(vote, RoleAnswer):
            worst = best = contribution(role, vote)
        elif vote == ABSTAINED:
            best = worst
        low, high = low + worst, high + best
    return low, high


def pool(votes: Mapping[Role, Vote]) -> tuple[float | None, float]:
    """Mean probability of those who answered (None if nobody did), and with all others counted as 0.

    The gate uses the second: dropping a pessimist raises the first.
    """
    given = [vote.p_edge for vote in votes.values() if isinstance(vote, RoleAnswer)]
    p_edge = round(sum(given) / len(given), 4) if given else None
    return p_edge, round(sum(given) / len(ROLES), 4)


def verdict(
    votes: Mapping[Role, Vote], threshold: int, p_min: float, *, calibrated: bool, deadline: bool
) -> Verdict | None:
    """What the votes so far decide; None while it is worth waiting.

    Args:
        threshold: Thousandths needed.
        p_min: Least pooled probability, asked for only once the probabilities are `calibrated` by outcomes.
        deadline: Nothing more will come.
    """
    risk = votes["risk"]
    low, high = interval(votes)
    if isinstance(risk, RoleAnswer):
        if risk.veto:
            return Verdict("reject", Why.VETO)
        if risk.p_edge < AFFIRMATIVE:
            return Verdict("hold", Why.RISK)
    if high < threshold:
        return Verdict("hold", Why.RISK_ABSENT if risk == ABSTAINED else Why.SCORE)
    if risk == ABSTAINED:
        return Verdict("hold", Why.RISK_ABSENT)
    pending = any(vote == PENDING for vote in votes.values())
    if isinstance(risk, RoleAnswer) and low >= threshold:
        if not calibrated or pool(votes)[1] >= p_min:
            return Verdict("execute", Why.SCORE)
        if not pending:
            return Verdict("hold", Why.P_LOW)
    if deadline or not pending:
        return Verdict("hold", Why.DEADLINE if pending else Why.SCORE)
    return None
