"""Binance spot streams and REST depth: https://github.com/binance/binance-spot-api-docs (web-socket-streams.md,
"How to manage a local order book correctly"; rest-api.md; read 2026-07-21).

An unknown stream is no error there: it is acknowledged and stays silent, so a book counts as verified only when its
first diff has come. There is no heartbeat within two seconds, so our own ping is the proof of life (limit: five
messages a second from the client, pings included).

`bookTicker` numbers its updates like the diffs do (`u`, order book update id), so it is merged as the faster top; it
carries no time.
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import orjson

from services.collector.exchanges.base import (
    Closing,
    Delta,
    Event,
    Exchange,
    Instrument,
    Limits,
    Proof,
    Refused,
    Rule,
    Snapshot,
    Step,
    Top,
    TradeSeen,
    canonical,
    integer,
    ms_ns,
    number,
    positive,
)

CHANNELS = ("depth@100ms", "trade")
FAST = "bookTicker"


def native(symbol: str) -> str:
    """`BTC-USDT` -> `BTCUSDT`."""
    return symbol.replace("-", "")


def url(base: str, natives: Sequence[str]) -> str:
    """Combined payloads: each comes wrapped with its stream's name. Streams are subscribed by frames."""
    return f"{base.rstrip('/')}/stream"


def _streams(natives: Sequence[str], channels: Sequence[str]) -> list[str]:
    return [f"{name.lower()}@{channel}" for name in natives for channel in channels]


def _say(method: str, params: list[str]) -> str:
    return orjson.dumps({"method": method, "params": params, "id": 1}).decode()


def subscribe(natives: Sequence[str], depth: int, fast_tops: bool) -> list[str]:
    """One frame for all: five a second are allowed."""
    return [_say("SUBSCRIBE", _streams(natives, (*CHANNELS, FAST) if fast_tops else CHANNELS))]


def resubscribe(natives: Sequence[str], depth: int) -> list[str]:
    """The diffs again; the snapshot is fetched beside it."""
    streams = _streams(natives, ("depth@100ms",))
    return [_say("UNSUBSCRIBE", streams), _say("SUBSCRIBE", streams)]


def unsubscribe(natives: Sequence[str], depth: int) -> list[str]:
    return [_say("UNSUBSCRIBE", _streams(natives, (*CHANNELS, FAST)))]


def follows(last_id: int, delta: Delta) -> Step:
    """Step 5, in its strict form: each event begins where the one before ended (so it is in all our captures)."""
    return Step.APPLY if delta.first_id == last_id + 1 else Step.GAP


class _Diff(msgspec.Struct):
    E: int
    s: str
    U: int
    u: int
    b: list[tuple[float, float]]
    a: list[tuple[float, float]]


class _DiffFrame(msgspec.Struct):
    data: _Diff


class _Ticker(msgspec.Struct):
    s: str
    u: int
    b: float
    B: float
    a: float
    A: float


class _TickerFrame(msgspec.Struct):
    data: _Ticker


# Not strict: prices and sizes are texts there, and become numbers here.
_DIFF_FRAME = msgspec.json.Decoder(_DiffFrame, strict=False)
_DIFF = msgspec.json.Decoder(_Diff, strict=False)
_TICKER_FRAME = msgspec.json.Decoder(_TickerFrame, strict=False)
_TICKER = msgspec.json.Decoder(_Ticker, strict=False)


def parse(frame: bytes | str) -> list[Event]:
    """Diffs, faster tops, trades and the announced shutdown; tickers, klines, aggregated trades, acks are not ours."""
    data = frame.encode() if isinstance(frame, str) else frame
    stream = data[:64]
    if b'@depth@100ms","data":' in stream:  # nearly all frames; written otherwise they come the other way
        return [_diff(_DIFF_FRAME.decode(data).data)]
    if b'@bookTicker","data":' in stream:
        return [_top(_TICKER_FRAME.decode(data).data)]
    message = orjson.loads(data)
    wrapped = "data" in message
    payload = message["data"] if wrapped else message
    kind = payload.get("e")
    if kind == "trade":
        side = "sell" if payload["m"] else "buy"  # m: the buyer is the maker, so the taker sold
        trade_id = integer(payload["t"])
        price, size, when = positive(payload["p"]), positive(payload["q"]), ms_ns(payload["T"])
        return [TradeSeen(payload["s"], str(trade_id), price, size, side, when, number=trade_id)]
    if kind == "depthUpdate":
        return [_diff(_DIFF_FRAME.decode(data).data if wrapped else _DIFF.decode(data))]
    if kind == "serverShutdown":
        return [Closing("serverShutdown")]
    if kind is None and "A" in payload and "u" in payload:
        return [_top(_TICKER_FRAME.decode(data).data if wrapped else _TICKER.decode(data))]
    return _answer(message) if kind is None else []


def _diff(data: _Diff) -> Delta:
    if not 0 <= data.U <= data.u:
        raise ValueError(f"update ids {data.U} to {data.u}")
    return Delta(data.s, data.b, data.a, ms_ns(data.E), data.U, data.u, order=data.u)


def _top(data: _Ticker) -> Top:
    return Top(data.s, (data.b, data.B), (data.a, data.A), data.u, None)


def _answer(message: dict[str, Any]) -> list[Event]:
    if "error" in message:
        return [Refused(None, str(message["error"].get("msg", message["error"])))]
    if "code" in message and "msg" in message:
        return [Refused(None, str(message["msg"]))]
    return []


def snapshot_url(base: str, symbol: str, depth: int) -> str:
    return f"{base.rstrip('/')}/api/v3/depth?symbol={symbol}&limit={depth}"


def snapshot_cost(depth: int) -> int:
    """Weight by levels, rest-api.md."""
    return next(weight for most, weight in ((100, 5), (500, 25), (1000, 50), (10**9, 250)) if depth <= most)


def snapshot_symbol(address: str) -> str | None:
    """Symbol of a recorded REST address, if it is a depth snapshot's."""
    parts = urlsplit(address)
    return parse_qs(parts.query).get("symbol", [None])[0] if parts.path == "/api/v3/depth" else None


class _Depth(msgspec.Struct):
    lastUpdateId: int
    bids: list[tuple[float, float]]
    asks: list[tuple[float, float]]


_DEPTH = msgspec.json.Decoder(_Depth, strict=False)


def parse_snapshot(symbol: str, body: bytes | str) -> Snapshot:
    """`{"lastUpdateId":160,"bids":[["0.0024","10"]],"asks":[["0.0026","100"]]}`; it carries no time."""
    data = _DEPTH.decode(body)
    return Snapshot(symbol, data.bids, data.asks, None, data.lastUpdateId, order=data.lastUpdateId)


def refusal(status: int, body: bytes) -> str | None:
    """-1121 is an unknown symbol: https://github.com/binance/binance-spot-api-docs errors.md."""
    if status != 400:
        return None
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return str(answer.get("msg")) if isinstance(answer, dict) and answer.get("code") == -1121 else None


def parse_instruments(body: bytes | str) -> list[Instrument]:
    """`exchangeInfo`; CANCEL_ONLY exists since 2026-07. Older answers say MIN_NOTIONAL instead of NOTIONAL."""
    found = []
    for row in orjson.loads(body)["symbols"]:
        symbol = canonical(row["baseAsset"], row["quoteAsset"])
        if symbol is None:
            continue
        rules = {rule["filterType"]: rule for rule in row["filters"]}
        lots, notional = rules.get("LOT_SIZE", {}), rules.get("NOTIONAL") or rules.get("MIN_NOTIONAL") or {}
        found.append(
            Instrument(
                native=row["symbol"],
                symbol=symbol,
                trading=row["status"] == "TRADING",
                status=row["status"],
                tick_size=number(rules.get("PRICE_FILTER", {}).get("tickSize")),
                lot_step=number(lots.get("stepSize")),
                min_size=number(lots.get("minQty")),
                min_notional=number(notional.get("minNotional")),
            )
        )
    return found


def parse_time(body: bytes | str) -> tuple[int, int]:
    return ms_ns(orjson.loads(body)["serverTime"]), 1_000_000


BINANCE = Exchange(
    name="binance",
    url=url,
    subscribe=subscribe,
    resubscribe=resubscribe,
    unsubscribe=unsubscribe,
    parse=parse,
    follows=follows,
    native=native,
    canonical=lambda name: name,  # BTCUSDT: only the exchange's metadata could tell where to cut
    instruments_url=lambda base: f"{base.rstrip('/')}/api/v3/exchangeInfo?showPermissionSets=false",
    parse_instruments=parse_instruments,
    instruments_cost=20,
    time_url=lambda base: f"{base.rstrip('/')}/api/v3/time",
    parse_time=parse_time,
    limits=Limits(
        connects=(Rule(300, 300.0),),
        messages=(Rule(3, 1.0),),  # five a second, of which our pings take one or two
        requests=(Rule(6000, 60.0),),
        forbidden_wait_s=300.0,  # its firewall
        books=100,  # 1,024 streams a connection; fewer books share one fate
        age_s=84_600.0,  # closed by the server at 24 h: replaced half an hour before
    ),
    proof=Proof(idle_s=0.9),
    snapshot_url=snapshot_url,
    snapshot_cost=snapshot_cost,
    snapshot_symbol=snapshot_symbol,
    parse_snapshot=parse_snapshot,
    refusal=refusal,
)
