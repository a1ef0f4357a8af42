"""What a running decider looks after beside its decisions: the weights file, gauges, candidates that are ready."""

import asyncio

import structlog

from services.decider.decide import Decider
from services.decider.judge import Terms
from services.decider.role import Desk
from services.decider.state import State
from shared import metrics, weights
from shared.errors import SettingsError
from shared.settings import Settings
from shared.weights import Weights

log = structlog.get_logger()

EVERY_S = 5.0
GUARD_STATES = ("closed", "open", "half_open", "disabled", "waiting")


def weigh(desk: Desk, found: Weights | None) -> None:
    """Roll back the candidates that outcomes speak against."""
    for role, why in desk.trials.weigh(found, desk.clock()):
        candidate = desk.settings.roles[role].candidate
        assert candidate is not None
        metrics.ROLLBACKS.labels(role=role, model=candidate.model).inc()
        log.error("candidate rolled back", role=role, model=candidate.model, why=why)


class Upkeep:
    """Runs until cancelled."""

    def __init__(self, decider: Decider, desk: Desk, state: State) -> None:
        self._decider = decider
        self._desk = desk
        self._state = state
        self._stamp: int | None = None  # read once more at the start: it may have changed since
        self._told: set[str] = set()
        self._killed = False

    @staticmethod
    def read(settings: Settings) -> tuple[Terms, Weights | None]:
        """The terms of this moment.

        Raises:
            SettingsError: a prompt or the weights file cannot be used.
        """
        file = settings.decider.weights_file
        found = weights.load(file) if file is not None and file.exists() else None
        if file is not None and found is None:
            log.warning("no weights yet: configured ones count", file=str(file), next="arb scorecard --save FILE")
        return Terms.of(settings, found), found

    async def run(self) -> None:
        """Look after everything every few seconds."""
        while True:
            try:
                self._state.recover(self._desk.clock())
                self._renew()
                self._desk.trials.renew(self._state.rolled_back())
                self._show()
            except SettingsError as error:  # the state file cannot be read: no call is paid for meanwhile
                log.error("upkeep", words=str(error))
            except Exception as error:  # of a gauge, say: it must not end what looks after the weights
                log.error("upkeep", error=type(error).__name__)
            await asyncio.sleep(EVERY_S)

    def _stamped(self) -> int | None:
        file = self._desk.settings.decider.weights_file
        try:
            return None if file is None else file.stat().st_mtime_ns
        except OSError:
            return None

    def _renew(self) -> None:
        """Take over a changed weights file; a bad one leaves the terms as they are."""
        stamp = self._stamped()
        if stamp is None or stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            terms, found = self.read(self._desk.settings)
        except SettingsError as error:
            log.error("weights file not taken: the earlier weights stay", words=str(error))
            return
        for entry in [] if found is None else found.entries:
            metrics.BRIER.labels(role=entry.role, model=entry.model).set(entry.brier)
        if terms.version != self._decider.terms.version:
            self._decider.change(terms)
            log.info("weights taken", panel_version=terms.version)
        weigh(self._desk, found)

    def _show(self) -> None:
        desk = self._desk
        for provider, model in {
            (choice.provider, choice.model) for chosen in desk.settings.roles.values() for _, choice in chosen.choices()
        }:
            state = desk.guards.state(provider, model, desk.monotonic())
            for name in GUARD_STATES:
                metrics.MODEL_GUARD.labels(provider=provider, model=model, state=name).set(name == state)
        killed, before = self._decider.killed(), self._killed
        self._killed = killed
        metrics.KILL_SWITCH.set(killed)
        if killed != before:
            log.warning("kill switch", on=killed, file=str(desk.settings.decider.kill_switch))
        spent = desk.budget.spent(desk.clock())
        for cap, line in (("minute", spent.minute), ("day", spent.day), ("shadow_day", spent.shadow)):
            metrics.BUDGET_LEFT_USD.labels(cap=cap).set(float(line.cap - line.spent))
        for role in desk.settings.roles:
            if desk.trials.lacks(role) == [] and role not in self._told:
                self._told.add(role)
                candidate = desk.settings.roles[role].candidate
                log.info(
                    "candidate is ready for its next stage",
                    role=role,
                    model=None if candidate is None else candidate.model,
                    next=f"roles.{role}.candidate.stage in arb.toml",
                )
