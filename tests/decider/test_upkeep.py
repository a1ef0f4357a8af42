"""What a decider looks after beside its decisions."""

import asyncio
import contextlib
import os
import sqlite3

import pytest
import structlog

from services.decider.judge import Terms
from services.decider.state import Limits, State
from services.decider.upkeep import Upkeep
from shared import metrics
from shared.errors import SettingsError
from shared.settings import Candidate
from shared.weights import Entry, Weights
from tests.decider.conftest import role_answer

PLENTY = Limits(10**15, 10**15, 10**15)
CANDIDATE = Candidate(provider="openai", model="gpt-5.4-mini", stage="shadow", share=1.0)
PESSIMISTIC = [(0.0, 0.1), (1.0, 0.2)]
AS_SAID = [(0.0, 0.0), (1.0, 1.0)]


@contextlib.asynccontextmanager
async def looked_after(bench, state=None):
    """The upkeep runs; `await until(condition)` in the block."""
    upkeep = asyncio.create_task(Upkeep(bench.decider, bench.desk, state or bench.state).run())

    async def until(condition):
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 -- it has no event
                await asyncio.sleep(0)

    try:
        yield until
    finally:
        upkeep.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await upkeep


@pytest.fixture
def at_once(monkeypatch):
    """It looks in every turn of the loop."""
    monkeypatch.setattr("services.decider.upkeep.EVERY_S", 0.0)


@pytest.fixture
def tried(configured):
    risk = configured.roles["risk"].model_copy(update={"candidate": CANDIDATE})
    return configured.model_copy(update={"roles": {**configured.roles, "risk": risk}})


def entry(role, model, prompt, calibration=(), brier=0.25):
    common = {"n": 500, "base_rate": 0.5, "bss": 0.1, "weight": 0.1}
    return Entry(role=role, model=model, prompt_version=prompt, brier=brier, calibration=list(calibration), **common)


def weights(settings, calibration, *more):
    """Outcomes of every role's model, and these."""
    entries = [entry(role, chosen.model, chosen.prompt, calibration) for role, chosen in settings.roles.items()]
    return Weights(entries=[*entries, *more], horizon_ms=1000, since_ns=0, until_ns=1, made_ns=1)


def written(file, what, at_s):
    """The file, changed at that moment: two changes may follow each other faster than a disk's clock ticks."""
    other = file.with_suffix(".new")
    if isinstance(what, Weights):
        what.save(other)
    else:
        other.write_text(what)
    os.utime(other, (at_s, at_s))
    other.replace(file)


async def test_in_a_quiet_market_a_state_file_that_was_locked_is_found_usable_again(workbench, tmp_path, now_ns):
    bench, file = workbench(), tmp_path / "decider.sqlite"
    with State(file) as state:
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert state.book(1, "openai", now_ns, PLENTY, shadow=False) is None
        assert not state.usable()[0]
        async with looked_after(bench, state) as until:
            await until(lambda: state.usable()[0])


async def test_a_changed_weights_file_counts_for_what_comes_from_then_on(workbench, opportunity, tmp_path, at_once):
    file = tmp_path / "weights.json"
    bench = workbench(weights_file=file)
    settings, configured_ones = bench.desk.settings, bench.decider.terms
    async with looked_after(bench) as until:
        first = await bench.decide(opportunity())
        assert (first.outcome, first.p_edge) == ("execute", 0.8)
        for at_s, calibration, said in [
            (1, PESSIMISTIC, ("hold", "p_low", 0.18)),
            (2, AS_SAID, ("execute", "score", 0.8)),
        ]:
            found = weights(settings, calibration)
            written(file, found, at_s)
            expected = Terms.of(settings, found).version
            await until(lambda expected=expected: bench.decider.terms.version == expected)
            decision = await bench.decide(opportunity(opportunity_id=f"{at_s:032x}"))
            assert (decision.outcome, decision.reason, decision.p_edge) == said
            assert (decision.mode, decision.panel.version) == ("full", expected), "no earlier answer is used again"
        assert bench.decider.terms.version != configured_ones.version
        assert metrics.BRIER.labels(role="risk", model=settings.roles["risk"].model)._value.get() == 0.25


async def test_weights_that_are_there_at_the_start_count_from_the_first_case_on(workbench, tmp_path):
    file = tmp_path / "weights.json"
    settings = workbench(weights_file=file).desk.settings
    assert Upkeep.read(settings) == (Terms.of(settings), None), "none yet: the configured ones count"
    found = weights(settings, PESSIMISTIC)
    found.save(file)
    terms, read = Upkeep.read(settings)
    assert read == found
    assert terms == Terms.of(settings, found)
    assert terms.version != Terms.of(settings).version
    file.write_text("{")
    with pytest.raises(SettingsError, match=r"weights file .*weights\.json"):
        Upkeep.read(settings)


async def test_a_damaged_weights_file_leaves_the_weights_as_they_are_until_the_next_good_one(
    workbench, tmp_path, at_once
):
    file = tmp_path / "weights.json"
    bench = workbench(weights_file=file)
    good, better = weights(bench.desk.settings, PESSIMISTIC), weights(bench.desk.settings, AS_SAID)
    written(file, good, 1)
    with structlog.testing.capture_logs() as logs:
        async with looked_after(bench) as until:
            of_good = Terms.of(bench.desk.settings, good)
            await until(lambda: bench.decider.terms == of_good)
            written(file, "{", 2)
            await until(lambda: [line for line in logs if line["log_level"] == "error"])
            for _ in range(10):  # it looks again in each
                await asyncio.sleep(0)
            file.unlink()
            for _ in range(10):
                await asyncio.sleep(0)
            assert bench.decider.terms == of_good
            written(file, better, 3)
            of_better = Terms.of(bench.desk.settings, better)
            await until(lambda: bench.decider.terms == of_better)
    (told,) = [line for line in logs if line["log_level"] == "error"]
    assert "the earlier weights stay" in told["event"], "told once, not in every turn"
    assert "weights.json" in told["words"]


async def test_a_candidate_that_outcomes_show_to_be_worse_is_rolled_back_while_it_runs(
    workbench, tried, opportunity, tmp_path, at_once
):
    file = tmp_path / "weights.json"
    bench = workbench(tried, weights_file=file)
    bench.models.scripts[CANDIDATE.model] = role_answer()
    risk, place = tried.roles["risk"], ("risk", CANDIDATE.provider, CANDIDATE.model)
    counted = metrics.ROLLBACKS.labels(role="risk", model=CANDIDATE.model)
    before = counted._value.get()
    case = await bench.decider.consider(opportunity())
    assert bench.decider.shadowed(case) == ["risk"]
    async with looked_after(bench) as until:
        for at_s, brier in [(1, 0.254), (2, 0.256)]:
            found = weights(tried, (), entry("risk", CANDIDATE.model, risk.prompt, brier=brier))
            written(file, found, at_s)
            expected = Terms.of(bench.desk.settings, found).version
            await until(lambda expected=expected: bench.decider.terms.version == expected)
            if at_s == 1:
                assert bench.decider.shadowed(case) == ["risk"], "within guards.candidate_brier"
        await until(lambda: bench.state.rolled_back())
        assert list(bench.state.rolled_back()) == [place], "kept for the next start"
        assert bench.decider.shadowed(case) == [], "it is not asked again"
    assert counted._value.get() == before + 1
