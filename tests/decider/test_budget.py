"""No cap is ever passed: whatever the providers report, whatever the clock does, whoever else spends or is killed."""

import asyncio
import contextlib
import datetime
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.decider import budget as money
from services.decider.budget import Budget, Reservation
from services.decider.state import DAY_NS, SECOND_NS, State
from shared import settings

CONFIGURED = settings.load()
GEMINI = CONFIGURED.models["gemini-3.5-flash-lite"]
DEEPSEEK = CONFIGURED.models["deepseek-flash"]
DAY = datetime.date(2026, 11, 21)
NOW_NS = 20_778 * DAY_NS + 43_200 * SECOND_NS
D = Decimal
PICO = D("1e-12")


def limits(provider="1", shadow="1", **caps):
    """Settings with these caps in USD."""
    caps = {"max_call_usd": "0.01", "max_opportunity_usd": "0.02", "max_minute_usd": "1", "max_day_usd": "1"} | caps
    return CONFIGURED.model_copy(
        update={
            "decider": CONFIGURED.decider.model_copy(update={name: D(usd) for name, usd in caps.items()}),
            "guards": CONFIGURED.guards.model_copy(update={"shadow_max_day_usd": D(shadow)}),
            "providers": {
                name: one.model_copy(update={"max_day_usd": D(provider)}) for name, one in CONFIGURED.providers.items()
            },
        }
    )


@pytest.fixture
def state():
    with State(None) as opened:
        yield opened


@pytest.fixture
def file(tmp_path):
    return tmp_path / "decider.sqlite"


# ---------------------------------------------------------------- tokens and prices


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 50),
        ("abc def ghi", 54),  # 11 small letters and blanks
        ("0.0123", 56),  # each digit and sign may be a token
        ("BTC-USDT", 58),
        ("价差", 56),  # three bytes each
        ("\ud800", 53),  # half a character: a client of ours would not send it, but it must not raise
    ],
)
def test_estimated_tokens_by_hand(text, tokens):
    assert money.estimated_tokens(text) == tokens


@given(st.text(), st.text())
def test_more_text_is_never_estimated_lower_and_no_character_is_free(text, more):
    assert money.estimated_tokens(text + more) >= money.estimated_tokens(text)
    assert money.estimated_tokens(text) - 50 >= len(text) / 3


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        # (text, what public tokenizers (o200k, cl100k, DeepSeek's) counted at most)
        (
            "You judge one price gap between two spot exchanges. Both legs are traded at once with prefunded balances",
            20,
        ),
        ('{"net_bps":13.4364,"naive_bps":84.7434,"closed_loop_bps":76.3775,"profit_usd":25.51}', 35),
        ("ราคาของเหรียญนี้เปลี่ยนแปลง" * 20, 520),
        ("🦄🧿𓀀" * 50, 500),
    ],
)
def test_the_estimate_is_above_what_tokenizers_count(text, counted):
    assert money.estimated_tokens(text) - money.FRAME_TOKENS >= counted


# "x" * 99 is 33 tokens and 50 of the frame; with a JSON schema 400 more.
@pytest.mark.parametrize(
    ("read", "written", "tokens"),
    [
        (10, 5, (10, 5)),
        (-3, -1, (0, 0)),
        (10**12, 10**12, (483, 160)),
        (None, None, (483, 160)),
        ("7", True, (483, 160)),
        (1.5, float("nan"), (483, 160)),
    ],
)
def test_reported_usage_is_a_claim(read, written, tokens):
    usage = SimpleNamespace(prompt_tokens=read, completion_tokens=written)
    found = money.clamp(GEMINI, "x" * 99, usage)
    assert (found.input, found.cached, found.out) == (tokens[0], 0, tokens[1])


@pytest.mark.parametrize(
    ("fields", "cached"),
    [
        ({"prompt_tokens_details": SimpleNamespace(cached_tokens=30)}, 30),
        ({"prompt_tokens_details": {"cached_tokens": 30}}, 30),
        ({"prompt_cache_hit_tokens": 30}, 30),
        ({"prompt_cache_hit_tokens": 30, "prompt_tokens_details": {"cached_tokens": 20}}, 20),
        ({"prompt_cache_hit_tokens": 10**9}, 80),
        ({"prompt_cache_hit_tokens": -1}, 0),
        ({"prompt_cache_hit_tokens": True}, 0),
        ({"prompt_cache_hit_tokens": "80", "prompt_tokens_details": []}, 0),
        ({"prompt_tokens": None, "prompt_cache_hit_tokens": 30}, 0),
    ],
)
def test_only_a_cache_that_is_clearly_claimed_lowers_the_cost(fields, cached):
    usage = SimpleNamespace(**({"prompt_tokens": 80, "completion_tokens": 5} | fields))
    assert money.clamp(DEEPSEEK, "x" * 99, usage).cached == cached


def test_tokens_thought_but_not_answered_cost_like_the_answer():
    usage = SimpleNamespace(prompt_tokens=80, completion_tokens=5, total_tokens=125)
    assert money.clamp(GEMINI, "x" * 99, usage).out == 45
    usage = SimpleNamespace(prompt_tokens=80, completion_tokens=50, total_tokens=3)
    assert money.clamp(GEMINI, "x" * 99, usage).out == 50


@pytest.mark.parametrize("usage", [None, [], "usage", 7, {}])
def test_no_usage_is_charged_in_full(usage):
    found = money.clamp(DEEPSEEK, "x" * 99, usage)
    assert money.cost(DEEPSEEK, found, DAY) == money.worst_case(DEEPSEEK, "x" * 99, DAY)


ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3))


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(
    ("prompt_tokens", "completion_tokens", "total_tokens", "prompt_cache_hit_tokens", "prompt_tokens_details"),
    ANYTHING | st.dictionaries(st.just("cached_tokens"), ANYTHING),
)), st.text(max_size=50), st.sampled_from(sorted(CONFIGURED.models)))  # fmt: skip
def test_no_usage_costs_less_than_nothing_or_more_than_the_worst_case(usage, text, name):
    model = CONFIGURED.models[name]
    tokens = money.clamp(model, text, usage)
    assert 0 <= tokens.cached <= tokens.input
    assert 0 <= money.cost(model, tokens, DAY) <= money.worst_case(model, text, DAY)


def test_cost_by_hand():
    usage = SimpleNamespace(
        prompt_tokens=80, completion_tokens=50, prompt_tokens_details=SimpleNamespace(cached_tokens=30)
    )
    found = money.clamp(GEMINI, "x" * 99, usage)
    # 50 fresh at 0.30, 30 cached at 0.03, 50 written at 2.50 USD a million
    assert money.cost(GEMINI, found, DAY) == D("0.0001409")
    # 33 + 50 + 400 in at 0.30, 160 out at 2.50
    assert money.worst_case(GEMINI, "x" * 99, DAY) == D("0.0005449")


def test_the_price_is_that_of_the_day():
    cheap = GEMINI.prices[0].model_copy(
        update={"valid_from": datetime.date(2026, 12, 1), "input": D(0), "output": D(1)}
    )
    model = GEMINI.model_copy(update={"prices": (*GEMINI.prices, cheap)})
    assert money.worst_case(model, "x" * 99, datetime.date(2026, 11, 30)) == D("0.0005449")
    assert money.worst_case(model, "x" * 99, datetime.date(2026, 12, 1)) == (483 * D("0.03") + 160) / 1_000_000


# ---------------------------------------------------------------- the caps, beside a naive book


@dataclass
class Entry:
    at_ns: int
    provider: str
    shadow: bool
    usd: Decimal


class Naive:
    """Keeps every reservation for ever, and adds them all up each time."""

    def __init__(self, caps):
        self.caps = caps
        self.entries: list[Entry] = []

    def total(self, since_ns, want):
        return sum((one.usd for one in self.entries if one.at_ns >= since_ns and want(one)), D(0))

    def minute(self, now_ns):
        return self.total((now_ns // SECOND_NS - 60) * SECOND_NS, lambda one: not one.shadow)

    def day(self, now_ns, want):
        return self.total(now_ns // DAY_NS * DAY_NS, want)

    def reserve(self, provider, usd, on_opportunity, now_ns, shadow):
        decider, guards = self.caps.decider, self.caps.guards
        day = self.day(now_ns, lambda one: one.shadow == shadow)
        allowed = usd <= decider.max_call_usd
        allowed &= self.day(now_ns, lambda one: one.provider == provider) + usd <= (
            self.caps.providers[provider].max_day_usd
        )
        if shadow:
            allowed &= day + usd <= guards.shadow_max_day_usd
        else:
            allowed &= day + usd <= decider.max_day_usd
            allowed &= self.minute(now_ns) + usd <= decider.max_minute_usd
            allowed &= on_opportunity + usd <= decider.max_opportunity_usd
        if not allowed:
            return None
        self.entries.append(Entry(now_ns, provider, shadow, usd))
        return self.entries[-1]


USD = st.decimals("0", "0.012", places=6)
REPORTED = st.decimals("-1", "0.02", places=6) | st.sampled_from([D("NaN"), D("Infinity"), D(10) ** 40, D(0)])
CLOCK = (
    st.integers(0, 20 * SECOND_NS)
    | st.integers(-100 * SECOND_NS, 100 * SECOND_NS)
    | st.sampled_from([-2 * DAY_NS, -DAY_NS, DAY_NS, 59 * SECOND_NS, 60 * SECOND_NS, 43_200 * SECOND_NS])
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["openai", "gemini"]),
        USD,
        st.decimals("0", "0.02", places=6),
        st.sampled_from([False, False, True]),
        CLOCK,
        st.lists(st.tuples(st.integers(0, 30), REPORTED), max_size=2),
    ),
    max_size=60,
)


@given(STEPS)
def test_i5_no_cap_is_passed_under_any_usage_any_order_of_settling_and_any_clock(steps):
    caps = limits(max_minute_usd="0.05", max_day_usd="0.1", shadow="0.02", provider="0.07")
    naive, now_ns = Naive(caps), NOW_NS
    made: list[tuple[Reservation, Entry]] = []
    with State(None) as state:
        budget = Budget(caps, state)
        for provider, usd, on_opportunity, shadow, step_ns, settled in steps:
            now_ns = max(0, now_ns + step_ns)
            reservation = budget.reserve(provider, usd, on_opportunity, now_ns, shadow=shadow)
            entry = naive.reserve(provider, usd, on_opportunity, now_ns, shadow)
            assert (reservation is None) == (entry is None)
            if reservation is not None:
                made.append((reservation, entry))
            for which, actual in settled:
                if which < len(made):
                    reservation, entry = made[which]
                    if not reservation.settled and actual.is_finite():
                        entry.usd = min(max(actual, D(0)), entry.usd)
                    budget.settle(reservation, actual, now_ns)
                    assert (reservation.amount, reservation.settled) == (entry.usd, True)
            found = budget.spent(now_ns)
            assert found.minute.spent == naive.minute(now_ns)
            assert found.day.spent == naive.day(now_ns, lambda one: not one.shadow)
            assert found.shadow.spent == naive.day(now_ns, lambda one: one.shadow)
            assert found.providers["openai"].spent == naive.day(now_ns, lambda one: one.provider == "openai")
            # And by no rule of the book's: any 60 seconds and any day that anything was booked in.
            for one in naive.entries:
                window = [e for e in naive.entries if not e.shadow and 0 <= e.at_ns - one.at_ns < 60 * SECOND_NS]
                assert sum(e.usd for e in window) <= caps.decider.max_minute_usd
                same = [e for e in naive.entries if e.at_ns // DAY_NS == one.at_ns // DAY_NS]
                assert sum(e.usd for e in same if not e.shadow) <= caps.decider.max_day_usd
                assert sum(e.usd for e in same if e.shadow) <= caps.guards.shadow_max_day_usd
                assert sum(e.usd for e in same if e.provider == one.provider) <= D("0.07")


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.sampled_from(["openai", "gemini", "nobody"]), USD | st.just(D("NaN"))), max_size=4),
            st.decimals("0", "0.02", places=6),
            st.sampled_from([False, False, True]),
        ),
        max_size=12,
    )
)
def test_several_at_once_come_to_the_same_as_one_after_the_other(panels):
    caps = limits(max_minute_usd="0.05", max_day_usd="0.1", shadow="0.02", provider="0.04")
    with State(None) as state, State(None) as other:
        together, single = Budget(caps, state), Budget(caps, other)
        for wanted, on_opportunity, shadow in panels:
            spent, expected = on_opportunity, []
            for provider, usd in wanted:
                expected.append(single.reserve(provider, usd, spent, NOW_NS, shadow=shadow))
                spent += usd if expected[-1] else 0
            found = together.reserve_all(wanted, on_opportunity, NOW_NS, shadow=shadow)
            assert found == expected
            assert together.spent(NOW_NS) == single.spent(NOW_NS)


def test_what_cannot_be_written_is_refused_whole(file):
    with State(file) as state, sqlite3.connect(file, isolation_level=None) as other:
        budget = Budget(limits(), state)
        other.execute("BEGIN IMMEDIATE")
        assert budget.reserve_all([("openai", D("0.001")), ("gemini", D("0.001"))], D(0), NOW_NS) == [None, None]
        other.execute("ROLLBACK")
        assert budget.spent(NOW_NS).day.spent == 0


@pytest.mark.parametrize(
    ("amount", "on_opportunity", "allowed"),
    [
        ("0.01", "0", True),
        ("0.010000000001", "0", False),
        ("0.01", "0.01", True),
        ("0.01", "0.010000000001", False),
        ("0.0099999999999999", "0", True),
        ("0.0100000000000001", "0", False),  # rounded up to the next pico-USD
        ("-0.001", "0", False),
        ("NaN", "0", False),
        ("sNaN", "0", False),
        ("Infinity", "0", False),
        ("1e50", "0", False),
        ("0.001", "NaN", False),
        ("0.001", "-0.001", False),
    ],
)
def test_caps_per_call_and_opportunity(state, amount, on_opportunity, allowed):
    reservation = Budget(limits(), state).reserve("openai", D(amount), D(on_opportunity), NOW_NS)
    assert (reservation is not None) is allowed


def test_a_provider_that_is_in_no_setting_gets_nothing(state):
    assert Budget(limits(), state).reserve("nobody", D("0.001"), D(0), NOW_NS) is None


def test_the_minute_gives_money_back_after_sixty_seconds_and_not_before(state):
    budget = Budget(limits(max_minute_usd="0.01"), state)
    assert budget.reserve("openai", D("0.01"), D(0), NOW_NS + 999_999_999)
    assert budget.reserve("openai", D("0.001"), D(0), NOW_NS + 60 * SECOND_NS) is None
    assert budget.reserve("openai", D("0.01"), D(0), NOW_NS + 61 * SECOND_NS)


def test_the_day_ends_at_midnight_utc(state):
    budget, midnight = Budget(limits(max_day_usd="0.01"), state), (NOW_NS // DAY_NS + 1) * DAY_NS
    assert budget.reserve("openai", D("0.01"), D(0), NOW_NS)
    assert budget.spent(midnight - 1).day_ends_ns == midnight
    assert budget.reserve("openai", D("0.001"), D(0), midnight - 1) is None
    assert budget.reserve("openai", D("0.01"), D(0), midnight)


def test_the_shadow_has_its_own_day_but_the_providers_is_shared(state):
    budget = Budget(limits(max_minute_usd="0.01", max_day_usd="0.01", shadow="0.015", provider="0.02"), state)
    assert budget.reserve("openai", D("0.01"), D(0), NOW_NS)
    assert budget.reserve("openai", D("0.01"), D(9), NOW_NS, shadow=True)
    assert budget.reserve("openai", D("0.001"), D(0), NOW_NS, shadow=True) is None  # the provider's day
    assert budget.reserve("gemini", D("0.006"), D(0), NOW_NS, shadow=True) is None  # the shadow's day
    assert budget.reserve("gemini", D("0.005"), D(0), NOW_NS, shadow=True)
    found = budget.spent(NOW_NS)
    assert (found.day.spent, found.minute.spent, found.shadow.spent) == (D("0.01"), D("0.01"), D("0.015"))
    assert (found.providers["openai"].spent, found.providers["openai"].left) == (D("0.02"), D(0))


def test_a_clock_that_is_set_back_frees_nothing(state):
    budget = Budget(limits(max_minute_usd="0.01", max_day_usd="0.02"), state)
    assert budget.reserve("openai", D("0.01"), D(0), NOW_NS)
    for back_ns in (SECOND_NS, 3_600 * SECOND_NS, DAY_NS, 400 * DAY_NS):
        found = budget.spent(NOW_NS - back_ns)
        assert (found.minute.spent, found.day.spent) == (D("0.01"), D("0.01"))
        assert found.booked_until_ns > NOW_NS
        assert budget.reserve("openai", PICO, D(0), NOW_NS - back_ns) is None


def test_settling_is_exact_rounds_up_and_counts_once(state):
    budget = Budget(limits(), state)
    reservation = budget.reserve("openai", D("0.01"), D(0), NOW_NS)
    budget.settle(reservation, D("0.0000000000001"), NOW_NS)
    assert budget.spent(NOW_NS).day.spent == PICO
    budget.settle(reservation, D(0), NOW_NS)
    assert budget.spent(NOW_NS).day.spent == reservation.amount == PICO
    assert reservation.reserved == D("0.01")


@pytest.mark.parametrize(
    ("actual", "counts"),
    [("-5", "0"), ("0.02", "0.01"), ("NaN", "0.01"), ("sNaN", "0.01"), ("-Infinity", "0.01"), ("1e60", "0.01")],
)
def test_settling_by_nonsense_never_gives_back_more_than_was_reserved(state, actual, counts):
    budget = Budget(limits(), state)
    budget.settle(budget.reserve("openai", D("0.01"), D(0), NOW_NS), D(actual), NOW_NS)
    assert budget.spent(NOW_NS).day.spent == D(counts)


def test_caps_beyond_all_money_are_no_limit_but_no_error(state):
    huge = limits(max_call_usd="1e40", max_opportunity_usd="1e40", max_minute_usd="1e40", max_day_usd="1e40")
    budget = Budget(huge, state)
    assert budget.reserve("openai", D("0.5"), D(0), NOW_NS)
    assert budget.reserve("openai", D("0.50001"), D(0), NOW_NS) is None  # the provider's day is 1 USD
    assert budget.reserve("openai", D("1e39"), D(0), NOW_NS) is None


# ---------------------------------------------------------------- several at once


EXACTLY = 200
SMALL = D("0.001")


def test_a_thousand_reservations_of_several_threads_take_exactly_the_cap(file):
    with State(file) as state:
        budget = Budget(limits(max_minute_usd="9", max_day_usd="0.2"), state)
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda _: budget.reserve("openai", SMALL, D(0), NOW_NS), range(1000)))
        assert sum(one is not None for one in made) == EXACTLY
        assert budget.spent(NOW_NS).day.spent == D("0.2")


async def test_a_thousand_reservations_of_tasks_settled_in_between_never_pass_the_cap(file):
    with State(file) as state:
        budget = Budget(limits(max_minute_usd="0.2", max_day_usd="9"), state)
        most = D(0)

        async def call(number):
            nonlocal most
            reservation = await asyncio.to_thread(budget.reserve, "openai", SMALL, D(0), NOW_NS)
            most = max(most, budget.spent(NOW_NS).minute.spent)
            if reservation is None:
                return 0
            both = (asyncio.to_thread(budget.settle, reservation, SMALL / 2, NOW_NS) for _ in range(2))
            await asyncio.gather(*both)
            return 1

        made = sum(await asyncio.gather(*(call(number) for number in range(1000))))
        assert EXACTLY <= made <= 2 * EXACTLY
        assert most <= D("0.2")
        assert budget.spent(NOW_NS).minute.spent == made * SMALL / 2


PROGRAM = """
import sys
from decimal import Decimal
from pathlib import Path
from services.decider.budget import Budget
from services.decider.state import State
from shared import process, settings

file, now_ns, day_usd, settle = Path(sys.argv[1]), int(sys.argv[2]), Decimal(sys.argv[3]), sys.argv[4] == "settle"
loaded = settings.load()
process.setup_logging(loaded.log)  # standard output is for what was spent
caps = {"max_minute_usd": Decimal(99), "max_day_usd": day_usd}
providers = {name: one.model_copy(update={"max_day_usd": Decimal(99)}) for name, one in loaded.providers.items()}
loaded = loaded.model_copy(update={"decider": loaded.decider.model_copy(update=caps), "providers": providers})
budget = Budget(loaded, State(file))
sys.stdin.readline()
refused = 0
while refused < 30:
    reservation = budget.reserve("openai", Decimal("0.001"), Decimal(0), now_ns)
    refused = refused + 1 if reservation is None else 0
    if reservation is not None:
        if settle:
            budget.settle(reservation, Decimal("0.0005"), now_ns)
        print(reservation.amount, flush=True)
"""


def spender(file, day_usd, how):
    command = [sys.executable, "-c", PROGRAM, str(file), str(NOW_NS), day_usd, how]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", ["keep", "settle"])
def test_three_processes_take_exactly_the_cap_together(file, how):
    spenders = [spender(file, "0.4", how) for _ in range(3)]
    for one in spenders:
        one.stdin.write("go\n")
        one.stdin.flush()
    spent = [sum(D(line) for line in one.communicate(timeout=60)[0].split()) for one in spenders]
    assert [one.returncode for one in spenders] == [0, 0, 0]
    with State(file) as state:
        found = Budget(limits(max_day_usd="0.4"), state).spent(NOW_NS).day
    assert found.spent == sum(spent)
    assert D("0.399") < found.spent <= D("0.4")  # a last call of half a thousandth may not fit


def test_what_a_killed_process_had_reserved_stays_counted_and_the_file_usable(file):
    one = spender(file, "99", "keep")
    one.stdin.write("go\n")
    one.stdin.flush()
    lines = [one.stdout.readline() for _ in range(300)]  # in the middle of its work
    one.send_signal(signal.SIGKILL)
    lines += one.stdout.read().splitlines(keepends=True)
    one.communicate(timeout=30)
    assert one.returncode == -signal.SIGKILL
    printed = sum(line.endswith("\n") for line in lines)
    with State(file, read_only=True) as state:
        found = Budget(limits(), state).spent(NOW_NS).day.spent
    assert found in (printed * SMALL, (printed + 1) * SMALL)  # the last one may not have been printed any more
    with State(file) as state:
        budget = Budget(limits(max_minute_usd="99", max_day_usd="99", provider="99"), state)
        assert budget.spent(NOW_NS).day.spent == found
        assert budget.reserve("openai", SMALL, D(0), NOW_NS)
        assert budget.spent(NOW_NS).day.spent == found + SMALL


def test_a_restart_forgets_nothing(file):
    caps = limits(max_minute_usd="0.015")
    with State(file) as state:
        budget = Budget(caps, state)
        budget.settle(budget.reserve("openai", D("0.01"), D(0), NOW_NS), D("0.005"), NOW_NS)
        assert budget.reserve("gemini", D("0.01"), D(0), NOW_NS)
    with State(file) as state:
        budget = Budget(caps, state)
        found = budget.spent(NOW_NS)
        assert found.minute.spent == found.day.spent == D("0.015")
        assert (found.providers["openai"].spent, found.providers["gemini"].spent) == (D("0.005"), D("0.01"))
        assert budget.reserve("openai", PICO, D(0), NOW_NS) is None


# ---------------------------------------------------------------- a book that cannot be written


@contextlib.contextmanager
def locked(file, state):
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@contextlib.contextmanager
def read_only(file, state):
    state._db.execute("PRAGMA query_only = 1")  # SQLite's own refusal, as on a file system gone read-only
    yield
    state._db.execute("PRAGMA query_only = 0")


@contextlib.contextmanager
def removed(file, state):
    moved = file.with_name("moved")
    file.rename(moved)
    yield
    moved.rename(file)


@contextlib.contextmanager
def replaced(file, state):
    moved = file.with_name("moved")
    file.rename(moved)
    file.write_bytes(moved.read_bytes())
    yield
    moved.replace(file)


@pytest.mark.parametrize("fault", [locked, read_only, removed, replaced])
def test_money_is_refused_while_the_book_cannot_be_written_and_what_is_out_counts_in_full(file, fault):
    with State(file) as state:
        budget = Budget(limits(), state)
        before = budget.reserve("openai", D("0.01"), D(0), NOW_NS)
        with fault(file, state):
            assert budget.reserve("openai", SMALL, D(0), NOW_NS) is None
            assert budget.reserve("openai", SMALL, D(0), NOW_NS, shadow=True) is None
            budget.settle(before, SMALL, NOW_NS)
        assert before.amount == budget.spent(NOW_NS).day.spent == D("0.01")
        budget.settle(before, SMALL, NOW_NS)  # too late: whether the first was written is not always known
        assert budget.spent(NOW_NS).day.spent == D("0.01")
        assert budget.reserve("openai", SMALL, D(0), NOW_NS)


def test_a_full_disk_refuses_and_loses_nothing(file):
    with State(file) as state:
        budget = Budget(limits(provider="9", max_day_usd="9"), state)
        pages = state._db.execute("PRAGMA page_count").fetchone()[0]
        state._db.execute(f"PRAGMA max_page_count = {pages}")
        made = 0
        while budget.reserve("openai", SMALL, D(0), NOW_NS + made * SECOND_NS):
            made += 1
            assert made < 500, "the disk never was full"
        assert budget.spent(NOW_NS).day.spent == made * SMALL
        state._db.execute(f"PRAGMA max_page_count = {pages + 100}")
        assert budget.reserve("openai", SMALL, D(0), NOW_NS + made * SECOND_NS)


def test_a_book_without_its_tables_refuses(file):
    with State(file) as state:
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("DROP TABLE days")
        assert Budget(limits(), state).reserve("openai", SMALL, D(0), NOW_NS) is None


def test_a_closed_book_refuses(file):
    state = State(file)
    budget = Budget(limits(), state)
    reservation = budget.reserve("openai", SMALL, D(0), NOW_NS)
    state.close()
    state.close()
    assert budget.reserve("openai", SMALL, D(0), NOW_NS) is None
    budget.settle(reservation, D(0), NOW_NS)
    assert reservation.amount == SMALL


@pytest.mark.parametrize("now_ns", [-(2**100), 2**100, -1])
def test_a_clock_beyond_all_time_never_raises(state, now_ns):
    budget = Budget(limits(), state)
    reservation = budget.reserve("openai", SMALL, D(0), now_ns)
    assert (reservation is None) == (now_ns != -1)
