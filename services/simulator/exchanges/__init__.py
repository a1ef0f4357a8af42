"""The exchanges that the simulator can stand in for: one line each."""

from services.simulator.exchanges.base import Server
from services.simulator.exchanges.binance import BinanceServer
from services.simulator.exchanges.coinbase import CoinbaseServer
from services.simulator.exchanges.kraken import KrakenServer

SERVERS: dict[str, type[Server]] = {"binance": BinanceServer, "coinbase": CoinbaseServer, "kraken": KrakenServer}
"""One instance of a server stands for one exchange; it makes a session for each connection."""
