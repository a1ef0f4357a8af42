"""This machine and its settings: files, dates, money, disk, limits, versions. Facts in, findings out: pure."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from services.cli.doctor.finding import Finding, Part, fail, ok, some, warn
from services.cli.doctor.outside import choices
from services.decider.budget import Spent
from shared.fees import taker_fee
from shared.settings import Settings

SOON_DAYS = 30
OLD_DAYS = 180
"""Fees and prices change about once a year."""


def loaded(files: Sequence[str], variables: Sequence[str]) -> Finding:
    """What the settings come from."""
    words = "defaults" if not files else f"defaults and {', '.join(files)}"
    if variables:
        words += f"; variables: {some(sorted(variables), 6)}"
    return ok(Part.SETTINGS, "files", words)


def not_loaded(words: str) -> Finding:
    """Why they cannot be used."""
    fix = "correct it there; deploy/arb.toml has every setting with its default and what it means"
    return fail(Part.SETTINGS, "files", words, fix)


def dates(settings: Settings, today: datetime.date) -> list[Finding]:
    """What was true on the day when somebody wrote it down: fees, prices, last days of models."""
    found = []
    for name, exchange in settings.enabled_exchanges().items():
        entries = {symbol: taker_fee(exchange.fees, symbol, exchange.fee_tier, today) for symbol in exchange.symbols}
        fix = f"compare exchanges.{name}.fees with your account, and set valid_from to the day of it"
        if without := [symbol for symbol, entry in entries.items() if entry is None]:
            found.append(fail(Part.SETTINGS, f"fees of {name}", f"no fee is valid today for {some(without)}", fix))
        valid = [entry.valid_from for entry in entries.values() if entry is not None]
        if valid and (age := (today - min(valid)).days) > OLD_DAYS:
            words = f"are of {min(valid)}, {age} days ago"
            found.append(warn(Part.SETTINGS, f"fees of {name}", words, fix))
    if not found:
        found.append(ok(Part.SETTINGS, "fees", f"of all {len(settings.enabled_exchanges())} exchanges are dated"))
    return found


def models(settings: Settings, today: datetime.date) -> list[Finding]:
    """Last days and prices of the models that may be asked."""
    found, seen = [], set()
    for where, chosen in choices(settings):
        model = settings.models[chosen.model]
        if (last := model.shutdown_date) is not None:
            days = (last - today).days
            fix = f"choose another one for roles.{where}.model"
            if days < 0:
                words = f"its last day was {last}: the decider does not start"
                found.append(fail(Part.MODELS, f"{where}: {chosen.model}", words, fix))
            elif days <= SOON_DAYS:
                words = f"its last day is {last}, in {days} days"
                found.append(warn(Part.MODELS, f"{where}: {chosen.model}", words, fix))
        if chosen.model not in seen and (age := (today - model.price(today).valid_from).days) > OLD_DAYS:
            words = f"its prices are of {model.price(today).valid_from}, {age} days ago"
            fix = f"compare models.{chosen.model!r}.prices with the provider's price list"
            found.append(warn(Part.MODELS, f"price of {chosen.model}", words, fix))
        seen.add(chosen.model)
    return found


# ---------------------------------------------------------------- money

LITTLE = Decimal("0.1")


def budget(spent: Spent) -> list[Finding]:
    """What is left of the day."""
    lines = {"day": (spent.day, "decider.max_day_usd"), "minute": (spent.minute, "decider.max_minute_usd")}
    lines |= {
        f"provider {name}": (line, f"providers.{name}.max_day_usd")
        for name, line in spent.providers.items()
        if line.cap > 0
    }
    found = []
    for name, (line, setting) in lines.items():
        words = f"{line.spent:f} of {line.cap:f} USD spent"
        if line.left < spent.call_cap:
            wait = "wait a minute" if name == "minute" else "wait until 00:00 UTC"
            fix = f"{wait}, or raise {setting}"
            words += ": no model is asked" if name in ("day", "minute") else ": it is not asked"
            found.append((warn if name == "minute" else fail)(Part.BUDGET, name, words, fix))
        elif line.left < LITTLE * line.cap:
            found.append(warn(Part.BUDGET, name, words, f"raise {setting} if the day's end is far"))
    if not found:
        found.append(ok(Part.BUDGET, "day", f"{spent.day.spent:f} of {spent.day.cap:f} USD spent"))
    return found


def kill_switch(file: str | None, on: bool) -> Finding:
    """Whether somebody has stopped it all."""
    if on:
        words = f"is on ({file} is there): no model is asked, nothing is executed"
        return fail(Part.BUDGET, "kill switch", words, f"if it may go on: rm {file}")
    return ok(Part.BUDGET, "kill switch", "none is set" if file is None else f"off ({file} is not there)")


# ---------------------------------------------------------------- disk, limits, versions

NETWORK_FILE_SYSTEMS = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs", "fuse.glusterfs")
)
MIB = 2**20
LEAST_FREE = 200 * MIB
LITTLE_FREE = 1024 * MIB
OPEN_FILES = 1024


@dataclass(frozen=True, slots=True)
class Folder:
    """Where something is kept. `file_system` None: not known. `writable`: by this user, or it can be made."""

    what: str
    path: str
    free: int
    file_system: str | None
    writable: bool = True


def disk(folder: Folder, least: int = LEAST_FREE) -> list[Finding]:
    """Room, whether it can be written, and whether SQLite's log works there (state only)."""
    found = []
    if not folder.writable:
        words, another = (
            f"{folder.path} cannot be written by this user",
            f"name another place ({SETTING_OF[folder.what]})",
        )
        if folder.what == "cache":  # a decider's container has none
            words += "; only collectors and `arb instruments` write it"
            return [warn(Part.MACHINE, "folder for cache", words, f"if such a one runs here: chown it, or {another}")]
        found.append(fail(Part.MACHINE, f"folder for {folder.what}", words, f"chown it, or {another}"))
    words = f"{folder.free / MIB:,.0f} MiB free at {folder.path}"
    fix = f"make room there, or name another place ({SETTING_OF[folder.what]})"
    if folder.free < least:
        found.append(fail(Part.MACHINE, f"disk for {folder.what}", words, fix))
    elif folder.free < max(LITTLE_FREE, least):
        found.append(warn(Part.MACHINE, f"disk for {folder.what}", words, fix))
    else:
        found.append(ok(Part.MACHINE, f"disk for {folder.what}", words))
    if folder.what == "state" and folder.file_system in NETWORK_FILE_SYSTEMS:
        words = f"{folder.path} is on {folder.file_system}: deciders of two hosts would spend the same money"
        fix = "put decider.state_file on a local disk"
        found.append(fail(Part.MACHINE, "file system", words, fix))
    return found


SETTING_OF = {"state": "decider.state_file", "cache": "ARB_CACHE_DIR"}

LEAST_CLIENT = (2, 15)
"""Before it, members of groups stalled for minutes while they were scaled (KIP-848)."""
LEAST_PYTHON = (3, 11)


def versions(python: tuple[int, ...], client: str, library: str) -> list[Finding]:
    """Python, confluent-kafka and the librdkafka in it."""
    found = []
    if python[:2] < LEAST_PYTHON:
        words = f"{_dotted(python)}, at least {_dotted(LEAST_PYTHON)} is needed"
        found.append(fail(Part.MACHINE, "Python", words, "make a new virtual environment with a newer Python"))
    if _numbers(library) < LEAST_CLIENT:
        words = f"librdkafka {library}, at least {_dotted(LEAST_CLIENT)} is needed"
        found.append(
            fail(Part.MACHINE, "Kafka's client", words, "pip install --require-hashes -r requirements/runtime.txt")
        )
    if not found:
        words = f"Python {_dotted(python[:3])}, confluent-kafka {client}, librdkafka {library}"
        found.append(ok(Part.MACHINE, "versions", words))
    return found


def open_files(soft: int) -> Finding:
    """Sockets and files that a process may have."""
    if 0 <= soft < OPEN_FILES:
        words = f"at most {soft}; a detector of many partitions and a decider with its connections come near that"
        return warn(Part.MACHINE, "open files", words, "ulimit -n 65536, or LimitNOFILE=65536 of its unit")
    return ok(Part.MACHINE, "open files", "no limit" if soft < 0 else f"up to {soft}")


def tick_path(plain: tuple[str, str] | None) -> Finding:
    """Whether the detector's tick path is compiled; of this installation, not of the detectors that run.

    Args:
        plain: Why it is not, and what mends that.
    """
    if plain is None:
        return ok(Part.MACHINE, "tick path", "compiled")
    why, fix = plain
    words = f"a detector here reads ticks by Python, at half the rate or less: {why}"
    return warn(Part.MACHINE, "tick path", words, fix)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def used_variables(environ: Mapping[str, str]) -> list[str]:
    """Names of the variables that are ours; never their values."""
    return sorted(name for name in environ if name.upper().startswith("ARB_"))
