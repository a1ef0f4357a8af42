"""An opportunity as the detector publishes it, and settings with a model server of the test's own."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import pytest

from services.decider import judge, llm
from services.decider.budget import Budget
from services.decider.decide import Decider, Newest
from services.decider.guards import Guards
from services.decider.judge import Terms
from services.decider.models import Models
from services.decider.role import Desk
from services.decider.state import State
from services.decider.trials import Trials
from shared import settings
from shared.messages import Audit, Decision, Opportunity, RoleAnswer, decode
from shared.settings import ModelChoice, Settings
from tests import samples

NOW_NS = 1_795_000_000_000_000_000


@pytest.fixture
def now_ns() -> int:
    return NOW_NS


@pytest.fixture
def configured() -> Settings:
    return settings.load()


@pytest.fixture(scope="session")  # it makes new ones each time: hypothesis may share it between examples
def opportunity() -> Callable[..., Opportunity]:
    """`opportunity(net_bps="30")`: open now, fresh, profitable."""

    return functools.partial(samples.opportunity, NOW_NS)


class Clock:
    """Nanoseconds since the epoch that stand still until they are set."""

    def __init__(self, now_ns: int = NOW_NS) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns


def role_answer(**changes: Any) -> RoleAnswer:
    """What every role may answer, and a yes from each."""
    given = {
        "p_edge": 0.8,
        "view": "buy",
        "veto": False,
        "volatility": 0.1,
        "code": "OK",
        "pressure": "buyers",
        "liquidity": "enough",
        "manipulation": "low",
        "note": "",
    }
    return RoleAnswer.model_validate({**given, **changes})


class ScriptedModels:
    """In place of `Models`: what each model does, by name: an answer, an outcome code, or a coroutine function of both.

    `asked` has every call in its order: (model, system text, user text).
    """

    def __init__(self, settings: Settings, **scripts: Any) -> None:
        self.scripts: dict[str, Any] = {chosen.model: role_answer() for chosen in settings.roles.values()}
        self.roles = {role: chosen.model for role, chosen in settings.roles.items()}
        self.keys = set(settings.providers)
        self.asked: list[tuple[str, str, str]] = []
        for role, script in scripts.items():
            self.scripts[self.roles[role]] = script

    def any(self) -> bool:
        return bool(self.keys)

    def has(self, provider: str) -> bool:
        return provider in self.keys

    async def ask(self, choice: ModelChoice, system: str, user: str) -> llm.CallResult:
        self.asked.append((choice.model, system, user))
        what = self.scripts[choice.model]
        if callable(what):
            what = await what()
        if isinstance(what, str):
            http = {"rate_limited": 429, "auth": 401, "server": 503, "bad_request": 400, "quota": 402}.get(what)
            return llm.CallResult(what, http=http, retry_after_s=30.0 if what == "rate_limited" else None)
        return llm.CallResult("ok", what, 200, raw=what.model_dump_json())


def watching(settings: Settings, coins: Iterable[str]) -> Settings:
    """With these coins too, on the exchanges of `of_coin`."""
    wide = {
        name: exchange.model_copy(update={"symbols": (*exchange.symbols, *(f"{coin}-{quote}" for coin in coins))})
        for name, quote in (("binance", "USDT"), ("kraken", "USD"))
        for exchange in [settings.exchanges[name]]
    }
    return settings.model_copy(update={"exchanges": {**settings.exchanges, **wide}})


def of_coin(opportunity: Callable[..., Opportunity], coin: str, **changes: Any) -> Opportunity:
    """`opportunity`, on a route of its own."""
    legs = {side: getattr(opportunity(), side).model_dump() for side in ("buy", "sell")}
    legs["buy"]["symbol"], legs["sell"]["symbol"] = f"{coin}-USDT", f"{coin}-USD"
    return opportunity(base=coin, **legs, **changes)


class Workbench(NamedTuple):
    """A decider with everything real but the models and the clock."""

    decider: Decider
    desk: Desk
    newest: Newest
    models: ScriptedModels
    clock: Clock
    state: State

    async def decide(self, opportunity: Opportunity) -> Decision:
        """From the message to the decision, as the service does it."""
        self.newest.take(opportunity, self.clock())
        case = self.decider.quick(opportunity) or await self.decider.consider(opportunity)
        decision = self.decider.conclude(case)
        assert decode(decision.encode()) == decision, "I6: finite, valid JSON"
        audit = decode(judge.audited(case, decision.encode()))
        assert isinstance(audit, Audit)
        assert audit == judge.audit(case, decision), "the fast writer writes what the model says"
        again = judge.conclude(judge.case_of(audit), self.decider.terms)
        assert again.encode() == decision.encode(), "I8: the record of a decision makes the same decision again"
        return decision


@pytest.fixture
def workbench(configured: Settings) -> Iterator[Callable[..., Workbench]]:
    """`workbench(settings=..., models={"risk": "server"}, threshold=900)`: further names are settings of `[decider]`."""
    states = contextlib.ExitStack()

    def make(
        settings: Settings = configured,
        models: dict[str, Any] | None = None,
        guards: Any = None,
        monotonic: Callable[[], float] = time.monotonic,
        **decider: Any,
    ) -> Workbench:
        changed = settings.model_copy(
            update={
                "decider": settings.decider.model_copy(update=decider),
                "guards": settings.guards.model_copy(update=guards or {}),
            }
        )
        clock, scripted, state = Clock(), ScriptedModels(changed, **models or {}), states.enter_context(State(None))
        trials = Trials(changed, state.rolled_back(), state.roll_back)
        budget = Budget(changed, state)
        desk = Desk(changed, cast(Models, scripted), Guards(changed), budget, trials, clock, monotonic)
        newest = Newest()
        return Workbench(Decider(Terms.of(changed), desk, newest), desk, newest, scripted, clock, state)

    with states:
        yield make
