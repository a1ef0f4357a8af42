"""Binance spot streams and REST depth: https://github.com/binance/binance-spot-api-docs (web-socket-streams.md,
"How to manage a local order book correctly", read 2026-07-21).

An unknown stream is no error there: it is acknowledged and stays silent, so a book counts as verified only when its
first diff has come. There is no heartbeat within two seconds, so our own ping is the proof of life (limit: five
messages a second from the client).
"""

from collections.abc import Sequence
from urllib.parse import parse_qs, urlsplit

import orjson

from services.collector.exchanges.base import (
    Chain,
    Closing,
    Delta,
    Event,
    Exchange,
    Refused,
    Snapshot,
    TradeSeen,
    levels,
)

_MS = 1_000_000


def native(symbol: str) -> str:
    """`BTC-USDT` -> `BTCUSDT`."""
    return symbol.replace("-", "")


def url(base: str, symbols: Sequence[str]) -> str:
    """Combined streams: the payload comes wrapped with its stream's name."""
    names = [f"{symbol.lower()}@{channel}" for symbol in symbols for channel in ("depth@100ms", "trade")]
    return f"{base.rstrip('/')}/stream?streams={'/'.join(names)}"


def parse(frame: bytes | str) -> list[Event]:
    """Diffs, trades and the announced shutdown; tickers, klines, aggregated trades and acks are not ours."""
    message = orjson.loads(frame)
    data = message.get("data", message)
    match data.get("e"):
        case "depthUpdate":
            first, last = data["U"], data["u"]
            if not (isinstance(first, int) and isinstance(last, int) and first <= last):
                raise ValueError(f"update ids {first!r} to {last!r}")
            return [Delta(data["s"], levels(data["b"]), levels(data["a"]), data["E"] * _MS, first, last)]
        case "trade":
            side = "sell" if data["m"] else "buy"  # m: the buyer is the maker, so the taker sold
            price, size = float(data["p"]), float(data["q"])
            return [TradeSeen(data["s"], str(int(data["t"])), price, size, side, data["T"] * _MS)]
        case "serverShutdown":
            return [Closing("serverShutdown")]
    if "error" in message:
        return [Refused(None, str(message["error"].get("msg", message["error"])))]
    if "code" in message and "msg" in message:
        return [Refused(None, str(message["msg"]))]
    return []


def snapshot_url(base: str, symbol: str, depth: int) -> str:
    """Weight 50 of 6,000 a minute at depth 1000."""
    return f"{base.rstrip('/')}/api/v3/depth?symbol={symbol}&limit={depth}"


def snapshot_symbol(address: str) -> str | None:
    """Symbol of a recorded REST address, if it is a depth snapshot's."""
    parts = urlsplit(address)
    return parse_qs(parts.query).get("symbol", [None])[0] if parts.path == "/api/v3/depth" else None


def parse_snapshot(symbol: str, body: bytes | str) -> Snapshot:
    """`{"lastUpdateId":160,"bids":[["0.0024","10"]],"asks":[["0.0026","100"]]}`; it carries no time."""
    data = orjson.loads(body)
    last_id = data["lastUpdateId"]
    if not isinstance(last_id, int):
        raise ValueError(f"lastUpdateId {last_id!r}")
    return Snapshot(symbol, levels(data["bids"]), levels(data["asks"]), None, last_id)


def refusal(status: int, body: bytes) -> str | None:
    """-1121 is an unknown symbol: https://github.com/binance/binance-spot-api-docs errors.md."""
    if status != 400:
        return None
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return str(answer.get("msg")) if isinstance(answer, dict) and answer.get("code") == -1121 else None


BINANCE = Exchange(
    name="binance",
    chain=Chain.UPDATE_IDS,
    url=url,
    subscribe=lambda symbols, depth: [],  # the address names the streams
    parse=parse,
    native=native,
    canonical=lambda name: name,  # BTCUSDT: only the exchange's metadata could tell where to cut
    snapshot_url=snapshot_url,
    snapshot_symbol=snapshot_symbol,
    parse_snapshot=parse_snapshot,
    refusal=refusal,
    ping_s=0.9,
    books_per_connection=100,  # 1,024 streams a connection; fewer books share one fate
)
