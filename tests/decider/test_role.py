"""One role's part: fallback, hedge, canary, money and guards, and what is recorded of it."""

import asyncio
from decimal import Decimal

import pytest

from services.decider import llm
from services.decider.role import Purse, RoleAsker, make_ready, share_of
from shared.settings import Candidate, ModelChoice
from tests.decider.conftest import role_answer

OTHER = ModelChoice(provider="openai", model="gpt-5.4-mini")


@pytest.fixture
def bench(workbench, configured):
    def make(fallback=OTHER, candidate=None, guards=None, **changes):
        risk = configured.roles["risk"].model_copy(update={"fallback": fallback, "candidate": candidate})
        roles = {**configured.roles, "risk": risk}
        made = workbench(configured.model_copy(update={"roles": roles}), guards=guards, **changes)
        made.models.scripts[OTHER.model] = role_answer(note="the other")
        return made

    return make


def asker(bench, ends_in_s=10.0, purse=None, opportunity_id="a" * 32):
    desk = bench.desk
    prompt = bench.decider.terms.prompts["risk"]
    ends = desk.monotonic() + ends_in_s
    return RoleAsker(desk, "risk", prompt, '{"role":"risk"}', opportunity_id, purse or Purse(), ends)


def answers(bench, what):
    bench.models.scripts[bench.models.roles["risk"]] = what


async def hang():
    await asyncio.sleep(60)


def names(bench):
    return [model for model, _, _ in bench.models.asked]


async def test_the_roles_own_model_is_enough(bench):
    made = bench()
    record = await asker(made).ask()
    assert (record.via, record.outcome, record.others) == ("primary", "ok", [])
    assert names(made) == [made.models.roles["risk"]]


@pytest.mark.parametrize("failure", ["server", "network", "saturated"])
async def test_when_it_is_gone_the_fallback_answers(bench, failure):
    made = bench()
    answers(made, failure)
    asked = asker(made)
    record = await asked.ask()
    assert (record.via, record.model_asked, record.answer.note) == ("fallback", OTHER.model, "the other")
    assert [(other.via, other.outcome) for other in record.others] == [("primary", failure)]
    assert len(asked.question().raw) == 2


@pytest.mark.parametrize("failure", ["invalid", "refusal", "auth", "quota", "bad_request", "rate_limited", "unsure"])
async def test_what_was_answered_or_is_our_fault_is_not_asked_elsewhere(bench, failure):
    made = bench()
    answers(made, failure)
    record = await asker(made).ask()
    assert (record.outcome, record.answer, record.others) == (failure, None, [])
    assert names(made) == [made.models.roles["risk"]]


async def test_without_time_the_fallback_is_not_begun(bench):
    made = bench()
    answers(made, "server")
    record = await asker(made, ends_in_s=0.2).ask()
    assert (record.via, record.outcome) == ("primary", "server")


async def test_a_model_that_hangs_leaves_the_fallback_its_least_time(bench):
    made = bench()
    answers(made, hang)
    record = await asker(made, ends_in_s=0.8).ask()
    assert (record.via, record.outcome) == ("fallback", "ok")
    assert [(other.via, other.outcome) for other in record.others] == [("primary", "late")]
    assert record.others[0].cost_usd > 0


async def test_a_model_may_have_a_deadline_of_its_own(bench):
    made = bench(fallback=None)
    models = dict(made.desk.settings.models)
    name = made.models.roles["risk"]
    models[name] = models[name].model_copy(update={"timeout_ms": 30})
    object.__setattr__(made.desk, "settings", made.desk.settings.model_copy(update={"models": models}))
    answers(made, hang)
    record = await asker(made).ask()
    assert (record.via, record.outcome, record.others) == ("primary", "late", [])


async def test_an_open_breaker_goes_to_the_fallback_without_a_call(bench):
    made = bench(guards={"consecutive": 2})
    answers(made, "server")
    for _ in range(2):
        await asker(made).ask()
    made.models.asked.clear()
    record = await asker(made).ask()
    assert record.via == "fallback"
    assert [other.outcome for other in record.others] == ["skipped:breaker"]
    assert names(made) == [OTHER.model]


async def test_who_may_ask_nobody_abstains_at_once_though_a_cool_down_ends_meanwhile(bench):
    made = bench(guards={"consecutive": 1, "cooldown_s": 5.0})
    began_s = made.desk.monotonic()
    choice = made.desk.settings.roles["risk"]
    assert asker(made).abstention() is None
    for one in (choice, OTHER):
        made.desk.guards.report(one.provider, one.model, "server", began_s)
    asked, looks = asker(made), iter((began_s + 4.9, *(began_s + 60.0,) * 99))
    object.__setattr__(made.desk, "monotonic", lambda: next(looks))
    record = asked.abstention()
    assert [record.outcome, *(other.outcome for other in record.others)] == ["skipped:breaker"] * 2
    assert made.models.asked == []
    assert made.desk.guards.refuses(choice.provider, choice.model, 1, began_s + 60.0) is None  # nothing was taken


async def test_no_call_is_made_without_money_and_the_guards_know(bench):
    made = bench(max_day_usd=Decimal(0))
    record = await asker(made).ask()
    assert (record.outcome, record.cost_usd) == ("skipped:budget", 0)
    assert made.models.asked == []


async def test_the_purse_bounds_all_calls_of_an_opportunity(bench):
    made = bench()
    full = Purse(made.desk.settings.decider.max_opportunity_usd)
    assert (await asker(made, purse=full).ask()).outcome == "skipped:budget"
    purse = Purse()
    await asker(made, purse=purse).ask()
    assert purse.spent > 0


async def test_cut_off_it_is_recorded_and_charged(bench):
    made = bench()
    answers(made, hang)
    asked = asker(made)
    task = asyncio.create_task(asked.ask())
    while not made.models.asked:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    record = asked.stopped("late")
    assert record.outcome == "late"
    assert record.cost_usd > 0
    assert made.desk.budget.spent(made.clock()).day.spent == record.cost_usd


async def test_cut_off_before_it_began_it_costs_nothing(bench):
    made = bench()
    record = asker(made).stopped("unneeded")
    assert (record.outcome, record.cost_usd) == ("unneeded", 0)


async def test_made_ready_and_cut_off_before_it_began_it_costs_nothing_and_holds_up_nobody(bench):
    made = bench(guards={"consecutive": 1, "cooldown_s": 0.0})
    choice = made.desk.settings.roles["risk"]
    made.desk.guards.report(choice.provider, choice.model, "server", made.desk.monotonic())  # the next is a trial
    asked = asker(made)
    make_ready([asked])
    assert made.desk.budget.spent(made.clock()).day.spent > 0
    assert made.desk.guards.refuses(choice.provider, choice.model, 1, made.desk.monotonic()) == "skipped:breaker"
    record = asked.stopped("late")
    asked.purse.settle(made.desk.budget, made.clock())
    assert (record.outcome, record.cost_usd, made.models.asked) == ("late", 0, [])
    assert made.desk.budget.spent(made.clock()).day.spent == 0
    assert made.desk.guards.refuses(choice.provider, choice.model, 1, made.desk.monotonic()) is None


async def test_made_ready_it_is_paid_for_once(bench):
    made = bench(fallback=None)
    asked = asker(made)
    make_ready([asked])
    reserved = made.desk.budget.spent(made.clock()).day.spent
    record = await asked.ask()
    assert (record.outcome, names(made)) == ("ok", [made.models.roles["risk"]])
    assert made.desk.budget.spent(made.clock()).day.spent == reserved, "the worst case, until the panel settles"
    asked.purse.settle(made.desk.budget, made.clock())
    assert made.desk.budget.spent(made.clock()).day.spent == record.cost_usd


async def test_the_last_of_a_panel_is_refused_where_money_is_there_for_the_others_only(bench):
    made = bench(fallback=None)
    purse = Purse()
    askers = [asker(made, purse=purse) for _ in range(3)]
    make_ready(askers[:1])
    cost = purse.spent
    await askers[0].ask()
    short = bench(fallback=None, max_minute_usd=cost * 5 / 2)
    purse = Purse()
    askers = [asker(short, purse=purse) for _ in range(3)]
    make_ready(askers)
    assert [(await one.ask()).outcome for one in askers] == ["ok", "ok", "skipped:budget"]
    assert purse.spent == cost * 2


async def test_cut_off_while_the_fallback_thinks_both_are_recorded(bench):
    made = bench()
    answers(made, "server")
    made.models.scripts[OTHER.model] = hang
    asked = asker(made)
    task = asyncio.create_task(asked.ask())
    while len(made.models.asked) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    record = asked.stopped("late")
    assert (record.via, record.outcome) == ("fallback", "late")
    assert [(other.via, other.outcome) for other in record.others] == [("primary", "server")]


# ------------------------------------------------ hedge


def slow_models(bench):
    models = dict(bench.desk.settings.models)
    name = bench.models.roles["risk"]
    models[name] = models[name].model_copy(update={"p95_ms": 10})
    object.__setattr__(bench.desk, "settings", bench.desk.settings.model_copy(update={"models": models}))


async def test_a_hedge_answers_for_a_slow_model_and_the_loser_is_paid(bench):
    made = bench(guards={"hedge": True, "hedge_share": 1.0})
    slow_models(made)
    await asker(made).ask()  # earns the right to one hedge
    made.models.asked.clear()
    answers(made, hang)
    before = asyncio.all_tasks()
    record = await asker(made).ask()
    assert asyncio.all_tasks() == before
    assert (record.via, record.answer.note) == ("hedge", "the other")
    assert [(other.via, other.outcome) for other in record.others] == [("primary", "unneeded")]
    assert record.others[0].cost_usd > 0, "it may be billed"


async def test_no_more_hedges_than_their_share_of_the_calls(bench):
    made = bench(guards={"hedge": True, "hedge_share": 0.05})
    slow_models(made)

    async def a_while():
        await asyncio.sleep(0.03)
        return role_answer()

    answers(made, a_while)
    for _ in range(60):
        await asker(made).ask()
    assert names(made).count(OTHER.model) <= 3


async def test_without_a_hedge_to_spare_the_fallback_is_still_there(bench):
    made = bench(guards={"hedge": True, "hedge_share": 0.05})
    slow_models(made)

    async def fails_late():
        await asyncio.sleep(0.03)
        return "server"

    answers(made, fails_late)
    record = await asker(made).ask()
    assert (record.via, [other.outcome for other in record.others]) == ("fallback", ["server"])


async def test_a_hedge_does_not_overrule_a_model_that_cannot_judge(bench):
    made = bench(guards={"hedge": True, "hedge_share": 1.0})
    slow_models(made)
    await asker(made).ask()

    async def unsure():
        await asyncio.sleep(0.03)
        return "unsure"

    async def later():
        await asyncio.sleep(0.2)
        return role_answer()

    answers(made, unsure)
    made.models.scripts[OTHER.model] = later
    record = await asker(made).ask()
    assert (record.via, record.outcome, record.answer) == ("primary", "unsure", None)
    assert [(other.via, other.outcome) for other in record.others] == [("hedge", "unneeded")]


@pytest.mark.parametrize("other", ["refusal", "skipped:budget", "server"])
async def test_a_hedge_without_an_answer_does_not_end_the_wait(bench, other):
    made = bench(guards={"hedge": True, "hedge_share": 1.0})
    slow_models(made)
    await asker(made).ask()

    async def a_while():
        await asyncio.sleep(0.06)
        return role_answer()

    answers(made, a_while)
    if other == "skipped:budget":
        models = dict(made.desk.settings.models)
        models[OTHER.model] = models[OTHER.model].model_copy(update={"max_out": 4096})  # dearer than a call may be
        object.__setattr__(made.desk, "settings", made.desk.settings.model_copy(update={"models": models}))
    made.models.scripts[OTHER.model] = other
    record = await asker(made).ask()
    assert (record.via, record.outcome) == ("primary", "ok")
    assert [(call.via, call.outcome) for call in record.others] == [("hedge", other)]


async def test_without_the_setting_nothing_is_hedged(bench):
    made = bench()
    slow_models(made)

    async def a_while():
        await asyncio.sleep(0.03)
        return role_answer()

    answers(made, a_while)
    assert (await asker(made).ask()).via == "primary"
    assert OTHER.model not in names(made)


# ------------------------------------------------ canary


CANARY = Candidate(provider="openai", model="gpt-4.1", stage="canary", share=0.25)


async def test_a_canary_gets_its_share_of_the_opportunities_and_always_the_same_ones(bench):
    made = bench(candidate=CANARY)
    made.models.scripts["gpt-4.1"] = role_answer(note="canary")
    ids = [f"{n:032x}" for n in range(400)]
    chosen = {i for i in ids if share_of(i, "risk") < 0.25}
    assert 60 < len(chosen) < 140
    for i in ids[:40]:
        record = await asker(made, opportunity_id=i).ask()
        assert record.via == ("canary" if i in chosen else "primary")


async def test_when_the_canary_is_gone_the_roles_model_answers(bench):
    made = bench(candidate=CANARY.model_copy(update={"share": 1.0}))
    made.models.scripts["gpt-4.1"] = "server"
    record = await asker(made).ask()
    assert (record.via, [other.via for other in record.others]) == ("primary", ["canary"])


async def test_a_canary_that_fails_is_rolled_back_and_stays_so(bench):
    made = bench(candidate=CANARY.model_copy(update={"share": 1.0}), guards={"candidate_consecutive": 3})
    made.models.scripts["gpt-4.1"] = "invalid"
    for _ in range(3):
        assert (await asker(made).ask()).via == "canary"
    record = await asker(made).ask()
    assert (record.via, record.others) == ("primary", [])


async def test_a_connection_that_was_never_there_costs_nothing(bench):
    made = bench(fallback=None)

    async def ask(choice, system, user):
        return llm.CallResult("network", unsent=True)

    made.models.ask = ask
    purse = Purse()
    record = await asker(made, purse=purse).ask()
    assert (record.outcome, record.cost_usd) == ("network", 0)
    assert made.desk.budget.spent(made.clock()).day.spent == purse.spent > 0, "until the panel has ended"
    purse.settle(made.desk.budget, made.clock())
    assert made.desk.budget.spent(made.clock()).day.spent == 0
    answers(made, "network")
    del made.models.ask
    assert (await asker(made).ask()).cost_usd > 0, "one that broke may be billed"


async def test_a_fallback_may_use_what_the_first_model_did_not(bench):
    made = bench()
    answers(made, "server")
    purse = Purse()
    await asker(made, purse=purse).ask()
    made = bench(max_minute_usd=purse.spent * Decimal("0.7"))  # one call at its worst, not two
    answers(made, "server")
    record = await asker(made).ask()
    assert (record.via, record.outcome) == ("fallback", "ok")
