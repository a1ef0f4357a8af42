"""`arb budget`: what was spent, by whom, and who was rolled back; it looks without touching."""

import io
import json
import os
import subprocess
import sys
from decimal import Decimal

import pytest
from rich.console import Console

from services.cli import budget as command
from services.decider.budget import Budget
from services.decider.state import DAY_NS, SECOND_NS, State
from shared import settings
from shared.errors import SettingsError, UsageError

NOW_NS = 20_778 * DAY_NS + 43_200 * SECOND_NS
D = Decimal


@pytest.fixture
def file(tmp_path):
    return tmp_path / "state" / "decider.sqlite"


@pytest.fixture
def configured(file):
    loaded = settings.load()
    return loaded.model_copy(update={"decider": loaded.decider.model_copy(update={"state_file": file})})


@pytest.fixture
def spent(configured, file):
    """A decider that is still running: 0.004 USD settled, 0.01 open, 0.002 in the shadow, one rollback."""
    with State(file) as state:
        budget = Budget(configured, state)
        budget.settle(budget.reserve("openai", D("0.01"), D(0), NOW_NS), D("0.004"), NOW_NS)
        assert budget.reserve("gemini", D("0.01"), D(0), NOW_NS)
        assert budget.reserve("gemini", D("0.002"), D(0), NOW_NS, shadow=True)
        state.roll_back("risk", "openai", "gpt-4.1", "p95 [late] 2 s", NOW_NS - SECOND_NS)
        yield state


def text(configured, forgive=None, now_ns=NOW_NS):
    out = io.StringIO()
    good = command.run(configured, forgive, now_ns, False, Console(file=out, width=200, highlight=False))
    return good, out.getvalue()


def document(configured, capsys, forgive=None, now_ns=NOW_NS):
    command.run(configured, forgive, now_ns, True, Console(file=io.StringIO()))
    return json.loads(capsys.readouterr().out)


def row(printed, name):
    return next(line for line in printed.splitlines() if line.strip().startswith(name)).split()[-3:]


def test_each_cap_is_shown_with_what_is_left(configured, spent, file):
    good, printed = text(configured)
    assert good
    assert row(printed, "minute") == ["0.014", "0.50", "0.486"]
    assert row(printed, "day") == ["0.014", "20", "19.986"]
    assert row(printed, "shadow") == ["0.002", "1", "0.998"]
    assert row(printed, "provider openai") == ["0.004", "10", "9.996"]
    assert row(printed, "provider gemini") == ["0.012", "10", "9.988"]
    assert "the day ends at 2026-11-22T00:00:00Z" in printed
    assert "rolled back: risk openai gpt-4.1 at 2026-11-21T11:59:59Z: p95 [late] 2 s" in printed
    assert str(file) in printed
    assert "ahead of the clock" not in printed


def test_json_says_the_same(configured, spent, file, capsys):
    found = document(configured, capsys)
    assert found["caps"][0] == {"name": "minute", "spent_usd": "0.014", "cap_usd": "0.50", "left_usd": "0.486"}
    assert [cap["name"] for cap in found["caps"]][:4] == ["minute", "day", "shadow", "provider openai"]
    assert (found["file"], found["exists"], found["day_ends"]) == (str(file), True, "2026-11-22T00:00:00Z")
    assert found["rolled_back"] == [
        {
            "role": "risk",
            "provider": "openai",
            "model": "gpt-4.1",
            "at": "2026-11-21T11:59:59Z",
            "why": "p95 [late] 2 s",
        }
    ]
    assert (found["forgiven"], found["booked_until"]) == ([], None)


def test_it_changes_nothing_beside_a_running_decider(configured, spent, file):
    before = sorted(path.name for path in file.parent.iterdir())
    text(configured)
    assert sorted(path.name for path in file.parent.iterdir()) == before
    spent.close()
    content = file.read_bytes()
    text(configured)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert file.read_bytes() == content


def test_a_file_that_is_not_there_is_all_zeros_and_stays_away(configured, file, capsys):
    good, printed = text(configured)
    assert good
    assert row(printed, "day") == ["0", "20", "20"]
    assert "does not exist yet" in printed
    assert document(configured, capsys)["exists"] is False
    assert not file.parent.exists()


def test_a_provider_that_left_the_settings_is_still_shown(configured, spent):
    fewer = {name: one for name, one in configured.providers.items() if name != "openai"}
    _, printed = text(configured.model_copy(update={"providers": fewer}))
    assert row(printed, "provider openai") == ["0.004", "0", "0"]


def test_a_clock_that_was_set_back_is_told(configured, spent, capsys):
    earlier = NOW_NS - 3 * DAY_NS
    _, printed = text(configured, now_ns=earlier)
    assert row(printed, "day") == ["0.014", "20", "19.986"]
    assert "the book is ahead of the clock" in printed
    assert document(configured, capsys, now_ns=earlier)["booked_until"] == "2026-11-22T00:00:00Z"


def test_forgiving_a_role_frees_its_candidates_and_nothing_else(configured, spent, capsys):
    spent.roll_back("sentiment", "gemini", "m", "errors", NOW_NS)
    good, printed = text(configured, "risk")
    assert good
    assert "forgiven: risk openai gpt-4.1" in printed
    assert list(spent.rolled_back()) == [("sentiment", "gemini", "m")]
    assert row(printed, "day") == ["0.014", "20", "19.986"]
    found = document(configured, capsys, "sentiment")
    assert [one["role"] for one in found["forgiven"]] == ["sentiment"]
    assert found["rolled_back"] == []
    good, printed = text(configured, "risk")
    assert not good
    assert "nothing to forgive" in printed


def test_forgiving_without_a_file_creates_none(configured, file):
    assert text(configured, "risk")[0] is False
    assert not file.parent.exists()


def test_an_unknown_role_is_wrong_usage(configured):
    with pytest.raises(UsageError, match="there are sentiment, risk, volatility"):
        text(configured, "luck")


def test_a_damaged_file_is_one_clear_error(configured, file):
    file.parent.mkdir()
    file.write_bytes(b"not a book" * 1000)
    with pytest.raises(SettingsError, match="is damaged"):
        text(configured)


@pytest.mark.parametrize(
    ("arguments", "ends"), [(["--json"], 0), (["--forgive", "risk"], 1), (["--forgive", "luck"], 2)]
)
def test_exit_codes(tmp_path, arguments, ends):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ARB_")}
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "budget", *arguments],
        capture_output=True,
        text=True,
        env=clean | {"XDG_STATE_HOME": str(tmp_path)},
        timeout=60,
    )
    assert done.returncode == ends, done.stderr
    if ends == 0:
        assert json.loads(done.stdout)["file"] == str(tmp_path / "arbiter" / "decider.sqlite")
    if ends == 2:
        assert done.stderr.startswith("arb: ")
        assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
