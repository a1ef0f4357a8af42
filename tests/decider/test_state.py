"""The decider's file: opened or refused with one line, shared, and readable without a trace."""

import contextlib
import os
import sqlite3
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.decider import state as module
from services.decider.state import PANEL, PROVIDER, SECOND_NS, Limits, Rollback, State, state_file
from shared import settings
from shared.errors import SettingsError

NOW_NS = 1_795_000_000 * SECOND_NS
OPEN = Limits(10**15, 10**15, 10**15)
CONFIGURED = settings.load()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "deep" / "decider.sqlite"


def book(state, pico=5, now_ns=NOW_NS, limits=OPEN, shadow=False):
    return state.book(pico, "openai", now_ns, limits, shadow=shadow)


def raw(file):
    return contextlib.closing(sqlite3.connect(file, timeout=0, isolation_level=None))


# ---------------------------------------------------------------- where it is


def test_the_file_is_the_one_that_is_set_or_in_the_users_state_folder(tmp_path, monkeypatch):
    chosen = CONFIGURED.decider.model_copy(update={"state_file": Path("x.sqlite")})
    assert state_file(CONFIGURED.model_copy(update={"decider": chosen})) == Path("x.sqlite")
    assert state_file(CONFIGURED, {"XDG_STATE_HOME": "/s"}) == Path("/s/arbiter/decider.sqlite")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_file(CONFIGURED, {}) == tmp_path / ".local/state/arbiter/decider.sqlite"


def test_a_user_without_a_home_is_told_to_name_a_file(monkeypatch):
    def homeless():
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(SettingsError, match=r"decider\.state_file is not set"):
        state_file(CONFIGURED, {})


# ---------------------------------------------------------------- opening


def test_what_was_booked_is_there_after_a_restart(file):
    with State(file) as state:
        assert book(state)
        state.roll_back("risk", "openai", "m", "slow", 7)
    with State(file) as state:
        booked = state.booked(NOW_NS)
        assert (booked.minute, booked.days) == (5, {PANEL: 5, PROVIDER + "openai": 5})
        assert state.rolled_back() == {("risk", "openai", "m"): Rollback(7, "slow")}


def test_several_may_create_and_open_it_at_once(file):
    def begin(_):
        with State(file) as state:
            return book(state) is not None

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(begin, range(24)))
    with State(file) as state:
        assert state.booked(NOW_NS).minute == 5 * sum(done)
    assert any(done)


def write_garbage(file):
    file.write_bytes(b"no database at all, but long enough to be looked at" * 100)


def damage_a_page(file):
    with State(file) as state:
        for second in range(300):
            book(state, now_ns=NOW_NS + second * SECOND_NS)
    content = bytearray(file.read_bytes())
    content[2 * 1024 :] = b"\xff" * (len(content) - 2 * 1024)
    file.write_bytes(content)


def cut_in_half(file):
    with State(file) as state:
        for second in range(300):
            book(state, now_ns=NOW_NS + second * SECOND_NS)
    os.truncate(file, file.stat().st_size // 2)


def make_newer(file):
    State(file).close()
    with raw(file) as db:
        db.execute("PRAGMA user_version = 2")


def make_foreign(file):
    with raw(file) as db:
        db.execute("CREATE TABLE bookmarks (a)")


def drop_a_table(file):
    State(file).close()
    with raw(file) as db:
        db.execute("DROP TABLE rollbacks")


def make_folder(file):
    file.mkdir()


@pytest.mark.parametrize("read_only", [False, True], ids=["to write", "to read"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (write_garbage, "is damaged; move it away"),
        (damage_a_page, "is damaged; move it away"),
        (cut_in_half, "is damaged; move it away"),
        (make_newer, "version 2, this program knows 1"),
        (make_foreign, "another program's database"),
        (drop_a_table, "no such table"),
        (make_folder, "unable to open|disk I/O error"),
    ],
)
def test_a_file_that_is_no_book_stops_the_start_and_is_left_alone(file, spoil, words, read_only):
    file.parent.mkdir()
    spoil(file)
    before = file.read_bytes() if file.is_file() else None
    with pytest.raises(SettingsError, match=words) as raised:
        State(file, read_only=read_only)
    assert str(raised.value).startswith(f"decider.state_file: {file}")
    assert "\n" not in str(raised.value)
    assert (file.read_bytes() if file.is_file() else None) == before


def test_a_folder_that_cannot_be_made_stops_the_start(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(SettingsError, match=r"decider\.state_file"):
        State(tmp_path / "taken" / "decider.sqlite")


@contextlib.contextmanager
def without_privileges():
    """As a user who may not write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_may_not_be_written_stops_the_start():
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "decider.sqlite"
        State(file).close()
        file.chmod(0o444)
        Path(folder).chmod(0o555)
        with without_privileges(), pytest.raises(SettingsError, match=r"readonly|unable to open"):
            State(file)
        with without_privileges(), State(file, read_only=True) as state:
            assert state.booked(NOW_NS).minute == 0
        Path(folder).chmod(0o755)


def test_a_locked_file_stops_the_start(file, monkeypatch):
    monkeypatch.setattr(module, "OPENING_S", 0.05)
    State(file).close()
    with raw(file) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SettingsError, match="locked"):
            State(file)


# ---------------------------------------------------------------- reading beside a writer


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_reader_leaves_no_trace_and_holds_up_nobody(file):
    with State(file) as writer:
        book(writer)
        with State(file, read_only=True) as reader:
            assert reader.booked(NOW_NS).minute == 5
            before = names(file.parent)
            assert book(writer)
            assert reader.booked(NOW_NS).minute == 10
            assert reader.book(5, "openai", NOW_NS, OPEN, shadow=False) is None
        assert names(file.parent) == before
        assert writer.booked(NOW_NS).minute == 10
    content = file.read_bytes()
    with State(file, read_only=True) as reader:
        assert reader.booked(NOW_NS).minute == 10
        assert names(file.parent) == ["decider.sqlite"]
    assert (names(file.parent), file.read_bytes()) == (["decider.sqlite"], content)


def test_a_reader_of_a_missing_file_creates_none(tmp_path):
    with pytest.raises(SettingsError, match="unable to open"):
        State(tmp_path / "none.sqlite", read_only=True)
    assert names(tmp_path) == []


# ---------------------------------------------------------------- bookings


def test_old_seconds_go_in_the_order_of_booking_whatever_the_clock_says(file, monkeypatch):
    monkeypatch.setattr(module, "KEPT_SECONDS", 3)
    with State(None) as state:
        book(state, 1, NOW_NS)
        book(state, 2, NOW_NS + 90_000 * SECOND_NS)  # set forward by a day and more ...
        book(state, 4, NOW_NS + SECOND_NS)  # ... and back
        assert state.booked(NOW_NS + SECOND_NS).minute == 7
        book(state, 8, NOW_NS + 2 * SECOND_NS)
        assert state.booked(NOW_NS + 2 * SECOND_NS).minute == 14  # the first second is forgotten ...
        book(state, 16, NOW_NS + 3 * SECOND_NS)
        assert state.booked(NOW_NS + 3 * SECOND_NS).minute == 28
        assert state.booked(NOW_NS).days[PANEL] == 31  # ... the day is not


def test_money_of_a_forgotten_second_is_not_taken_from_a_later_row_of_the_same_second(monkeypatch):
    monkeypatch.setattr(module, "KEPT_SECONDS", 1)
    with State(None) as state:
        old = book(state, 10, NOW_NS)
        book(state, 1, NOW_NS + SECOND_NS)
        book(state, 7, NOW_NS)  # the clock was set back: the same second, another row
        assert state.give_back([(old, 10)], NOW_NS)
        assert state.booked(NOW_NS).minute == 7
        assert state.booked(NOW_NS).days[PANEL] == 8


def test_no_more_is_given_back_than_was_booked():
    with State(None) as state:
        book(state, 3)
        booking = book(state, 5)
        assert state.give_back([(booking, 99)], NOW_NS)
        assert state.booked(NOW_NS).minute == 3
        assert not state.give_back([(booking, 5)], NOW_NS)  # a second time would be another's money, and 3 < 5
        assert state.booked(NOW_NS).minute == 3


def test_what_several_bookings_give_back_goes_at_once_or_not_at_all():
    with State(None) as state:
        first, second = book(state, 30), book(state, 20)
        later = book(state, 7, NOW_NS + 1_000_000_000)
        shadow = book(state, 5, limits=Limits(None, 100, 100), shadow=True)
        assert state.give_back([(first, 10), (second, 20), (later, 3), (shadow, 1)], NOW_NS)
        booked = state.booked(NOW_NS)
        assert (booked.minute, booked.days) == (24, {"panel": 24, "provider:openai": 28, "shadow": 4})
        assert not state.give_back([(later, 4), (shadow, 5)], NOW_NS)
        assert state.booked(NOW_NS) == booked, "a part that is not there takes the others along"


def test_the_log_is_moved_into_the_file_while_it_is_in_use(file):
    with State(file) as state:
        before = file.read_bytes()
        for _ in range(module.CHECKPOINT_COMMITS + 1):
            book(state)
        deadline = time.monotonic() + 10
        while file.read_bytes() == before:
            assert time.monotonic() < deadline, "no checkpoint"
            time.sleep(0.01)


def test_a_log_that_grew_long_begins_anew(file, monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_COMMITS", 10**9)  # only when the test says so
    monkeypatch.setattr(module, "LOG_PAGES", 20)
    log = file.with_name(file.name + "-wal")
    with State(file) as state:
        for _ in range(50):
            book(state)
        module._checkpoint(file)
        grown = log.stat().st_size
        for _ in range(25):
            book(state)
        assert log.stat().st_size == grown
        assert state.booked(NOW_NS).minute == 75 * 5


# ---------------------------------------------------------------- candidates


def test_a_role_is_forgiven_and_no_other(file):
    with State(file) as state:
        state.roll_back("risk", "openai", "a", "slow", 1)
        state.roll_back("risk", "openai", "a", "slower", 2)
        state.roll_back("risk", "gemini", "a", "errors", 3)
        state.roll_back("sentiment", "openai", "a", "errors", 4)
        assert state.clear_rollback("volatility") == {}
        assert state.clear_rollback("risk") == {
            ("risk", "openai", "a"): Rollback(2, "slower"),
            ("risk", "gemini", "a"): Rollback(3, "errors"),
        }
        assert state.rolled_back() == {("sentiment", "openai", "a"): Rollback(4, "errors")}


def test_a_rollback_holds_before_it_can_be_written_and_is_written_as_soon_as_it_can(file):
    key, rollback = ("risk", "openai", "a"), Rollback(1, "slow")
    with State(file) as state:
        with raw(file) as other:
            other.execute("BEGIN IMMEDIATE")
            state.roll_back(*key, rollback.why, rollback.at_ns)
            assert state.rolled_back() == {key: rollback}
            with State(file, read_only=True) as reader:
                assert reader.rolled_back() == {}
            with pytest.raises(SettingsError, match="locked"):
                state.clear_rollback("risk")
            assert state.rolled_back() == {key: rollback}
        state.rolled_back()
        with State(file, read_only=True) as reader:
            assert reader.rolled_back() == {key: rollback}


def test_another_process_sees_and_forgives_it(file):
    with State(file) as decider, State(file) as command:
        decider.roll_back("risk", "openai", "a", "slow", 1)
        assert list(command.clear_rollback("risk")) == [("risk", "openai", "a")]
        assert decider.rolled_back() == {}


# ---------------------------------------------------------------- whether it can be used


def test_a_file_is_usable_until_it_cannot_be_written_and_again_when_it_can(file):
    with State(file) as state:
        assert state.usable() == (True, str(file))
        with raw(file) as other:
            other.execute("BEGIN IMMEDIATE")
            assert book(state) is None
            ok, words = state.usable()
            assert not ok
            assert "locked" in words
            other.execute("ROLLBACK")
        assert book(state) is not None
        assert state.usable()[0]


def test_a_file_is_found_usable_again_without_a_booking(file):
    with State(file) as state:
        with raw(file) as other:
            other.execute("BEGIN IMMEDIATE")
            assert book(state) is None
            state.recover(NOW_NS)
            assert not state.usable()[0]
            other.execute("ROLLBACK")
        assert not state.usable()[0]
        state.recover(NOW_NS)
        assert state.usable() == (True, str(file))
        assert state.booked(NOW_NS).minute == 0


def test_a_file_that_was_removed_while_in_use_is_not_usable(file):
    with State(file) as state:
        file.rename(file.with_name("gone"))
        ok, words = state.usable()
    assert not ok
    assert "No such file" in words
    with State(None) as state:
        assert state.usable() == (True, "kept in memory")
