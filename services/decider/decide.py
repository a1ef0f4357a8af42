"""Gathers what a decision rests on: the clock, the newest state, the panel's answers. `judge` decides by it."""

import asyncio
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from services.decider import judge, panel, prompt, rules
from services.decider.judge import Case, Reason, Terms
from services.decider.role import Desk, NoModel, Purse, RoleAsker, make_ready, on_trial
from services.decider.scoring import ROLES
from shared import metrics
from shared.messages import Arrival, Decision, Opportunity, Role, RoleRecord, Shadow

MS = 1_000_000
KEPT_NS = 2_000 * MS

Route = tuple[str, ...]


class Newest:
    """The newest state of each opportunity that was read, for the last check, and the newest of each route.

    Bounded: what expired a minute ago is forgotten (too old for any model), and so is the oldest of too many.
    """

    def __init__(self, most: int = 20_000) -> None:
        self._held: OrderedDict[str, Opportunity] = OrderedDict()
        self._of_route: OrderedDict[Route, str] = OrderedDict()
        self._most = most

    def take(self, opportunity: Opportunity, now_ns: int) -> None:
        """Keep it, unless something newer of the same opportunity is held."""
        held = self._held.pop(opportunity.opportunity_id, None)
        if held is not None and held.detected_ns > opportunity.detected_ns:
            opportunity = held
        self._held[opportunity.opportunity_id] = opportunity
        while self._held:
            oldest = next(iter(self._held.values()))
            if len(self._held) <= self._most and oldest.expires_ns + KEPT_NS >= now_ns:
                break
            self._held.popitem(last=False)
        if held is None:  # in the order of reading: clocks of detectors differ, and can be set back
            route = judge.route_of(opportunity)
            self._of_route.pop(route, None)
            self._of_route[route] = opportunity.opportunity_id
            if len(self._of_route) > self._most:
                self._of_route.popitem(last=False)

    def get(self, opportunity: Opportunity) -> Opportunity:
        """The newest message of this opportunity that was read."""
        return self._held.get(opportunity.opportunity_id, opportunity)

    def superseded(self, opportunity: Opportunity) -> bool:
        """Whether a newer opportunity of the same route was read."""
        mine = opportunity.opportunity_id
        return self._of_route.get(judge.route_of(opportunity), mine) != mine


class _Cached(NamedTuple):
    decision_id: str
    at_ns: int
    regime: tuple[object, ...]
    records: dict[Role, RoleRecord]
    arrivals: list[Arrival]


class Decider:
    """Judges opportunities: `quick` or `consider` for the facts, then `conclude` right before publishing.

    Args:
        newest: What has been read of each opportunity, also while models think.
    """

    def __init__(self, terms: Terms, desk: Desk, newest: Newest) -> None:
        self._terms = terms
        self._desk = desk
        self._newest = newest
        self._decider = desk.settings.decider
        self._panels = asyncio.Semaphore(self._decider.max_panels_in_flight)
        self._flights: dict[Route, asyncio.Event] = {}
        self._cache: OrderedDict[Route, _Cached] = OrderedDict()
        self._keys = desk.models.any()

    def now_ns(self) -> int:
        """Of the clock that decisions are made by."""
        return self._desk.clock()

    @property
    def terms(self) -> Terms:
        """What new cases are judged by."""
        return self._terms

    def change(self, terms: Terms) -> None:
        """Judge what comes from now on by other terms. A case that is under way keeps those that it began with."""
        self._terms = terms
        self._cache.clear()

    def quick(self, opportunity: Opportunity, raw: bytes | None = None) -> Case | None:
        """The case, if no model need be asked; else None. `raw`: the message as it was read, for the audit."""
        case = self._admitted(opportunity, raw, superseded=False)
        return case if self._stopped(case) or case.cached_from is not None else None

    async def consider(self, opportunity: Opportunity, raw: bytes | None = None) -> Case:
        """The case, by the panel or by what it said a moment ago; at most the panel's deadline from its turn on.

        Opportunities of one route are asked about one at a time; one that has been superseded meanwhile is not.
        """
        route = judge.route_of(opportunity)
        while (flight := self._flights.get(route)) is not None:
            await flight.wait()
        self._flights[route] = over = asyncio.Event()
        try:
            async with self._panels:
                case = self._admitted(opportunity, raw, superseded=self._newest.superseded(opportunity))
                if not self._stopped(case) and not self._from_cache(case, route):
                    await self._ask(case)
                    self._keep(case, route)
            return case
        finally:
            del self._flights[route]
            over.set()

    def conclude(self, case: Case) -> Decision:
        """The decision, with the last check on what is known now."""
        case.newest = self._newest.get(case.opportunity)
        case.decided_ns = self._desk.clock()
        case.killed = case.killed or self.killed()
        return judge.conclude(case, self._of(case))

    def gone(self, case: Case) -> bool:
        """Whether what may have passed the last check a moment ago would not pass it now."""
        newest = self._newest.get(case.opportunity)
        return judge.gate(newest, self._desk.clock(), self.killed(), self._of(case)) is not None

    # ------------------------------------------------ facts

    def _admitted(self, opportunity: Opportunity, raw: bytes | None, *, superseded: bool) -> Case:
        newest = self._newest.get(opportunity)
        return Case(
            opportunity=opportunity,
            admitted_ns=self._desk.clock(),
            admitted_closed=newest.phase == "closed",
            admitted_expires_ns=newest.expires_ns,
            keys=self._keys,
            killed=self.killed(),
            superseded=superseded,
            terms=self._terms,
            raw=raw,
        )

    def _stopped(self, case: Case) -> bool:
        """Whether nobody need be asked; where only the time for it is missing, what was said a moment ago counts."""
        case.checked = rules.check(case.opportunity, self._desk.settings)
        stopped = judge.admit(case, case.checked, self._of(case))
        if stopped is None:
            return False
        return stopped.reason != Reason.NO_TIME or not self._from_cache(case, judge.route_of(case.opportunity))

    def _of(self, case: Case) -> Terms:
        return case.terms or self._terms

    def killed(self) -> bool:
        """Whether the kill switch is on."""
        switch: Path | None = self._decider.kill_switch
        if switch is None:
            return False
        try:
            return switch.exists()
        except OSError:  # nobody can say that it is off
            return True

    async def _ask(self, case: Case) -> None:
        desk, opportunity, terms = self._desk, case.opportunity, self._of(case)
        case.asked_ns = desk.clock()
        case.deadline_ms = judge.deadline_ms(case, terms)
        purse, ends = Purse(), desk.monotonic() + case.deadline_ms / 1000
        users = prompt.questions(ROLES, opportunity, case.asked_ns)
        askers: dict[Role, RoleAsker | NoModel] = {}
        for role in ROLES:
            if role not in desk.settings.roles:
                askers[role] = NoModel(role)
                continue
            askers[role] = RoleAsker(
                desk, role, terms.prompts[role], users[role], opportunity.opportunity_id, purse, ends
            )

        def ready(roles: list[Role]) -> None:
            make_ready([asker for role in roles if isinstance(asker := askers[role], RoleAsker)])

        try:
            result = await panel.run(
                askers, terms, deadline_s=case.deadline_ms / 1000, monotonic=desk.monotonic, ready=ready
            )
        finally:
            # Behind the decision, if it leaves in this turn: it does not wait for the money's file.
            asyncio.get_running_loop().call_soon(purse.settle, desk.budget, desk.clock())
        case.records, case.arrivals, case.late = result.records, result.arrivals, result.late
        case.elapsed_ms = result.elapsed_ms
        case.questions = [asker.question() for asker in askers.values() if isinstance(asker, RoleAsker)]
        metrics.PANEL_MS.observe(result.elapsed_ms)

    # ------------------------------------------------ what a panel said a moment ago

    def _from_cache(self, case: Case, route: Route) -> bool:
        cached = self._cache.get(route)
        if (
            cached is None
            or not 0 <= case.admitted_ns - cached.at_ns < self._decider.verdict_ttl_ms * MS  # a clock may be set back
            or cached.regime != judge.regime(case.opportunity)
        ):
            return False
        case.cached_from, case.arrivals = cached.decision_id, cached.arrivals
        case.records = {role: judge.reused(record) for role, record in cached.records.items()}
        return True

    def _keep(self, case: Case, route: Route) -> None:
        """Answers of a whole panel may be used again; those of one in which something failed may not."""
        if case.asked_ns is None or case.late or case.terms is not self._terms or not self._decider.verdict_ttl_ms:
            return
        if not all(record.answer is not None or record.outcome == "unneeded" for record in case.records.values()):
            return
        self._cache.pop(route, None)
        self._cache[route] = _Cached(
            self._terms.decision_id(case.opportunity.opportunity_id),
            case.asked_ns + case.elapsed_ms * MS,
            judge.regime(case.opportunity),
            case.records,
            case.arrivals,
        )
        if len(self._cache) > 1_000:
            self._cache.popitem(last=False)

    # ------------------------------------------------ candidates in shadow

    def shadowed(self, case: Case) -> list[Role]:
        """Roles whose candidate is to answer the questions of this case too, for comparison only."""
        if case.asked_ns is None:
            return []
        return [
            role
            for role, chosen in self._desk.settings.roles.items()
            if on_trial(chosen.candidate, "shadow", case.opportunity.opportunity_id, role, self._desk.trials)
        ]

    async def shadow(self, case: Case, decision: Decision, role: Role) -> Shadow:
        """Ask a candidate what the role's model was asked; within the panel's deadline and a budget of its own."""
        desk = self._desk
        candidate = desk.settings.roles[role].candidate
        assert candidate is not None
        asked_ns, seconds = desk.clock(), self._decider.panel_deadline_ms / 1000
        user = next(question.user for question in case.questions if question.role == role)
        purse = Purse()
        asker = RoleAsker(
            desk,
            role,
            self._of(case).prompts[role],
            user,
            case.opportunity.opportunity_id,
            purse,
            desk.monotonic() + seconds,
            only=(candidate, "shadow"),
        )
        try:
            async with asyncio.timeout(seconds):
                record = await asker.ask()
        except TimeoutError:
            record = asker.stopped("late")
        finally:
            purse.settle(desk.budget, desk.clock())
        return Shadow(
            decision_id=decision.decision_id,
            opportunity_id=decision.opportunity_id,
            base=decision.base,
            call=record,
            raw=asker.question().raw[0],
            asked_ns=asked_ns,
        )
