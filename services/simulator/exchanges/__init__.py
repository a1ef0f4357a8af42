"""The exchanges that the simulator can stand in for: one line each."""

from services.simulator.exchanges.base import Server
from services.simulator.exchanges.binance import BinanceServer
from services.simulator.exchanges.bybit import BybitServer
from services.simulator.exchanges.coinbase import CoinbaseServer
from services.simulator.exchanges.coinbase_exchange import CoinbaseExchangeServer
from services.simulator.exchanges.kraken import KrakenServer
from services.simulator.exchanges.okx import OkxServer

SERVERS: dict[str, type[Server]] = {
    "binance": BinanceServer,
    "coinbase": CoinbaseServer,
    "coinbase-exchange": CoinbaseExchangeServer,  # no exchange of the settings: it serves the books of "coinbase"
    "kraken": KrakenServer,
    "bybit": BybitServer,
    "okx": OkxServer,
}
"""One instance of a server stands for one exchange; it makes a session for each connection."""
