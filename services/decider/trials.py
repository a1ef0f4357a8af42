"""Candidates for a role: how they do beside the model that they would replace, and when one is rolled back. Pure.

Forward it goes only by the operator (`roles.<role>.candidate.stage`), backward by itself: one that fails, is slow,
answers less often than the model in place, or is worse calibrated is not asked again until someone forgives it
(`arb budget --forgive ROLE`). The state file keeps that, so that a restart does not bring it back.
"""

import math
from collections import deque
from collections.abc import Callable, Collection
from typing import NamedTuple

from shared.messages import Role, Via
from shared.settings import Candidate, ModelChoice, Settings
from shared.weights import MIN_OUTCOMES, Weights

MOST = 500
"""Calls remembered of each model; as many does a candidate need to be called ready for the next stage."""

READY_VALID = 0.005

VALID = frozenset(("ok", "slow", "unsure"))
NEUTRAL = frozenset(("unneeded", "rate_limited", "saturated"))
"""Say nothing about the model."""

_P95 = 0.05
"""Share of calls above the 95th percentile. A candidate's is held against it with three standard errors: one that is as
fast as the model in place must not be thrown out for one call in forty."""

Key = tuple[str, str, str]
"""Role, provider, model."""

RollBack = Callable[[Role, str, str, str, int], None]
"""Keeps a rollback: role, provider, model, why, nanoseconds."""


class _Call(NamedTuple):
    valid: bool
    failed: bool
    latency_ms: int


class _Standing:
    """The last calls of one model in one role."""

    def __init__(self) -> None:
        self.calls: deque[_Call] = deque(maxlen=MOST)
        self.failed_in_a_row = 0

    def take(self, outcome: str, latency_ms: int) -> None:
        valid = outcome in VALID
        failed = not valid and outcome not in ("refusal", "content_filter")
        self.calls.append(_Call(valid, failed, latency_ms))
        self.failed_in_a_row = self.failed_in_a_row + 1 if failed else 0

    def share_failed(self) -> float:
        return sum(call.failed for call in self.calls) / len(self.calls)

    def share_valid(self) -> float:
        return sum(call.valid for call in self.calls) / len(self.calls)

    def share_above(self, limit_ms: float) -> float:
        return sum(call.latency_ms > limit_ms for call in self.calls) / len(self.calls)

    def p95_ms(self) -> int:
        ordered = sorted(call.latency_ms for call in self.calls)
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]


class Trials:
    """All roles' candidates.

    Args:
        rolled_back: Who was rolled back before.
        roll_back: Called when one is rolled back.
    """

    def __init__(self, settings: Settings, rolled_back: Collection[Key], roll_back: RollBack) -> None:
        self._roles = settings.roles
        self._guards = settings.guards
        self._off: set[Key] = set(rolled_back)
        self._roll_back = roll_back
        self._standing: dict[Key, _Standing] = {}
        self._weights: Weights | None = None
        self._hedge_credit = 0.0

    def renew(self, rolled_back: Collection[Key]) -> None:
        """What the state file says now: another decider may have rolled one back, an operator may have forgiven one."""
        forgiven = self._off - set(rolled_back)
        for key in forgiven:
            self._standing.pop(key, None)  # a new trial, not the old failures again
        self._off = set(rolled_back)

    def allowed(self, role: Role, candidate: Candidate) -> bool:
        """Whether the candidate may be asked at all."""
        return (role, candidate.provider, candidate.model) not in self._off

    def took(self, role: Role, choice: ModelChoice, via: Via, outcome: str, latency_ms: int, now_ns: int) -> str | None:
        """A call is over; why the candidate was rolled back, if it was."""
        if via == "primary":
            self._hedge_credit = min(10.0, self._hedge_credit + self._guards.hedge_share)
        if outcome in NEUTRAL or via in ("fallback", "hedge"):
            return None
        key = (role, choice.provider, choice.model)
        standing = self._standing.setdefault(key, _Standing())
        standing.take(outcome, latency_ms)
        if via not in ("canary", "shadow") or key in self._off:
            return None
        why = self._fault(role, standing)
        if why is not None:
            self._off.add(key)
            self._roll_back(role, choice.provider, choice.model, why, now_ns)
        return why

    def hedge(self) -> bool:
        """Whether one more hedge keeps within its share of the calls; takes it if so."""
        if self._hedge_credit < 1.0:
            return False
        self._hedge_credit -= 1.0
        return True

    def weigh(self, weights: Weights | None, now_ns: int) -> list[tuple[Role, str]]:
        """Take in what outcomes say; the candidates that were rolled back by it, and why."""
        self._weights = weights
        gone = []
        for role, chosen in self._roles.items():
            candidate = chosen.candidate
            if candidate is None or candidate.stage == "off" or not self.allowed(role, candidate):
                continue
            worse = self._worse_by(role)
            if worse is not None and worse > self._guards.candidate_brier:
                why = f"calibration: Brier score worse by {worse:.4f}"
                self._off.add((role, candidate.provider, candidate.model))
                self._roll_back(role, candidate.provider, candidate.model, why, now_ns)
                gone.append((role, why))
        return gone

    def lacks(self, role: Role) -> list[str] | None:
        """What a candidate lacks for its next stage, in words; empty: ready. None: there is no candidate on trial."""
        candidate = self._roles[role].candidate
        if candidate is None or candidate.stage == "off":
            return None
        if not self.allowed(role, candidate):
            return ["it was rolled back"]
        standing = self._standing.get((role, candidate.provider, candidate.model), _Standing())
        if len(standing.calls) < MOST:
            return [f"{len(standing.calls)} of {MOST} calls"]
        found = []
        incumbent = self._incumbent(role)
        if incumbent is not None and standing.share_valid() < incumbent.share_valid() - READY_VALID:
            found.append(f"valid answers {standing.share_valid():.1%} against {incumbent.share_valid():.1%}")
        if incumbent is not None and standing.p95_ms() > incumbent.p95_ms() * self._guards.candidate_slow_factor:
            found.append(f"p95 {standing.p95_ms()} ms against {incumbent.p95_ms()} ms")
        worse = self._worse_by(role)
        if worse is None:
            found.append(f"{MIN_OUTCOMES} outcomes of both models (arb scorecard --save)")
        return found

    # ------------------------------------------------ rules

    def _fault(self, role: Role, standing: _Standing) -> str | None:
        guards = self._guards
        if standing.failed_in_a_row >= guards.candidate_consecutive:
            return f"errors: {standing.failed_in_a_row} failures in a row"
        if len(standing.calls) < guards.candidate_min_calls:
            return None
        failed = standing.share_failed()
        if failed > guards.candidate_error_share:
            return f"errors: {failed:.1%} of {len(standing.calls)} calls failed"
        incumbent = self._incumbent(role)
        if incumbent is None or len(incumbent.calls) < guards.candidate_min_calls:
            return None
        slower = standing.share_above(limit_ms := incumbent.p95_ms() * guards.candidate_slow_factor)
        if slower > _P95 + 3 * math.sqrt(_P95 * (1 - _P95) * (1 / len(standing.calls) + 1 / len(incumbent.calls))):
            return f"latency: {slower:.0%} of calls above {limit_ms:.0f} ms, where the model in place has 5 %"
        if standing.share_valid() < incumbent.share_valid() - guards.candidate_error_share:
            return f"validity: {standing.share_valid():.1%} valid answers against {incumbent.share_valid():.1%}"
        return None

    def _incumbent(self, role: Role) -> _Standing | None:
        chosen = self._roles[role]
        return self._standing.get((role, chosen.provider, chosen.model))

    def _worse_by(self, role: Role) -> float | None:
        """How much worse the candidate's Brier score is; None: too few outcomes of one of them."""
        chosen = self._roles[role]
        if self._weights is None or chosen.candidate is None:
            return None
        mine = self._weights.of(role, chosen.candidate.model, chosen.prompt)
        theirs = self._weights.of(role, chosen.model, chosen.prompt)
        if mine is None or theirs is None or min(mine.n, theirs.n) < MIN_OUTCOMES:
            return None
        return mine.brier - theirs.brier
