"""From the panel's answers to a verdict: a score interval in integer thousandths, and a pooled probability. Pure.

A role that has not answered yet spans its worst to its best case; one that has abstained counts its worst case on
both ends. So a late, broken or missing model can only make a verdict more careful, never open the gate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, get_args

from shared.messages import Outcome, Role, RoleAnswer
from shared.settings import Settings
from shared.weights import MIN_OUTCOMES, Entry, Weights

ROLES: tuple[Role, ...] = get_args(Role)

PENDING = "pending"
ABSTAINED = "abstained"


class Answered(NamedTuple):
    """An answer, and whose it is: weights and calibration belong to a model with a prompt."""

    answer: RoleAnswer
    model: str


Vote = Answered | str
"""An answer, PENDING or ABSTAINED."""

RANGES: dict[Role, tuple[int, int]] = {"sentiment": (-300, 500), "risk": (0, 300), "volatility": (0, 200)}
"""Worst and best contribution of each role."""

WEIGHTS_VERSION = "2"
"""Counts up whenever a contribution below changes: it is part of the panel's version."""

CONFIDENT = 0.70
AFFIRMATIVE = 0.50
CALM = 0.40


class Why(StrEnum):
    """What decided. Closed list."""

    SCORE = "score"  # the score is above the threshold, or cannot reach it
    VETO = "veto"  # the risk role vetoed
    RISK = "risk"  # the risk role does not approve: p_edge below a half, or manipulation "high"
    RISK_ABSENT = "risk_absent"  # the risk role abstained
    P_LOW = "p_low"  # the pooled probability is below decider.p_edge_min
    DEADLINE = "deadline"  # time was over before it was certain


class Verdict(NamedTuple):
    """An outcome and what decided it. `execute` still has to pass the final gate."""

    outcome: Outcome
    why: Why


@dataclass(frozen=True)
class Pooling:
    """How probabilities are pooled.

    Attributes:
        prior, prior_weight: The pool's own opinion, and its weight beside the roles'.
        unknown: Weight of a model of the role of which there are not enough outcomes: as configured, but no more than
            the role's own model has earned.
        entries: What outcomes say of a (role, model), where there are enough.
        most: The largest weight that any model of the role has: what the role counts in the gate, present or absent.
        calibrated: Every role's own model is calibrated by outcomes: only then is the probability a gate.
    """

    prior: float
    prior_weight: float
    unknown: Mapping[Role, float]
    entries: Mapping[tuple[Role, str], Entry]
    most: Mapping[Role, float]
    calibrated: bool

    @classmethod
    def of(cls, settings: Settings, weights: Weights | None) -> "Pooling":
        """By the settings and, where outcomes are enough, by the weights file."""
        entries: dict[tuple[Role, str], Entry] = {}
        unknown: dict[Role, float] = {}
        most: dict[Role, float] = {}
        for role in ROLES:
            chosen = settings.roles.get(role)
            if chosen is None:
                unknown[role] = most[role] = 0.0
                continue
            for _, choice in chosen.choices():
                entry = None if weights is None else weights.of(role, choice.model, chosen.prompt)
                if entry is not None and entry.n >= MIN_OUTCOMES:
                    entries[role, choice.model] = entry
            learned = {model: entry.weight for (named, model), entry in entries.items() if named == role}
            unknown[role] = min(chosen.weight, learned.get(chosen.model, chosen.weight))
            most[role] = max(unknown[role], *learned.values()) if learned else unknown[role]
        return cls(
            settings.decider.prior,
            settings.decider.prior_weight,
            unknown,
            entries,
            most,
            all((role, chosen.model) in entries for role, chosen in settings.roles.items()) and bool(entries),
        )

    def voice(self, role: Role, vote: Answered) -> tuple[float, float]:
        """Weight and calibrated probability of an answer."""
        entry = self.entries.get((role, vote.model))
        if entry is None:
            return self.unknown[role], vote.answer.p_edge
        return entry.weight, entry.calibrated(vote.answer.p_edge)

    def pool(self, votes: Mapping[Role, Vote]) -> tuple[float | None, float]:
        """Weighted mean of those who answered (None if nobody did), and with all others counted as 0.

        The gate uses the second. In it an absent role weighs as much as its weightiest model, so that taking an answer
        away never raises it: dropping a pessimist raises the first.
        """
        weight = most = self.prior_weight
        total = self.prior_weight * self.prior
        answered = False
        for role in ROLES:
            vote = votes[role]
            most += self.most[role]
            if isinstance(vote, Answered):
                answered = True
                voice, p = self.voice(role, vote)
                weight += voice
                total += voice * p
        p_edge = round(total / weight, 4) if answered and weight > 0 else None
        return p_edge, round(total / most, 4) if most > 0 else 0.0


def affirmative(answer: RoleAnswer) -> bool:
    """Whether the risk role approves."""
    return not answer.veto and answer.p_edge >= AFFIRMATIVE and answer.manipulation != "high"


def contribution(role: Role, answer: RoleAnswer) -> int:
    """What an answer adds to the score."""
    if role == "sentiment":
        view = {"buy": 300, "sell": -300, "hold": 0}[answer.view]
        return view + (200 if answer.p_edge > CONFIDENT else 0)
    if role == "risk":
        return 300 if affirmative(answer) else 0
    return 200 if answer.volatility < CALM else 0


def interval(votes: Mapping[Role, Vote]) -> tuple[int, int]:
    """Worst and best score that is still possible."""
    low = high = 0
    for role in ROLES:
        vote = votes[role]
        worst, best = RANGES[role]
        if isinstance(vote, Answered):
            worst = best = contribution(role, vote.answer)
        elif vote == ABSTAINED:
            best = worst
        low, high = low + worst, high + best
    return low, high


def verdict(
    votes: Mapping[Role, Vote], threshold: int, p_min: float, pooling: Pooling, *, deadline: bool
) -> Verdict | None:
    """What the votes so far decide; None while it is worth waiting.

    Args:
        threshold: Thousandths needed.
        p_min: Least pooled probability, asked for only once `pooling` is calibrated by outcomes.
        deadline: Nothing more will come.
    """
    risk = votes["risk"]
    low, high = interval(votes)
    if isinstance(risk, Answered):
        if risk.answer.veto:
            return Verdict("reject", Why.VETO)
        if not affirmative(risk.answer):
            return Verdict("hold", Why.RISK)
    if high < threshold:
        return Verdict("hold", Why.RISK_ABSENT if risk == ABSTAINED else Why.SCORE)
    if risk == ABSTAINED:
        return Verdict("hold", Why.RISK_ABSENT)
    pending = any(vote == PENDING for vote in votes.values())
    if isinstance(risk, Answered) and low >= threshold:
        if not pooling.calibrated or pooling.pool(votes)[1] >= p_min:
            return Verdict("execute", Why.SCORE)
        if not pending:
            return Verdict("hold", Why.P_LOW)
    if deadline or not pending:
        return Verdict("hold", Why.DEADLINE if pending else Why.SCORE)
    return None
