"""The table of exchanges: one line each."""

from services.collector.exchanges.base import Exchange
from services.collector.exchanges.binance import BINANCE
from services.collector.exchanges.bybit import BYBIT
from services.collector.exchanges.coinbase import COINBASE
from services.collector.exchanges.coinbase_exchange import COINBASE_EXCHANGE
from services.collector.exchanges.kraken import KRAKEN
from services.collector.exchanges.okx import OKX
from shared.errors import UnknownExchange

EXCHANGES: dict[str, Exchange] = {
    exchange.name: exchange for exchange in (BINANCE, COINBASE, COINBASE_EXCHANGE, KRAKEN, BYBIT, OKX)
}
"""Protocols by name. `coinbase-exchange` is the second source of the exchange `coinbase`."""


def exchange_named(name: str) -> Exchange:
    """The exchange of that name.

    Raises:
        UnknownExchange: there is none.
    """
    if name not in EXCHANGES:
        raise UnknownExchange(name, tuple(EXCHANGES))
    return EXCHANGES[name]
