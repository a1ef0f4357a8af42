"""The decider's file (SQLite): what was spent, and which candidates were rolled back. It outlives restarts.

All decider processes of a host share it, so that the caps of `budget.py` hold for them together. Every change is one
short transaction that takes the lock first. Nobody spends money without this book: a file that cannot be opened stops
the start, and one that cannot be written later refuses each reservation.

Money is an integer of pico-USD. A second is one row, a day (UTC) a few, and both are found by the clock that is passed
in. What was booked under a later clock than now still counts: a clock that is set back frees no money. Seconds are
forgotten in the order in which they were booked, not by the clock; days are kept.
"""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import structlog

from shared.errors import SettingsError
from shared.settings import Settings

VERSION = 1
APPLICATION_ID = 0x41524244  # "ARBD": the file is ours
SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS
WINDOW_S = 60
KEPT_SECONDS = 4096
"""Seconds with bookings that are kept: an hour and more, though a minute would do while no clock is ever wrong."""

BUSY_MS = 50
"""Longest wait for another process's transaction: it happens beside the event loop."""
OPENING_S = 5.0
CHECKPOINT_COMMITS = 250
LOG_PAGES = 4096
"""A log of so many pages is begun anew, which stops all bookings for a moment: only needed if they never pause."""

LOG_EVERY_NS = 10 * SECOND_NS

PANEL, SHADOW, PROVIDER = "panel", "shadow", "provider:"
"""Names in the table of days: money of panels, of candidates in the shadow, and of one provider in either."""

_SCHEMA = f"""
CREATE TABLE seconds (second INTEGER PRIMARY KEY, n INTEGER NOT NULL UNIQUE, pico INTEGER NOT NULL CHECK (pico >= 0));
CREATE TABLE days (
    day INTEGER NOT NULL, name TEXT NOT NULL, pico INTEGER NOT NULL CHECK (pico >= 0), PRIMARY KEY (day, name)
) WITHOUT ROWID;
CREATE TABLE rollbacks (
    role TEXT NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL, at_ns INTEGER NOT NULL, why TEXT NOT NULL,
    PRIMARY KEY (role, provider, model)
) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION}
"""
_STANDING = """
SELECT name, SUM(pico) FROM days WHERE day >= ?1 GROUP BY name
UNION ALL SELECT '', COALESCE(SUM(pico), 0) FROM seconds WHERE second >= ?2
UNION ALL SELECT NULL, n FROM seconds WHERE second = ?3
"""
"""What counts against a booking, by name ('': the minute), and (NULL) the row of its second: in one statement, each
costs as much as what it does."""
_READABLE = (
    "SELECT second, n, pico FROM seconds LIMIT 1",
    "SELECT day, name, pico FROM days LIMIT 1",
    "SELECT role, provider, model, at_ns, why FROM rollbacks LIMIT 1",
)

log = structlog.get_logger()

Candidate = tuple[str, str, str]
"""(role, provider, model)."""


class Rollback(NamedTuple):
    """When a candidate was taken out, and why."""

    at_ns: int
    why: str


class Limits(NamedTuple):
    """Caps of one booking in pico-USD. `minute` None: the booking does not count there."""

    minute: int | None
    day: int
    provider: int


@dataclass(frozen=True, slots=True)
class Booking:
    """Where money stands in the book. `second` None: only in the rows of the day."""

    day: int
    names: tuple[str, str]
    second: tuple[int, int] | None
    pico: int


@dataclass(frozen=True, slots=True)
class Booked:
    """What the book says, in pico-USD: the last 60 seconds and the day, with all that was booked under a later clock.

    Attributes:
        days: By name: PANEL, SHADOW, and PROVIDER followed by a provider's name.
        latest_ns: End of the latest second or day in the book; 0 if it is empty.
    """

    minute: int
    days: dict[str, int]
    latest_ns: int


def state_file(settings: Settings, environ: Mapping[str, str] = os.environ) -> Path:
    """`decider.state_file`, else `arbiter/decider.sqlite` in the user's state folder.

    Raises:
        SettingsError: nothing is set, and this user has no home.
    """
    if settings.decider.state_file is not None:
        return settings.decider.state_file
    if not (folder := environ.get("XDG_STATE_HOME")):
        try:
            folder = str(Path.home() / ".local" / "state")
        except RuntimeError:
            raise SettingsError("decider.state_file is not set, and this user has no home folder: set it") from None
    return Path(folder) / "arbiter" / "decider.sqlite"


class State:
    """The open file. Safe to use from several threads; close it, or use it in a `with`.

    Args:
        file: Created with its folder if it is not there. None: in memory, for tests and replays.
        read_only: Only look: nothing is created or changed, and no writer waits. The file must be there.

    Raises:
        SettingsError: it cannot be opened or written, is damaged, no file of ours, or a newer version's.
    """

    def __init__(self, file: Path | None, *, read_only: bool = False) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._identity: tuple[int, int] | None = None
        self._unwritten: dict[Candidate, Rollback] = {}
        self._logged_ns: int | None = None
        self._trouble: str | None = None
        self._checkpoints: _Checkpoints | None = None
        try:
            self._db = _connect(file, read_only)
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from None
        try:
            if read_only:
                self._look_at_version()
            else:
                self._prepare()
            if self._value("PRAGMA quick_check(1)") != "ok":
                raise sqlite3.DatabaseError("the database disk image is malformed")
            for statement in _READABLE:
                self._db.execute(statement).fetchall()
            self._db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            if file is not None and not read_only:
                self._identity = _identity(file)
                self._checkpoints = _Checkpoints(file)
        except (sqlite3.Error, OSError) as error:
            self._db.close()
            raise self._unusable(error) from None
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Everything is in the file already; this only lets it go. May be called twice."""
        if self._checkpoints is not None:
            self._checkpoints.close()
        with self._lock:
            self._db.close()

    # ------------------------------------------------------------ money

    def book(self, pico: int, provider: str, now_ns: int, limits: Limits, *, shadow: bool) -> Booking | None:
        """Put money down unless a cap would be passed; None too if the file cannot be written now."""
        return self.book_all([(pico, provider, limits)], now_ns, shadow=shadow)[0]

    def book_all(
        self, wanted: Sequence[tuple[int, str, Limits]], now_ns: int, *, shadow: bool, most: int | None = None
    ) -> list[Booking | None]:
        """As `book` for each of (pico, provider, limits) in this order, in one change of the file.

        Args:
            most: What they may come to together, in pico-USD.
        """
        second, day, mine = now_ns // SECOND_NS, now_ns // DAY_NS, SHADOW if shadow else PANEL
        granted = [False] * len(wanted)
        place = None
        with self._lock:
            try:
                with self._changing() as db:
                    standing = dict(db.execute(_STANDING, (day, second - WINDOW_S, second)))
                    added: dict[str, int] = {mine: 0}
                    of_second: int | None = None
                    for at, (pico, provider, limits) in enumerate(wanted):
                        name = PROVIDER + provider
                        if (
                            (most is not None and added[mine] + pico > most)
                            or standing.get(mine, 0) + added[mine] + pico > limits.day
                            or standing.get(name, 0) + added.get(name, 0) + pico > limits.provider
                            or (limits.minute is not None and standing[""] + (of_second or 0) + pico > limits.minute)
                        ):
                            continue
                        granted[at] = True
                        added[mine] += pico
                        added[name] = added.get(name, 0) + pico
                        if limits.minute is not None:
                            of_second = (of_second or 0) + pico
                    if of_second is not None:
                        place = second, self._into_second(second, standing.get(None), of_second)
                    if any(granted):
                        db.executemany(
                            "INSERT INTO days VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET pico = pico + excluded.pico",
                            [(day, name, pico) for name, pico in added.items()],
                        )
            except (sqlite3.Error, OSError, OverflowError) as error:
                self._refused(error, now_ns)
                return [None] * len(wanted)
        return [
            Booking(day, (mine, PROVIDER + provider), None if limits.minute is None else place, pico) if ours else None
            for ours, (pico, provider, limits) in zip(granted, wanted, strict=True)
        ]

    def give_back(self, backs: Sequence[tuple[Booking, int]], now_ns: int) -> bool:
        """Take part of each booking out again; False, and all of them still stand, if the file cannot be written now.

        For each booking once: a second time would take out another's money.
        """
        of_second: dict[tuple[int, int], int] = {}
        of_day: dict[tuple[int, str], int] = {}
        for booking, part in backs:  # those of one panel are mostly of one second
            pico = min(max(part, 0), booking.pico)
            if booking.second is not None:
                of_second[booking.second] = of_second.get(booking.second, 0) + pico
            for name in booking.names:
                of_day[booking.day, name] = of_day.get((booking.day, name), 0) + pico
        with self._lock:
            try:
                with self._changing() as db:
                    db.executemany(
                        "UPDATE seconds SET pico = pico - ? WHERE second = ? AND n = ?",
                        [(pico, *place) for place, pico in of_second.items()],
                    )
                    db.executemany(
                        "UPDATE days SET pico = pico - ? WHERE day = ? AND name = ?",
                        [(pico, *place) for place, pico in of_day.items()],
                    )
            except (sqlite3.Error, OSError, OverflowError) as error:
                self._refused(error, now_ns)
                return False
        return True

    def booked(self, now_ns: int) -> Booked:
        """All that counts now.

        Raises:
            SettingsError: the file cannot be read.
        """
        with self._reading():
            self._db.execute("BEGIN")  # one snapshot for the three
            try:
                minute, days = self._minute(now_ns // SECOND_NS), self._days(now_ns // DAY_NS)
                last = self._db.execute("SELECT MAX(second) FROM seconds").fetchone()[0]
                last_day = self._db.execute("SELECT MAX(day) FROM days").fetchone()[0]
            finally:
                self._db.execute("ROLLBACK")
        ends = [0 if last is None else (last + 1) * SECOND_NS]
        if last_day is not None and last_day > now_ns // DAY_NS:
            ends.append((last_day + 1) * DAY_NS)
        return Booked(minute, days, max(ends))

    def _minute(self, second: int) -> int:
        """Of the last 60 seconds and the whole second in which they began: never less than of any 60 seconds."""
        found = self._db.execute("SELECT COALESCE(SUM(pico), 0) FROM seconds WHERE second >= ?", (second - WINDOW_S,))
        return int(found.fetchone()[0])

    def _days(self, day: int) -> dict[str, int]:
        totals: dict[str, int] = {}
        for name, pico in self._db.execute("SELECT name, pico FROM days WHERE day >= ?", (day,)):
            totals[name] = totals.get(name, 0) + pico
        return totals

    def _into_second(self, second: int, n: int | None, pico: int) -> int:
        """Number of the money's row, which no later row of the same second has; `n`: of the row that is there."""
        db = self._db
        if n is not None:
            db.execute("UPDATE seconds SET pico = pico + ? WHERE second = ?", (pico, second))
            return n
        n = int(db.execute("SELECT COALESCE(MAX(n), 0) + 1 FROM seconds").fetchone()[0])
        db.execute("INSERT INTO seconds VALUES (?, ?, ?)", (second, n, pico))
        db.execute("DELETE FROM seconds WHERE n <= ?", (n - KEPT_SECONDS,))
        return n

    # ------------------------------------------------------------ candidates

    def rolled_back(self) -> dict[Candidate, Rollback]:
        """All candidates that may not be asked, those included whose rollback could not be written yet.

        Raises:
            SettingsError: the file cannot be read.
        """
        for key, rollback in list(self._unwritten.items()):
            self.roll_back(*key, rollback.why, rollback.at_ns)
        with self._reading():
            rows = self._db.execute("SELECT role, provider, model, at_ns, why FROM rollbacks").fetchall()
        found = {(role, provider, model): Rollback(at_ns, why) for role, provider, model, at_ns, why in rows}
        return found | self._unwritten

    def roll_back(self, role: str, provider: str, model: str, why: str, at_ns: int) -> None:
        """Take a candidate out, for this process in any case: written as soon as the file can be written."""
        with self._lock:
            self._unwritten[role, provider, model] = Rollback(at_ns, why)
            try:
                with self._changing() as db:
                    db.execute(
                        "INSERT OR REPLACE INTO rollbacks VALUES (?, ?, ?, ?, ?)", (role, provider, model, at_ns, why)
                    )
            except (sqlite3.Error, OSError) as error:
                self._refused(error, at_ns)
                return
            del self._unwritten[role, provider, model]

    def clear_rollback(self, role: str) -> dict[Candidate, Rollback]:
        """Let the role's candidates try again; those that had been taken out.

        Raises:
            SettingsError: the file cannot be written.
        """
        found = {key: rollback for key, rollback in self.rolled_back().items() if key[0] == role}
        with self._lock:
            try:
                with self._changing() as db:
                    db.execute("DELETE FROM rollbacks WHERE role = ?", (role,))
            except (sqlite3.Error, OSError) as error:
                raise self._unusable(error) from None
            for key in found:
                self._unwritten.pop(key, None)
        return found

    # ------------------------------------------------------------ the file

    def usable(self) -> tuple[bool, str]:
        """Whether money could be booked the last time, and the file is still there; in words. Any thread."""
        if self._trouble is not None:
            return False, self._trouble
        if self.file is None or self._identity is None:
            return True, "kept in memory"
        try:
            if _identity(self.file) != self._identity:
                return False, f"decider.state_file: {self.file} was replaced while in use; start again"
        except OSError as error:
            return False, str(self._unusable(error))
        return True, str(self.file)

    def recover(self, now_ns: int) -> None:
        """If the last change was refused, see whether one is possible now: in a quiet market none would show it."""
        if self._trouble is None:
            return
        with self._lock:
            try:
                with self._changing() as db:
                    db.execute(
                        f"PRAGMA user_version = {VERSION}"
                    )  # as it is; it writes a page, which a full disk fails
            except (sqlite3.Error, OSError) as error:
                self._refused(error, now_ns)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the lock from its start; left by an error, it never happened."""
        db = self._db
        if self._identity is not None:
            assert self.file is not None
            if _identity(self.file) != self._identity:
                raise OSError("was removed or replaced while in use; start again")
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
        self._trouble = None
        if self._checkpoints is not None:
            self._checkpoints.after_commit()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except (sqlite3.Error, OverflowError) as error:
                raise self._unusable(error) from None

    def _prepare(self) -> None:
        """Into WAL mode and, if it is new, with its tables; several processes may do this at once."""
        deadline = time.monotonic() + OPENING_S
        while True:
            try:
                self._look_at_version()
                self._db.execute("PRAGMA page_size = 1024")  # of a new file; a booking changes two pages or three
                mode = self._value("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:  # SQLite does not wait for this lock by itself
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        if self.file is not None and mode != "wal":
            raise sqlite3.OperationalError("its file system has no shared memory (WAL); put it on a local disk")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA wal_autocheckpoint = 0")
        with self._changing() as db:
            if self._check_version() == 0:
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)

    def _look_at_version(self) -> None:
        """In one snapshot: another process may be making the tables right now."""
        self._db.execute("BEGIN")
        try:
            self._check_version()
        finally:
            self._db.execute("ROLLBACK")

    def _check_version(self) -> int:
        """0 for an empty file. Within a transaction."""
        version, owner = self._value("PRAGMA user_version"), self._value("PRAGMA application_id")
        if version == owner == 0 and self._value("SELECT COUNT(*) FROM sqlite_master") == 0:
            return 0
        if owner != APPLICATION_ID:
            raise SettingsError(f"decider.state_file: {self.file} is another program's database")
        if version != VERSION:
            raise SettingsError(
                f"decider.state_file: {self.file} has version {version}, this program knows {VERSION}: "
                "it is from another version of Arbiter; use that one, or name another file"
            )
        return VERSION

    def _value(self, statement: str) -> int | str:
        value: int | str = self._db.execute(statement).fetchone()[0]
        return value

    def _unusable(self, error: Exception) -> SettingsError:
        words = str(error)
        if isinstance(error, sqlite3.DatabaseError) and ("malformed" in words or "not a database" in words):
            words = "is damaged; move it away to begin a new one, which knows nothing of what was spent"
        elif isinstance(error, OSError) and error.strerror:
            words = error.strerror
        return SettingsError(f"decider.state_file: {self.file}: {words}")

    def _refused(self, error: Exception, now_ns: int) -> None:
        """Say it, but not 150 times a second."""
        self._trouble = str(self._unusable(error))
        if self._logged_ns is None or abs(now_ns - self._logged_ns) >= LOG_EVERY_NS:
            self._logged_ns = now_ns
            log.error("the book of money cannot be written", error=str(self._unusable(error)))


class _Checkpoints:
    """Moves the log into the file, on a thread: it waits for the disk, and commits must not."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._commits = 0
        self._due = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def after_commit(self) -> None:
        self._commits += 1
        if self._commits >= CHECKPOINT_COMMITS:
            self._commits = 0
            self._due.set()

    def close(self) -> None:
        self._closing = True
        self._due.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._due.wait()
            if self._closing:
                return
            self._due.clear()
            try:
                _checkpoint(self._file)
            except sqlite3.Error:
                continue  # the next booking meets the same file and says so


def _checkpoint(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file, timeout=0.02, isolation_level=None)) as db:
        # PASSIVE neither waits for nor holds up anybody; what it leaves is for the next time.
        _, pages, _ = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if pages > LOG_PAGES:
            db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()


def _connect(file: Path | None, read_only: bool) -> sqlite3.Connection:
    if read_only:
        assert file is not None
        # A file that nobody has open is read as it lies: to open its log would create it, perhaps as another user.
        alone = not Path(f"{file}-wal").exists()
        name = f"{file.absolute().as_uri()}?mode=ro{'&immutable=1' if alone else ''}"
        return sqlite3.connect(name, timeout=OPENING_S, isolation_level=None, check_same_thread=False, uri=True)
    if file is not None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return sqlite3.connect(
        ":memory:" if file is None else file, timeout=OPENING_S, isolation_level=None, check_same_thread=False
    )


def _identity(file: Path) -> tuple[int, int]:
    found = os.stat(file)
    return found.st_dev, found.st_ino
