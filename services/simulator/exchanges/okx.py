"""OKX v5 spot as the client sees it: https://www.okx.com/docs-v5/en/ (order book channels, trades channel, error codes;
read 2026-02-23).

All sequence numbers of an instrument come from one counter, whatever the channel and the client; so they jump. The
checksum has been 0 since June 2026.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import orjson

from services.simulator.exchanges.base import Answer, Server, Session, Window, least_size, requested, trimmed
from services.simulator.market import BookEvent, SimBook, TradeEvent
from shared import symbols

DEPTHS = {"books": 400, "books5": 5, "bbo-tbt": 1}
KEEPALIVE_NS = 60_000_000_000
IDLE_NS = 30_000_000_000
MOST_REQUESTS = 480
REQUESTS_NS = 3_600_000_000_000
UNKNOWN_INSTRUMENT = "Instrument ID, Instrument ID code, or Spread ID doesn't exist."


class _Window(Window):
    """The levels of one channel, the number of its last update and that of the one before."""

    def __init__(self, book: SimBook, depth: int, sequence: int) -> None:
        super().__init__(book, depth)
        self.sequence = self.previous = sequence

    def move(self, sequence: int) -> None:
        """Follow the book; only a change takes the number."""
        self.follow()
        if self.changed:
            self.previous, self.sequence = self.sequence, sequence


class OkxServer(Server):
    """Instrument ids are canonical symbols already."""

    def __init__(self, books: Mapping[str, SimBook]) -> None:
        super().__init__(books)
        self.sequence = dict.fromkeys(books, 81_625_399_056)
        self.windows = {
            (channel, symbol): _Window(book, depth, self.sequence[symbol])
            for symbol, book in books.items()
            for channel, depth in DEPTHS.items()
        }
        self._traded = dict.fromkeys(books, 0)
        self.connections = 0

    def before_book(self, event: BookEvent) -> None:
        self.sequence[event.symbol] += len(event.bids) + len(event.asks)
        for channel in DEPTHS:
            self.windows[channel, event.symbol].move(self.sequence[event.symbol])

    def trade_sequence(self, event: TradeEvent) -> int:
        """Number the trade, the first time that a client is told of it."""
        if self._traded[event.symbol] != event.trade_id:
            self._traded[event.symbol] = event.trade_id
            self.sequence[event.symbol] += 1
        return self.sequence[event.symbol]

    def reset_sequence(self, symbol: str) -> None:
        """As after maintenance: the next update of every client has the last number as `prevSeqId`, and a lower one."""
        self.sequence[symbol] //= 2

    def session(self, path: str, now_ns: int) -> Session:
        self.connections += 1
        return OkxSession(self, now_ns, f"{0xA4D3AE54 + self.connections:08x}")

    def rest(self, path: str, now_ns: int) -> Answer | None:
        place, query = requested(path)
        if place == "/api/v5/public/time":
            return _answer([{"ts": str(now_ns // 1_000_000)}])
        required = {"/api/v5/public/instruments": "instType", "/api/v5/market/books": "instId"}.get(place)
        if required is None:
            return None
        if required not in query:
            return _refusal(400, "50014", f"Parameter {required} can not be empty.")
        if required == "instType" and query["instType"] != "SPOT":
            return _refusal(400, "51000", "Parameter instType error")
        if query.get("instId", next(iter(self.books))) not in self.books:
            return _refusal(200, "51001", UNKNOWN_INSTRUMENT)
        if place == "/api/v5/public/instruments":
            return _answer([self._instrument(s) for s in self.books if query.get("instId", s) == s])
        size = query.get("sz", "1")
        if not size.isdigit() or not 1 <= int(size) <= 400:
            return _refusal(400, "51000", "Parameter sz error")
        book = self.books[query["instId"]]
        sides = {side: rows(book, book.top(side, int(size))) for side in ("asks", "bids")}
        sequence = self.windows["books", query["instId"]].sequence
        return _answer([{**sides, "ts": str(now_ns // 1_000_000), "seqId": sequence}])

    def _instrument(self, symbol: str) -> dict[str, Any]:
        book = self.books[symbol]
        base, quote = symbols.split(symbol)
        empty = ("ctMult", "ctType", "ctVal", "ctValCcy", "expTime", "instFamily", "optType", "settleCcy", "stk", "uly")
        row = dict.fromkeys(empty, "") | {
            "alias": "",
            "baseCcy": base,
            "category": "1",
            "instId": symbol,
            "instType": "SPOT",
            "lever": "10",
            "listTime": "1548133413000",
            "lotSz": book.size_text(1),
            "maxIcebergSz": "9999999999",
            "maxLmtSz": "9999999999",
            "maxMktSz": "1000000",
            "maxStopSz": "1000000",
            "maxTriggerSz": "9999999999",
            "maxTwapSz": "9999999999",
            "minSz": least_size(book),
            "quoteCcy": quote,
            "ruleType": "normal",
            "state": "suspend" if symbol in self.halted else "live",
            "tickSz": book.price_text(1),
        }
        return dict(sorted(row.items()))


class OkxSession(Session):
    """One connection: an acknowledgement per argument, never with data; closed where nothing flows for 30 s."""

    def __init__(self, server: OkxServer, now_ns: int, connection: str) -> None:
        self._server = server
        self._connection = connection
        self._subscribed: dict[tuple[str, str], int] = {}  # when each was last sent
        self._requests: deque[int] = deque()
        self._sent_ns = now_ns
        self._unsubscribed_ns = now_ns

    def on_open(self, now_ns: int) -> list[str]:
        return []

    def overdue(self, now_ns: int) -> bool:
        since_ns = self._sent_ns if self._subscribed else self._unsubscribed_ns
        return now_ns - since_ns > IDLE_NS

    def announce_end(self, now_ns: int) -> list[str]:
        words = "The connection will soon be closed for a service upgrade. Please reconnect."
        return self._sending([{"event": "notice", "code": "64008", "msg": words, "connId": self._connection}], now_ns)

    def on_client(self, text: str, now_ns: int) -> list[str]:
        if text == "ping":
            self._sent_ns = now_ns
            return ["pong"]
        try:
            request = orjson.loads(text)
            op = request["op"]
            args = [{str(name): str(value) for name, value in arg.items()} for arg in request["args"]]
            keys = [(arg["channel"], arg.get("instId", "")) for arg in args]
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return self._refuse({}, "60012", f"Invalid request: {text}", now_ns)
        if op not in ("subscribe", "unsubscribe"):
            return self._refuse(request, "60012", f"Invalid request: {text}", now_ns)
        while self._requests and now_ns - self._requests[0] >= REQUESTS_NS:
            self._requests.popleft()
        if len(self._requests) >= MOST_REQUESTS:
            return self._refuse(request, "60014", "Requests too frequent.", now_ns)
        self._requests.append(now_ns)
        for channel, symbol in keys:
            if channel not in (*DEPTHS, "trades") or symbol not in self._server.books:
                words = (
                    f"{op.capitalize()} failed, wrong URL or channel:{channel},instId:{symbol} doesn't exist. "
                    "Please use the correct URL, channel and parameters referring to API document."
                )
                return self._refuse(request, "60018", words, now_ns)
        frames: list[dict[str, Any]] = []
        for arg, key in zip(args, keys, strict=True):
            frames.append(_with_id(request, {"event": op, "arg": arg, "connId": self._connection}))
            if op == "unsubscribe":
                self._subscribed.pop(key, None)
                self._unsubscribed_ns = now_ns
            else:
                self._subscribed[key] = now_ns
                frames += [] if key[0] == "trades" else [self._book("snapshot", key, now_ns)]
        return self._sending(frames, now_ns)

    def on_book(self, event: BookEvent, now_ns: int) -> list[str]:
        keys = [(channel, event.symbol) for channel in DEPTHS]
        due = [key for key in keys if key in self._subscribed and self._server.windows[key].changed]
        return self._sending([self._book("update", key, now_ns) for key in due], now_ns)

    def on_timer(self, now_ns: int) -> list[str]:
        """Of a book without a change for a minute: an empty update, numbered like the last one."""
        frames = []
        for key, sent_ns in list(self._subscribed.items()):
            if key[0] == "books" and now_ns - sent_ns >= KEEPALIVE_NS:
                frames.append(self._book("keepalive", key, now_ns))
        return self._sending(frames, now_ns)

    def on_trade(self, event: TradeEvent, now_ns: int) -> list[str]:
        sequence = self._server.trade_sequence(event)
        if ("trades", event.symbol) not in self._subscribed:
            return []
        book = self._server.books[event.symbol]
        last, count = aggregated(event.trade_id)
        trade = {
            "instId": event.symbol,
            "tradeId": str(last),
            "px": trimmed(book.price_text(event.price)),
            "sz": trimmed(book.size_text(event.size)),
            "side": event.taker_side,
            "ts": str(now_ns // 1_000_000),
            "count": str(count),
            "source": "0",
            "seqId": sequence,
        }
        return self._sending([{"arg": {"channel": "trades", "instId": event.symbol}, "data": [trade]}], now_ns)

    def _book(self, kind: str, key: tuple[str, str], now_ns: int) -> dict[str, Any]:
        """A frame of a book channel; only `books` has updates, the others send all their levels each time."""
        self._subscribed[key] = now_ns
        channel, symbol = key
        book, window = self._server.books[symbol], self._server.windows[key]
        whole = {side: list(window.levels[side].items()) for side in ("asks", "bids")}
        frame: dict[str, Any] = {"arg": {"channel": channel, "instId": symbol}}
        ts = str(now_ns // 1_000_000)
        if channel != "books":
            name = {"instId": symbol} if channel == "books5" else {}
            sides = {side: rows(book, levels) for side, levels in whole.items()}
            return frame | {"data": [{**sides, **name, "ts": ts, "seqId": window.sequence}]}
        levels, previous = whole, -1
        if kind == "update":
            levels, previous = window.changes, window.previous
        elif kind == "keepalive":
            levels, previous = {"asks": [], "bids": []}, window.sequence
        data = {side: rows(book, levels[side]) for side in ("asks", "bids")}
        numbers = {"ts": ts, "checksum": 0, "seqId": window.sequence, "prevSeqId": previous}
        return frame | {"action": "snapshot" if kind == "snapshot" else "update", "data": [{**data, **numbers}]}

    def _refuse(self, request: dict[str, Any], code: str, words: str, now_ns: int) -> list[str]:
        """One bad argument fails the whole request."""
        frame = {"event": "error", "code": code, "msg": words, "connId": self._connection}
        return self._sending([_with_id(request, frame)], now_ns)

    def _sending(self, frames: list[dict[str, Any]], now_ns: int) -> list[str]:
        if frames:
            self._sent_ns = now_ns
        return [orjson.dumps(frame).decode() for frame in frames]


def aggregated(trade_id: int) -> tuple[int, int]:
    """Id and count of a taker order: each third one was filled by two makers, so two ids have one frame."""
    threes, place = divmod(trade_id, 3)
    return 4 * threes + (1, 3, 4)[place], (1, 2, 1)[place]


def rows(book: SimBook, levels: list[tuple[int, int]]) -> list[list[str]]:
    """Price, size, a field without meaning, number of orders (made up: our books know none)."""
    return [
        [trimmed(book.price_text(price)), trimmed(book.size_text(size)), "0", str(size and size % 7 + 1)]
        for price, size in levels
    ]


def _with_id(request: dict[str, Any], frame: dict[str, Any]) -> dict[str, Any]:
    """The client's own number of its request, where it gave one."""
    return {"id": str(request["id"]), **frame} if "id" in request else frame


def _answer(data: list[dict[str, Any]]) -> Answer:
    return Answer(200, orjson.dumps({"code": "0", "msg": "", "data": data}))


def _refusal(status: int, code: str, words: str) -> Answer:
    return Answer(status, orjson.dumps({"code": code, "data": [], "msg": words}))
