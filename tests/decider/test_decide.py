"""One opportunity to one decision, reason by reason: everything real but the models and the clock."""

import asyncio
import datetime
from collections import Counter, defaultdict
from decimal import Decimal

import orjson
import pytest

from services.decider import budget as money
from services.decider.decide import Newest
from services.decider.judge import Terms
from shared.settings import Candidate, ModelChoice
from shared.weights import Entry, Weights
from tests.decider import virtual
from tests.decider.conftest import NOW_NS, of_coin, role_answer, watching

MS = 1_000_000
ROLES = ("sentiment", "risk", "volatility")


def outcomes(decision):
    return [record.outcome for record in decision.roles]


async def test_three_good_answers_execute(workbench, opportunity):
    decision = await workbench(threshold=900).decide(opportunity())
    assert (decision.outcome, decision.mode, decision.reason) == ("execute", "full", "score")
    assert (decision.score.low, decision.score.high) == (1000, 1000)
    assert outcomes(decision) == ["ok", "ok", "ok"]
    assert decision.panel.cost_usd > 0
    assert decision.panel.cost_usd == sum(record.cost_usd for record in decision.roles)
    assert decision.p_edge == 0.8


async def test_the_id_depends_on_the_opportunity_and_the_panel_only(workbench, opportunity):
    first = await workbench().decide(opportunity())
    later = workbench()
    later.clock.now_ns += 5
    assert (await later.decide(opportunity(net_bps="40"))).decision_id == first.decision_id
    assert (await workbench(threshold=700).decide(opportunity())).decision_id != first.decision_id
    assert len(first.decision_id) == 32


@pytest.mark.parametrize(
    ("changes", "outcome", "reason"),
    [
        ({"expires_ns": NOW_NS}, "hold", "expired"),
        ({"detected_ns": NOW_NS - 3_001 * MS}, "hold", "too_old"),
        ({"phase": "closed"}, "hold", "closed"),
        ({"detected_ns": NOW_NS + 2_001 * MS}, "hold", "clock"),
        ({"net_bps": "4.9"}, "hold", "rules"),
        ({"net_bps": "200.1"}, "reject", "rules"),
        ({"size": "0"}, "reject", "rules"),
        ({"profit_usd": "0"}, "reject", "rules"),
        ({"notional_usd": "50000.01"}, "reject", "rules"),
        ({"expires_ns": NOW_NS + 349 * MS}, "hold", "no_time"),
    ],
)
async def test_without_a_call_it_is_said_why(workbench, opportunity, changes, outcome, reason):
    bench = workbench()
    decision = await bench.decide(opportunity(**changes))
    assert (decision.outcome, decision.mode, decision.reason) == (outcome, "rules_only", reason)
    assert bench.models.asked == []
    assert decision.panel.cost_usd == 0


async def test_a_leg_that_is_silent_or_skewed_holds(workbench, opportunity):
    leg = opportunity().buy.model_dump() | {"alive_age_ms": 2001}
    decision = await workbench(max_skew_ms=1000).decide(opportunity(buy=leg))
    assert (decision.outcome, decision.rules.codes) == ("hold", ["silent", "skew"])


async def test_a_book_that_has_not_changed_for_long_holds(workbench, opportunity):
    bench = workbench()
    leg = opportunity().sell.model_dump() | {"book_age_ms": bench.desk.settings.detector.max_book_age_ms + 1}
    decision = await bench.decide(opportunity(sell=leg))
    assert (decision.outcome, decision.rules.codes, bench.models.asked) == ("hold", ["age"], [])


async def test_executed_is_what_is_there_when_the_panel_has_spoken(workbench, opportunity):
    bench = workbench()
    opened = opportunity()
    case = await bench.decider.consider(opened)
    later = {"phase": "updated", "detected_ns": bench.clock.now_ns, "expires_ns": opened.expires_ns + 2_000 * MS}
    bench.newest.take(opportunity(size="0.001", net_bps="20", profit_usd="0.02", **later), bench.clock())
    decision = bench.decider.conclude(case)
    assert (decision.outcome, decision.size, decision.net_bps) == ("execute", Decimal("0.001"), 20)
    assert (decision.detected_ns, decision.expires_ns) == (later["detected_ns"], later["expires_ns"])
    assert case.opportunity is opened, "the audit has both"


async def test_nothing_is_executed_where_its_newest_state_names_another_market(workbench, opportunity):
    bench = workbench()
    case = await bench.decider.consider(opportunity())
    elsewhere = opportunity().sell.model_dump() | {"symbol": "BTC-XYZ"}
    bench.newest.take(opportunity(phase="updated", sell=elsewhere, detected_ns=bench.clock.now_ns), bench.clock())
    decision = bench.decider.conclude(case)
    assert (decision.outcome, decision.reason, decision.sell.symbol) == (
        "hold",
        "unknown_name",
        case.opportunity.sell.symbol,
    )


async def test_a_name_outside_the_settings_is_rejected_unasked(workbench, opportunity):
    bench = workbench()
    leg = opportunity().buy.model_dump() | {"exchange": "mtgox"}
    decision = await bench.decide(opportunity(buy=leg))
    assert (decision.outcome, decision.reason) == ("reject", "unknown_name")
    assert bench.models.asked == []


async def test_without_keys_rules_only_holds_unless_told_otherwise(workbench, opportunity):
    for may, expected in ((False, ("hold", "rules_only", "no_keys")), (True, ("execute", "rules_only", "rules"))):
        bench = workbench(rules_only_may_execute=may)
        bench.models.keys.clear()
        bench.decider._keys = False
        decision = await bench.decide(opportunity())
        assert (decision.outcome, decision.mode, decision.reason) == expected


async def test_a_role_without_key_abstains(workbench, opportunity, configured):
    bench = workbench(threshold=800)
    bench.models.keys.discard(configured.roles["volatility"].provider)
    decision = await bench.decide(opportunity())
    assert (decision.outcome, decision.mode, decision.reason) == ("execute", "partial", "score")
    assert outcomes(decision) == ["ok", "ok", "skipped:disabled"]


async def test_when_the_risk_role_cannot_be_asked_nobody_is_paid_for_nothing(workbench, opportunity, configured):
    bench = workbench()
    bench.models.keys.discard(configured.roles["risk"].provider)
    decision = await bench.decide(opportunity())
    assert (decision.outcome, decision.reason) == ("hold", "risk_absent")
    assert bench.models.asked == []
    assert decision.panel.cost_usd == 0
    assert outcomes(decision) == ["unneeded", "skipped:disabled", "unneeded"]


async def test_an_asker_with_a_fault_abstains(workbench, opportunity):
    def broken():
        raise RuntimeError("sk-not-to-be-told")

    decision = await workbench(models={"volatility": broken}, threshold=900).decide(opportunity())
    assert (decision.outcome, decision.roles[2].outcome) == ("hold", "invalid")


async def test_a_panels_money_is_put_aside_in_one_change_of_its_file(workbench, opportunity):
    bench, changes = workbench(threshold=900), []
    book = bench.desk.budget._state.book_all

    def counted(wanted, *rest, **named):
        changes.append(len(wanted))
        return book(wanted, *rest, **named)

    bench.desk.budget._state.book_all = counted
    assert len((await bench.decide(opportunity())).roles) == 3
    assert changes == [3], "each takes a transaction, and the opportunity waits for it"


async def test_a_fault_of_the_budget_asks_nobody(workbench, opportunity, monkeypatch):
    bench = workbench(threshold=900)

    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(bench.desk.budget, "reserve_all", broken)
    decision = await bench.decide(opportunity())
    assert (decision.outcome, decision.reason, bench.models.asked) == ("hold", "budget", [])


async def test_a_fault_before_the_first_call_is_its_roles_alone(workbench, opportunity, monkeypatch):
    bench = workbench(threshold=900)
    worst_case = money.worst_case

    def broken(model, text, day):
        if '"role":"risk"' in text:
            raise ZeroDivisionError
        return worst_case(model, text, day)

    monkeypatch.setattr(money, "worst_case", broken)
    decision = await bench.decide(opportunity())
    assert (decision.outcome, decision.reason) == ("hold", "risk_absent")
    assert outcomes(decision)[:2] == ["ok", "invalid"]


async def test_a_kill_switch_that_cannot_be_looked_at_is_on(workbench, opportunity, monkeypatch, tmp_path):
    bench = workbench(kill_switch=tmp_path / "stop")

    def refused(self):
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.exists", refused)
    assert (await bench.decide(opportunity())).reason == "kill_switch"


async def test_without_money_no_model_is_asked(workbench, opportunity):
    bench = workbench(max_minute_usd=Decimal(0))
    decision = await bench.decide(opportunity())
    assert (decision.outcome, decision.mode, decision.reason) == ("hold", "rules_only", "budget")
    assert bench.models.asked == []


@pytest.mark.parametrize("failure", ["server", "network", "invalid", "auth", "rate_limited", "bad_request", "unsure"])
async def test_failed_models_abstain_and_never_execute(workbench, opportunity, failure):
    decision = await workbench(models=dict.fromkeys(ROLES, failure)).decide(opportunity())
    assert (decision.outcome, decision.reason) == ("hold", "risk_absent")
    assert all(record.answer is None for record in decision.roles)
    assert decision.p_edge is None


async def test_a_veto_rejects(workbench, opportunity):
    decision = await workbench(models={"risk": role_answer(veto=True)}).decide(opportunity())
    assert (decision.outcome, decision.reason) == ("reject", "veto")


async def hang():
    await asyncio.sleep(60)


async def test_a_model_that_hangs_is_late_and_the_decision_on_time(workbench, opportunity):
    decision = await workbench(models={"risk": hang}, panel_deadline_ms=400).decide(opportunity())
    assert (decision.outcome, decision.mode, decision.reason) == ("hold", "partial", "deadline")
    risk = decision.roles[1]
    assert risk.outcome == "late"
    assert risk.cost_usd > 0, "it may be billed: the reservation is charged"


@pytest.mark.parametrize(
    ("newer", "later_ms", "reason"),
    [
        ({"phase": "closed"}, 10, "closed"),
        ({"net_bps": "1"}, 10, "edge_gone"),
        ({}, 2_100, "silent"),
        ({"expires_ns": NOW_NS + 1000 * MS}, 1_500, "expired"),
    ],
)
async def test_the_last_check_uses_what_came_while_the_models_thought(workbench, opportunity, newer, later_ms, reason):
    bench = workbench()

    async def meanwhile():
        bench.clock.now_ns = NOW_NS + later_ms * MS
        if newer:
            bench.newest.take(
                opportunity(**{"phase": "updated", "detected_ns": NOW_NS + 5 * MS, **newer}), bench.clock()
            )
        return role_answer()

    bench.models.scripts[bench.models.roles["risk"]] = meanwhile
    decision = await bench.decide(opportunity())
    assert (decision.outcome, decision.reason) == ("hold", reason)


async def test_the_kill_switch_stops_calls_and_executions(workbench, opportunity, tmp_path):
    switch = tmp_path / "stop"
    bench = workbench(kill_switch=switch)

    async def switched():
        switch.touch()
        return role_answer()

    bench.models.scripts[bench.models.roles["risk"]] = switched
    decision = await bench.decide(opportunity())
    assert (decision.outcome, decision.reason, decision.mode) == ("hold", "kill_switch", "full")
    asked = len(bench.models.asked)
    decision = await bench.decide(opportunity(opportunity_id="b" * 32))
    assert (decision.outcome, decision.reason, decision.mode) == ("hold", "kill_switch", "rules_only")
    assert len(bench.models.asked) == asked
    switch.unlink()
    bench.models.scripts[bench.models.roles["risk"]] = role_answer()
    assert (await bench.decide(opportunity(opportunity_id="c" * 32))).outcome == "execute"


async def test_a_provider_that_asked_us_to_wait_is_left_alone(workbench, opportunity):
    bench = workbench(models=dict.fromkeys(ROLES, "rate_limited"))
    first = await bench.decide(opportunity())
    second = await bench.decide(opportunity(opportunity_id="b" * 32))
    assert len(bench.models.asked) == 3
    assert set(outcomes(first)) == {"rate_limited"}
    assert set(outcomes(second)) == {"skipped:not_before"}
    assert second.outcome == "hold"


# ------------------------------------------------ one question at a time, and not the same one twice


async def test_the_same_gap_again_within_a_moment_uses_the_same_answers(workbench, opportunity):
    bench = workbench(verdict_ttl_ms=3_000)
    first = await bench.decide(opportunity())
    bench.clock.now_ns += 2_000 * MS
    fresh = {"opened_ns": bench.clock.now_ns - MS, "detected_ns": bench.clock.now_ns - MS}
    again = await bench.decide(opportunity(opportunity_id="b" * 32, **fresh))
    assert (again.outcome, again.mode, again.cached_from) == ("execute", "cached", first.decision_id)
    assert again.panel.cost_usd == 0, "paid for already"
    assert len(bench.models.asked) == 3
    other_numbers = await bench.decide(opportunity(opportunity_id="c" * 32, net_bps="60", **fresh))
    assert other_numbers.mode == "full"
    bench.clock.now_ns += 3_001 * MS
    fresh = {"opened_ns": bench.clock.now_ns - MS, "detected_ns": bench.clock.now_ns - MS}
    late = await bench.decide(opportunity(opportunity_id="d" * 32, expires_ns=bench.clock.now_ns + 5_000 * MS, **fresh))
    assert late.mode == "full"


@pytest.mark.parametrize("way", ["at once", "in its turn"])
async def test_with_no_time_for_the_panel_what_it_said_a_moment_ago_counts(workbench, opportunity, way):
    bench = workbench(verdict_ttl_ms=3_000)
    first = await bench.decide(opportunity())
    bench.clock.now_ns += 1_000 * MS
    brief = {"detected_ns": bench.clock.now_ns - MS, "expires_ns": bench.clock.now_ns + 200 * MS}
    again = opportunity(opportunity_id="b" * 32, **brief)
    bench.newest.take(again, bench.clock())
    case = bench.decider.quick(again) if way == "at once" else await bench.decider.consider(again)
    decision = bench.decider.conclude(case)
    assert (decision.outcome, decision.mode, decision.cached_from) == ("execute", "cached", first.decision_id)
    other = bench.decider.quick(opportunity(opportunity_id="c" * 32, net_bps="60", **brief))
    assert bench.decider.conclude(other).reason == "no_time"


async def test_answers_of_a_panel_in_which_something_failed_are_not_used_again(workbench, opportunity):
    bench = workbench(models={"volatility": "server"}, threshold=500)
    assert (await bench.decide(opportunity())).mode == "partial"
    bench.models.scripts[bench.models.roles["volatility"]] = role_answer()
    again = await bench.decide(opportunity(opportunity_id="b" * 32))
    assert again.mode != "cached"


async def test_what_was_superseded_while_it_waited_is_not_asked_about(workbench, opportunity):
    bench = workbench(panel_deadline_ms=1_000)
    release = asyncio.Event()

    async def wait():
        await release.wait()
        return role_answer()

    for role in ROLES:
        bench.models.scripts[bench.models.roles[role]] = wait
    flown, waiting, newer = (
        opportunity(opportunity_id=letter * 32, opened_ns=NOW_NS - 100 * MS + n) for n, letter in enumerate("abc")
    )
    bench.newest.take(flown, bench.clock())
    first = asyncio.create_task(bench.decide(flown))
    while len(bench.models.asked) < 3:  # noqa: ASYNC110
        await asyncio.sleep(0)
    second = asyncio.create_task(bench.decide(waiting))
    await asyncio.sleep(0)
    bench.newest.take(newer, bench.clock())
    release.set()
    assert (await first).outcome == "execute"
    found = await second
    assert (found.outcome, found.reason) == ("hold", "superseded")
    assert len(bench.models.asked) == 3, "single flight: nobody else was asked meanwhile"


async def test_no_more_panels_than_allowed_run_at_once(workbench, opportunity):
    bench = workbench(max_panels_in_flight=2)
    running, most = 0, 0

    async def count():
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return role_answer()

    bench.models.scripts[bench.models.roles["risk"]] = count

    coins = ["BTC", "ETH", "SOL"]
    about = [of_coin(opportunity, coin, opportunity_id=coin[0] * 32) for coin in coins]
    found = await asyncio.gather(*map(bench.decide, about))
    assert {decision.reason for decision in found} == {"score"}
    assert most == 2


def test_newest_keeps_the_latest_and_forgets_the_oldest(opportunity):
    newest = Newest(most=2)
    first, later = opportunity(opportunity_id="1", phase="closed"), opportunity(opportunity_id="1", phase="updated")
    newest.take(first, NOW_NS)
    newest.take(later.model_copy(update={"detected_ns": first.detected_ns - 1}), NOW_NS)
    assert newest.get(later).phase == "closed"
    newest.take(opportunity(opportunity_id="2"), NOW_NS)
    newest.take(opportunity(opportunity_id="3"), NOW_NS)
    assert newest.get(later) is later, "forgotten: the message itself"
    second = opportunity(opportunity_id="3")
    newest.take(opportunity(opportunity_id="4", detected_ns=NOW_NS + 10**14, expires_ns=NOW_NS + 10**15), NOW_NS)
    assert newest.get(second) is not second, "a clock that is ahead drives nothing out"
    newest.take(opportunity(opportunity_id="5"), NOW_NS + 66_000 * MS)
    assert newest.get(second) is second, "what expired a minute ago is"


def test_what_was_read_later_supersedes_whatever_its_clock_says(opportunity):
    newest = Newest()
    old, new = opportunity(opportunity_id="1"), opportunity(opportunity_id="2", opened_ns=1)
    newest.take(old, NOW_NS)
    newest.take(new, NOW_NS)
    newest.take(old.model_copy(update={"phase": "updated"}), NOW_NS)
    assert newest.superseded(old)
    assert not newest.superseded(new)


async def test_a_case_keeps_the_terms_that_it_began_with(workbench, opportunity, configured):
    """Other weights come while models think: what stands under the old terms need not stand under the new ones."""
    bench = workbench(verdict_ttl_ms=60_000)
    entries = [
        Entry(
            role=role,
            model=chosen.model,
            prompt_version=chosen.prompt,
            n=500,
            base_rate=0.5,
            brier=0.25,
            bss=0.1,
            weight=0.1,
            calibration=[(0.0, 0.1), (1.0, 0.2)],
        )
        for role, chosen in configured.roles.items()
    ]
    weights = Weights(entries=entries, horizon_ms=1000, since_ns=0, until_ns=1, made_ns=1)
    pessimistic = Terms.of(bench.desk.settings, weights)
    before = bench.decider.terms

    async def meanwhile():
        bench.decider.change(pessimistic)
        return role_answer()

    bench.models.scripts[bench.models.roles["risk"]] = meanwhile
    bench.newest.take(opportunity(), bench.clock())
    decision = bench.decider.conclude(await bench.decider.consider(opportunity()))
    assert (decision.outcome, decision.panel.version) == ("execute", before.version)
    later = await bench.decide(opportunity(opportunity_id="b" * 32))
    assert (later.outcome, later.reason, later.mode) == ("hold", "p_low", "full"), "asked anew: no answer is reused"
    assert later.panel.version == pessimistic.version


# ------------------------------------------------ shadow


async def test_a_candidate_in_shadow_is_asked_after_the_decision_and_counts_nowhere(workbench, opportunity, configured):
    candidate = Candidate(provider="openai", model="gpt-5.4-mini", stage="shadow", share=1.0)
    risk = configured.roles["risk"].model_copy(update={"candidate": candidate})
    bench = workbench(configured.model_copy(update={"roles": {**configured.roles, "risk": risk}}))
    bench.models.scripts["gpt-5.4-mini"] = role_answer(veto=True)
    bench.newest.take(opportunity(), bench.clock())
    case = await bench.decider.consider(opportunity())
    decision = bench.decider.conclude(case)
    assert decision.outcome == "execute"
    assert bench.decider.shadowed(case) == ["risk"]
    before = bench.desk.budget.spent(NOW_NS)
    shadow = await bench.decider.shadow(case, decision, "risk")
    assert (shadow.call.via, shadow.call.model_asked, shadow.call.answer.veto) == ("shadow", "gpt-5.4-mini", True)
    assert shadow.call.role == "risk"
    after = bench.desk.budget.spent(NOW_NS)
    assert after.shadow.spent > before.shadow.spent
    assert after.day.spent == before.day.spent, "a budget of its own"


# ------------------------------------------------ many at once

WIDE = dict.fromkeys(("max_call_usd", "max_opportunity_usd", "max_minute_usd", "max_day_usd"), Decimal(100))
COINS = [f"C{n}" for n in range(1000)]
OTHER = ModelChoice(provider="openai", model="gpt-5.4-mini")
DAY = datetime.datetime.fromtimestamp(NOW_NS / 1e9, datetime.UTC).date()


@pytest.mark.parametrize(
    ("cap", "usd", "last_usd"),
    [  # the roles cost 0.0003, 0.0010 and 0.0007, and 0.0022 in the place of each
        ("minute", "0.2512", "0.003"),  # enough for 125 panels and two of the next one's calls
        ("day", "0.2512", "0.003"),
        ("gemini", "0.1", "0.001"),
        ("opportunity", "0.0045", "0.0005"),  # all roles, and one of them twice
        ("opportunity", "0.0015", "0.0005"),  # two roles
        ("call", "0.0009", "0.0003"),
    ],
)
def test_a_thousand_at_once_never_pass_a_cap(workbench, opportunity, configured, cap, usd, last_usd):
    """A thousand routes, whose models think at the same time; some answer, some fail, some are cut off.

    `cap` is the only one that binds, and all but `last_usd` of it is spent. What a model was asked and what it may bill
    for that is counted here too, beside the book.
    """
    free = {"burst": 10_000, "tokens_per_minute": 10**9, "max_day_usd": Decimal(100)}
    providers = {name: provider.model_copy(update=free) for name, provider in configured.providers.items()}
    roles = {role: chosen.model_copy(update={"fallback": OTHER}) for role, chosen in configured.roles.items()}
    caps = dict(WIDE)
    if cap in providers:
        providers[cap] = providers[cap].model_copy(update={"max_day_usd": Decimal(usd)})
    else:
        caps[f"max_{cap}_usd"] = Decimal(usd)
    wide = watching(configured, COINS).model_copy(update={"providers": providers, "roles": roles})
    patient = {"consecutive": 9_999, "error_min_calls": 9_999, "error_min_calls_few": 9_999, "slow_min_calls": 9_999}
    provider_of = {choice.model: choice.provider for choice in (*roles.values(), OTHER)}
    owed: defaultdict[str, Decimal] = defaultdict(Decimal)
    peak: defaultdict[str, Decimal] = defaultdict(Decimal)
    thinking = most_at_once = 0

    async def main(loop):
        bench = workbench(
            wide, guards=patient, monotonic=loop.time, max_panels_in_flight=256, panel_deadline_ms=1_500, **caps
        )

        def look():
            spent = bench.desk.budget.spent(NOW_NS)
            lines = {"minute": spent.minute, "day": spent.day, **spent.providers}
            for name, line in lines.items():
                assert owed[name] <= line.spent <= line.cap, name
                peak[name] = max(peak[name], line.spent)
            return spent

        async def think():
            nonlocal thinking, most_at_once
            number = len(bench.models.asked)
            model, system, user = bench.models.asked[-1]
            amount = money.worst_case(wide.models[model], system + user, DAY)
            about = ("minute", "day", provider_of[model], orjson.loads(user)["base"])
            for name in about:
                owed[name] += amount
            assert amount <= caps["max_call_usd"]
            assert owed[about[-1]] <= caps["max_opportunity_usd"]
            peak["call"], peak["opportunity"] = max(peak["call"], amount), max(peak["opportunity"], owed[about[-1]])
            look()
            thinking += 1
            most_at_once = max(most_at_once, thinking)
            try:
                await asyncio.sleep(10 if number % 5 == 0 else 0.05 * (number % 4))
            finally:
                thinking -= 1
            if number % 3:
                return role_answer()
            for name in about:  # it says itself that it did nothing
                owed[name] -= amount
            return "server"

        bench.models.scripts |= dict.fromkeys(provider_of, think)

        async def decide(n):
            asked = of_coin(opportunity, COINS[n], opportunity_id=f"{n:032x}")
            bench.newest.take(asked, NOW_NS)
            return bench.decider.conclude(await bench.decider.consider(asked))

        found = await asyncio.gather(*map(decide, range(1000)))
        return bench, found, look()

    bench, found, spent = virtual.run(main)
    assert Decimal(usd) - Decimal(last_usd) < peak[cap] <= Decimal(usd), "it was nearly all spent, and no more"
    assert most_at_once > 100
    costs = [decision.panel.cost_usd for decision in found]
    assert sum(costs) == spent.day.spent, "every cent stands in a decision"
    assert max(costs) <= caps["max_opportunity_usd"]
    calls = [call for decision in found for role in decision.roles for call in (role, *role.others)]
    became = Counter(call.outcome for call in calls)
    assert min(became[name] for name in ("ok", "server", "skipped:budget")) > 10
    assert became["late"] + became["unneeded"] > 10
    assert len(bench.models.asked) > 100
