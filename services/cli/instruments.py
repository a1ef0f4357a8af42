"""`arb instruments`: what an exchange lists, from itself or, if it cannot be asked, from the copy on disk."""

import asyncio
import time
from dataclasses import asdict
from typing import Any

import httpx2
import orjson
from rich.console import Console
from rich.table import Table

from services.collector import instruments
from services.collector.exchanges import exchange_named
from services.collector.exchanges.base import Instrument
from services.collector.instruments import Catalog
from services.collector.service import fetch_catalog
from shared.errors import DependencyMissing, FeedError
from shared.settings import Settings, cache_dir


def run(
    settings: Settings,
    exchange: str,
    symbols: tuple[str, ...],
    everything: bool,
    as_json: bool,
    stdout: Console,
    stderr: Console,
) -> bool:
    """Print it; whether all that was asked for is listed and traded.

    Raises:
        UnknownExchange: no such exchange.
        DependencyMissing: neither the exchange nor a copy on disk can be had.
    """
    configured = settings.exchange(exchange)
    protocol = exchange_named(exchange)
    path = instruments.path_of(cache_dir(), protocol.name)
    try:
        catalog = asyncio.run(_ask(settings, exchange))
    except FeedError as error:
        kept = instruments.read(path, configured.rest_url)
        if kept is None:
            raise DependencyMissing(f"{error}; and there is no copy on disk yet") from None
        stderr.print(f"from disk, {(time.time_ns() - kept.fetched_ns) / 3.6e12:.1f} hours old: {error}")
        catalog = kept
    wanted = symbols or (() if everything else configured.symbols)
    rows = [row for row in catalog.instruments if not wanted or row.symbol in wanted]
    missing = [symbol for symbol in wanted if symbol not in {row.symbol for row in rows}]
    if as_json:
        document = {"fetched_ns": catalog.fetched_ns, "instruments": [asdict(row) for row in rows], "missing": missing}
        print(orjson.dumps(document, default=str).decode())  # noqa: T201
    else:
        _print(stdout, rows)
        for symbol in missing:
            stdout.print(f"{symbol}: not listed")
    return not missing and (not wanted or all(row.trading for row in rows))


async def _ask(settings: Settings, exchange: str) -> Catalog:
    configured = settings.exchange(exchange)
    async with httpx2.AsyncClient(timeout=settings.collector.connect_s) as http:
        return await fetch_catalog(exchange_named(exchange), configured.rest_url, http, cache_dir())


def _print(console: Console, rows: list[Instrument]) -> None:
    names = ("symbol", "native", "status", "tick_size", "lot_step", "min_size", "min_notional", "alias_of")
    table = Table(*(name.replace("_", " ") for name in names), box=None)
    for row in rows:
        values: dict[str, Any] = asdict(row)
        table.add_row(*("-" if values[name] is None else str(values[name]) for name in names))
    console.print(table)
