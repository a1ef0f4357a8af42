"""What an exchange lists: names, steps, least orders, status. Fetched by the shell, kept on disk, resolved here.

Native names come from the exchange's own metadata, never from cutting strings. The file on disk lets a restart work
while the metadata cannot be fetched; it is never a reason to believe that a symbol is traded now.
"""

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from pydantic import TypeAdapter, ValidationError

from services.collector.exchanges.base import Instrument
from shared.errors import SettingsError, UnknownSymbol


@dataclass(frozen=True, slots=True)
class Catalog:
    """All instruments of one protocol, and when they were fetched (ns)."""

    protocol: str
    source: str
    fetched_ns: int
    instruments: tuple[Instrument, ...]


@dataclass(frozen=True, slots=True)
class Listed:
    """Configured symbols as the exchange knows them: native to canonical names, and those not traded now."""

    names: dict[str, str]
    halted: dict[str, str]


def resolve(catalog: Catalog, symbols: Sequence[str], exchange: str) -> Listed:
    """Find the configured symbols of an exchange.

    Raises:
        UnknownSymbol: one is not listed; names what comes close.
        SettingsError: one is another name of a book (USD and USDC on Coinbase): two names would be two venues.
    """
    listed: dict[str, Instrument] = {}
    for instrument in catalog.instruments:  # of two of one name, the one that is traded
        if instrument.symbol not in listed or not listed[instrument.symbol].trading:
            listed[instrument.symbol] = instrument
    names: dict[str, str] = {}
    halted: dict[str, str] = {}
    for symbol in symbols:
        found = listed.get(symbol)
        if found is None:
            close = difflib.get_close_matches(symbol, listed, 3)
            raise UnknownSymbol(exchange, symbol, f"listed there: {', '.join(close)}" if close else "")
        if found.alias_of is not None and found.alias_of != symbol:
            raise SettingsError(
                f"exchanges.{exchange}.symbols: {symbol} is another name of the book of {found.alias_of} there; "
                f"list {found.alias_of} instead"
            )
        names[found.native] = symbol
        if not found.trading:
            halted[found.native] = f"not traded: {found.status}"
    return Listed(names, halted)


def halted_now(catalog: Catalog, names: dict[str, str]) -> dict[str, str]:
    """Of symbols that were resolved before: those that are not traded (any more), with the reason."""
    by_native = {instrument.native: instrument for instrument in catalog.instruments}
    found = {}
    for native in names:
        instrument = by_native.get(native)
        if instrument is None:
            found[native] = "no longer listed"
        elif not instrument.trading:
            found[native] = f"not traded: {instrument.status}"
    return found


def shard(symbols: Sequence[str], number: int, of: int) -> tuple[str, ...]:
    """Symbols of process `number` (from 1) `of` several; every symbol has exactly one. All must have equal settings."""
    return tuple(symbols[number - 1 :: of])


# ---------------------------------------------------------------- on disk

_STORED = TypeAdapter(Catalog)


def path_of(folder: Path, protocol: str) -> Path:
    """Where a protocol's catalog is kept in the cache folder."""
    return folder / "instruments" / f"{protocol}.json"


def write(path: Path, catalog: Catalog) -> None:
    """Keep it; readers see the old or the new file, never half of one.

    Raises:
        OSError: the disk does not want it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(orjson.dumps(catalog, default=str))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read(path: Path, source: str) -> Catalog | None:
    """What was kept, if it is of the same address and can be read; None otherwise."""
    try:
        found = _STORED.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.source == source else None
