"""What the exchanges list: real answers, cut short, and what is made of them. Sources: instruments/README.md."""

import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.collector import instruments
from services.collector.exchanges import EXCHANGES
from services.collector.exchanges.base import Instrument, canonical, number, parse_answer, parse_listing
from services.collector.instruments import Catalog, halted_now, resolve, shard
from shared.errors import BadFrame, SettingsError, UnknownSymbol

FOLDER = Path(__file__).parent / "instruments"


def body(exchange: str) -> bytes:
    return (FOLDER / f"{exchange}.json").read_bytes()


def listed(exchange: str, answer: bytes | None = None) -> dict[str, Instrument]:
    """By canonical name."""
    protocol = EXCHANGES[exchange]
    found = parse_listing(protocol, body(exchange) if answer is None else answer)
    return {instrument.symbol: instrument for instrument in found}


def catalog(exchange: str, answer: bytes | None = None) -> Catalog:
    return Catalog(exchange, f"https://{exchange}", 77, tuple(listed(exchange, answer).values()))


# ---------------------------------------------------------------- reading them

D = Decimal


@pytest.mark.parametrize(
    ("exchange", "expected"),
    [
        ("binance", Instrument("BTCUSDT", "BTC-USDT", True, "TRADING", D("0.01"), D("0.00001"), D("0.00001"), D("10"))),
        ("binance", Instrument("1INCHUSDT", "1INCH-USDT", True, "TRADING", D("0.001"), D("0.1"), D("0.1"), D("10"))),
        ("binance", Instrument("BCCUSDT", "BCC-USDT", False, "BREAK", D("0.01"), D("0.00001"), D("0.00001"), D("10"))),
        (
            "coinbase-exchange",
            Instrument("BTC-USD", "BTC-USD", True, "online", D("0.01"), D("1E-8"), D("0.0001"), D("5")),
        ),
        ("kraken", Instrument("BTC/USD", "BTC-USD", True, "online", D("0.1"), D("1E-8"), D("0.0002"), None)),
        ("kraken", Instrument("DOGE/USD", "DOGE-USD", True, "online", D("1E-7"), D("1E-8"), D("50"), None)),
        ("okx", Instrument("BTC-USDT", "BTC-USDT", True, "live", D("0.1"), D("1E-8"), D("0.00001"), None)),
        ("bybit", Instrument("BTCUSDT", "BTC-USDT", True, "Trading", D("0.1"), D("0.000001"), D("0.000011"), D("5"))),
        ("bybit", Instrument("OLDUSDT", "OLD-USDT", False, "Closed", D("0.0001"), D("0.1"), None, None)),
        ("coinbase", Instrument("BTC-USD", "BTC-USD", True, "online", D("0.01"), D("1E-8"), D("1E-8"), D("1"))),
        (
            "coinbase",
            Instrument("BTC-USDC", "BTC-USDC", True, "online", D("0.01"), D("1E-8"), D("1E-8"), D("1"), "BTC-USD"),
        ),
        ("coinbase", Instrument("ETH-USD", "ETH-USD", False, "cancel_only", D("0.01"), D("1E-8"), D("1E-8"), D("1"))),
        ("coinbase", Instrument("OLD-USD", "OLD-USD", False, "delisted", D("0.0001"), D("0.1"), None, None)),
    ],
)
def test_an_instrument_is_read_as_it_stands(exchange, expected):
    assert listed(exchange)[expected.symbol] == expected


@pytest.mark.parametrize(
    ("exchange", "symbols"),
    [
        ("binance", "BTC-USDT ETH-BTC 1INCH-USDT USDC-USDT BCC-USDT"),
        ("coinbase-exchange", "BTC-USD BTC-USDC ETH-BTC DAI-USD ZRX-USD XTZ-EUR"),
        ("kraken", "BTC-USD DOGE-USD ETH-BTC XTZ-USD ZEC-USD XRP-USD"),
        ("okx", "BTC-USDT DOGE-USDT ETH-BTC USDC-USDT BABYDOGE-USDT"),
        ("bybit", "BTC-USDT ETH-BTC BTC-USDC USDC-USDT OLD-USDT"),
        ("coinbase", "BTC-USD BTC-USDC EURC-USDC ETH-USD OLD-USD"),
    ],
)
def test_every_listed_pair_has_a_name_of_its_own_on_both_sides(exchange, symbols):
    protocol = EXCHANGES[exchange]
    found = protocol.parse_instruments(body(exchange))
    assert [instrument.symbol for instrument in found] == symbols.split()
    assert len({instrument.native for instrument in found}) == len(found)


@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES)
def test_a_listed_native_name_is_what_the_adapter_would_say_and_understands(exchange):
    for symbol, instrument in listed(exchange.name).items():
        assert exchange.native(symbol) == instrument.native
        assert exchange.canonical(instrument.native) in (symbol, instrument.native)


@pytest.mark.parametrize(
    ("wsname", "native", "symbol"),
    [
        ("XBT/USD", "BTC/USD", "BTC-USD"),
        ("ETH/XBT", "ETH/BTC", "ETH-BTC"),
        ("XDG/XBT", "DOGE/BTC", "DOGE-BTC"),
        ("XTZ/USD", "XTZ/USD", "XTZ-USD"),
        ("ZRX/USD", "ZRX/USD", "ZRX-USD"),
        ("ZEC/XBT", "ZEC/BTC", "ZEC-BTC"),
        ("XRP/EUR", "XRP/EUR", "XRP-EUR"),
        ("XXBTX/USD", "XXBTX/USD", "XXBTX-USD"),
        ("TBTC/USD", "TBTC/USD", "TBTC-USD"),
    ],
)
def test_kraken_renames_bitcoin_and_dogecoin_only(wsname, native, symbol):
    answer = json.loads(body("kraken"))
    answer["result"] = {"PAIR": answer["result"]["XTZUSD"] | {"wsname": wsname}}
    (instrument,) = listed("kraken", json.dumps(answer).encode()).values()
    assert (instrument.native, instrument.symbol) == (native, symbol)


def test_kraken_newer_fields_come_first():
    answer = json.loads(body("kraken"))
    newer = {"status": "cancel_only", "tick_size": "0.05", "costmin": "0.5"}
    answer["result"] = {"XXBTZUSD": answer["result"]["XXBTZUSD"] | newer}
    instrument = listed("kraken", json.dumps(answer).encode())["BTC-USD"]
    assert (instrument.trading, instrument.status) == (False, "cancel_only")
    assert (instrument.tick_size, instrument.min_notional) == (D("0.05"), D("0.5"))


def test_binance_newer_notional_comes_first():
    answer = json.loads(body("binance"))
    answer["symbols"][0]["filters"].append({"filterType": "NOTIONAL", "minNotional": "5.00000000"})
    assert listed("binance", json.dumps(answer).encode())["BTC-USDT"].min_notional == 5


@pytest.mark.parametrize(
    ("exchange", "rows", "field", "words"),
    [
        ("binance", ("symbols",), "status", ["HALT", "BREAK", "CANCEL_ONLY", "END_OF_DAY", "AUCTION_MATCH"]),
        ("kraken", ("result",), "status", ["cancel_only", "post_only", "limit_only", "reduce_only", "maintenance"]),
        ("okx", ("data",), "state", ["suspend", "preopen", "test", "post_only"]),
        ("bybit", ("result", "list"), "status", ["PreLaunch", "Closed", "Settling"]),
        ("coinbase", ("products",), "status", ["offline", "delisted"]),
        ("coinbase-exchange", (), "status", ["offline", "internal", "delisted"]),
    ],
)
def test_only_the_exchanges_own_word_for_trading_counts(exchange, rows, field, words):
    for word in words:
        answer = json.loads(body(exchange))
        found = answer
        for name in rows:
            found = found[name]
        row = next(iter(found.values() if isinstance(found, dict) else found))
        row[field] = word
        first = next(iter(listed(exchange, json.dumps(answer).encode()).values()))
        assert (first.trading, first.status) == (False, word)


@pytest.mark.parametrize(
    ("exchange", "flags"),
    [
        ("coinbase", "is_disabled trading_disabled view_only cancel_only post_only auction_mode"),
        ("coinbase-exchange", "trading_disabled cancel_only post_only auction_mode"),
    ],
)
def test_coinbase_says_by_flags_too_that_a_pair_is_not_traded(exchange, flags):
    for flag in flags.split():
        answer = json.loads(body(exchange))
        row = answer["products"][0] if exchange == "coinbase" else answer[0]
        row[flag] = True
        instrument = listed(exchange, json.dumps(answer).encode())["BTC-USD"]
        assert (instrument.trading, instrument.status) == (False, flag)


@pytest.mark.parametrize(
    ("base", "quote", "symbol"),
    [
        ("btc", "usdt", None),
        ("AAPLx", "USD", None),
        ("1000SATS", "USDT", "1000SATS-USDT"),
        ("币安人生", "USDT", None),
        ("$TRUMP", "USD", None),
        ("ETH2.S", "ETH", None),
        ("", "USD", None),
        ("BTC", "", None),
    ],
)
def test_a_name_that_cannot_be_a_symbol_of_ours_is_left_out(base, quote, symbol):
    assert canonical(base, quote) == symbol


def test_numbers_of_metadata():
    assert number("0.00100000") == D("0.001")
    assert number(1e-8) == D("1E-8")
    assert [number(value) for value in (None, "", "0", "0.00000000", 0)] == [None] * 5
    for value in ("one", "1,5", True, []):
        with pytest.raises(ValueError, match="not a number"):
            number(value)


def test_infinity_is_no_number():
    with pytest.raises((ValueError, ArithmeticError)):
        number("Infinity")


# ---------------------------------------------------------------- wrong answers and the clock

WRONG = [
    b"",
    b"null",
    b"0",
    b"[1]",
    b"[{}]",
    b'"maintenance"',
    b"<html>502</html>",
    b"\xff\xfe",
    b"[" * 5000,
    b'{"message":"NotFound"}',
    b'{"error":["EService:Unavailable"]}',
    b'{"error":{"code":1}}',
    b'{"code":-1003,"msg":"Too much request weight used."}',
    b'{"code":"50001","msg":"Service temporarily unavailable","data":[]}',
    b'{"retCode":10016,"retMsg":"Server error","result":{}}',
    b'{"symbols":[{}],"products":[{}],"result":{"list":[{}]},"data":[{}],"retCode":0,"code":"0","error":[]}',
    b'{"symbols":null,"products":null,"result":null,"data":null,"retCode":0,"code":"0","error":[]}',
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: repr(wrong[:30]))
@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES)
def test_a_wrong_body_is_a_bad_frame(exchange, wrong):
    for parse in (exchange.parse_instruments, exchange.parse_time):
        with pytest.raises(BadFrame):
            parse_answer(exchange, parse, wrong)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(EXCHANGES)), st.data())
def test_a_field_with_anything_in_it_gives_instruments_or_a_bad_frame(exchange, data):
    answer = json.loads(body(exchange))
    places = [
        (holder, key) for holder in walk(answer) for key in (holder if isinstance(holder, dict) else range(len(holder)))
    ]
    holder, key = data.draw(st.sampled_from(places))
    holder[key] = data.draw(JSON)
    try:
        found = listed(exchange, json.dumps(answer).encode())
    except BadFrame:
        return
    for instrument in found.values():
        steps = (instrument.tick_size, instrument.lot_step, instrument.min_size, instrument.min_notional)
        assert all(step is None or step > 0 for step in steps)


def walk(value):
    """Every list and dictionary of a document, itself included."""
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from walk(inner)


@pytest.mark.parametrize(
    ("exchange", "wrong"),
    [
        ("coinbase-exchange", b"{}"),
        ("coinbase-exchange", b'""'),
        ("coinbase-exchange", b"[]"),
        ("binance", b'{"symbols":{}}'),
        ("binance", b'{"symbols":[]}'),
        ("coinbase", b'{"products":[]}'),
        ("kraken", b'{"error":[],"result":{}}'),
        ("okx", b'{"code":"0","data":[]}'),
        ("bybit", b'{"retCode":0,"result":{"list":[]}}'),
    ],
)
def test_an_exchange_that_lists_nothing_is_not_believed(exchange, wrong):
    with pytest.raises(BadFrame):
        listed(exchange, wrong)


@pytest.mark.parametrize(
    ("exchange", "answer", "time_ns", "coarse_ns"),
    [
        ("binance", b'{"serverTime":1633998511098}', 1_633_998_511_098_000_000, 1_000_000),
        (
            "coinbase",
            b'{"iso":"2021-10-12T00:28:31Z","epochSeconds":"1633998511","epochMillis":"1633998511098"}',
            1_633_998_511_098_000_000,
            1_000_000,
        ),
        (
            "coinbase-exchange",
            b'{"iso":"2021-10-12T00:28:31.098Z","epoch":1633998511.098}',
            1_633_998_511_098_000_000,
            1_000_000,
        ),
        (
            "kraken",
            b'{"error":[],"result":{"unixtime":1633998511,"rfc1123":"Tue, 12 Oct 21 00:28:31 +0000"}}',
            1_633_998_511_000_000_000,
            1_000_000_000,
        ),
        ("okx", b'{"code":"0","msg":"","data":[{"ts":"1633998511098"}]}', 1_633_998_511_098_000_000, 1_000_000),
        (
            "bybit",
            b'{"retCode":0,"retMsg":"OK","result":{"timeSecond":"1633998511","timeNano":"1633998511098765432"},"time":1633998511098}',
            1_633_998_511_098_765_432,
            1,
        ),
    ],
)
def test_the_exchanges_clock_is_read_with_how_coarse_it_is(exchange, answer, time_ns, coarse_ns):
    protocol = EXCHANGES[exchange]
    assert parse_answer(protocol, protocol.parse_time, answer) == (time_ns, coarse_ns)


# ---------------------------------------------------------------- configured symbols


@pytest.mark.parametrize("exchange", ["binance", "coinbase-exchange", "kraken", "okx", "bybit"])
def test_configured_symbols_are_found_by_their_canonical_names(exchange):
    everything = catalog(exchange)
    symbols = [instrument.symbol for instrument in everything.instruments]
    found = resolve(everything, symbols, exchange)
    assert list(found.names.values()) == symbols
    assert found.names == {instrument.native: instrument.symbol for instrument in everything.instruments}


def test_only_what_is_configured_is_taken():
    assert resolve(catalog("kraken"), ["BTC-USD"], "kraken").names == {"BTC/USD": "BTC-USD"}
    assert resolve(catalog("kraken"), [], "kraken").names == {}


def test_a_symbol_that_is_not_traded_is_found_and_said_to_be_halted():
    found = resolve(catalog("binance"), ["BTC-USDT", "BCC-USDT"], "binance")
    assert found.names == {"BTCUSDT": "BTC-USDT", "BCCUSDT": "BCC-USDT"}
    assert found.halted == {"BCCUSDT": "not traded: BREAK"}


def test_an_unknown_symbol_is_named_with_those_that_come_close():
    with pytest.raises(UnknownSymbol, match=r"okx does not list BTC-USDX \(listed there: BTC-USDT") as raised:
        resolve(catalog("okx"), ["DOGE-USDT", "BTC-USDX"], "okx")
    assert "exchanges.okx.symbols" in str(raised.value)


def test_an_unknown_symbol_that_nothing_comes_close_to_is_named_alone():
    with pytest.raises(UnknownSymbol, match="binance does not list QQQQQQ-ZZZ; correct"):
        resolve(catalog("binance"), ["QQQQQQ-ZZZ"], "binance")


def test_krakens_old_name_is_not_a_symbol():
    with pytest.raises(UnknownSymbol, match="kraken does not list XBT-USD"):
        resolve(catalog("kraken"), ["XBT-USD"], "kraken")


def test_another_name_of_a_book_is_refused_and_the_first_one_named():
    with pytest.raises(
        SettingsError, match=r"exchanges\.coinbase\.symbols: BTC-USDC is another name.*list BTC-USD instead"
    ):
        resolve(catalog("coinbase"), ["BTC-USD", "BTC-USDC"], "coinbase")


def test_a_book_with_other_names_and_a_stable_pair_are_not_refused():
    found = resolve(catalog("coinbase"), ["BTC-USD", "EURC-USDC"], "coinbase")
    assert found.names == {"BTC-USD": "BTC-USD", "EURC-USDC": "EURC-USDC"}
    assert found.halted == {}


def test_halts_and_delistings_are_seen_later_and_their_end_too():
    names = resolve(catalog("okx"), ["BTC-USDT", "DOGE-USDT", "ETH-BTC"], "okx").names
    assert halted_now(catalog("okx"), names) == {}
    answer = json.loads(body("okx"))
    answer["data"][0]["state"] = "suspend"
    del answer["data"][1]
    later = catalog("okx", json.dumps(answer).encode())
    assert halted_now(later, names) == {"BTC-USDT": "not traded: suspend", "DOGE-USDT": "no longer listed"}
    assert halted_now(catalog("okx"), names) == {}


@given(st.lists(st.text("ABC-", min_size=1, max_size=6), unique=True, max_size=40), st.integers(1, 12))
def test_every_symbol_is_in_exactly_one_shard_in_its_order(symbols, of):
    shards = [shard(symbols, number, of) for number in range(1, of + 1)]
    assert sorted(symbol for one in shards for symbol in one) == sorted(symbols)
    assert all(list(one) == sorted(one, key=symbols.index) for one in shards)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


# ---------------------------------------------------------------- on disk


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_what_was_kept_is_what_is_read(exchange, tmp_path):
    kept = catalog(exchange)
    path = instruments.path_of(tmp_path / "not" / "there", exchange)
    instruments.write(path, kept)
    assert instruments.read(path, kept.source) == kept
    assert [found.name for found in path.parent.iterdir()] == [f"{exchange}.json"]


def test_what_is_kept_is_replaced(tmp_path):
    path = instruments.path_of(tmp_path, "kraken")
    instruments.write(path, catalog("kraken"))
    newer = Catalog("kraken", "https://kraken", 99, catalog("kraken").instruments[:1])
    instruments.write(path, newer)
    assert instruments.read(path, "https://kraken") == newer


def test_half_a_file_is_ignored_wherever_it_ends(tmp_path):
    path = instruments.path_of(tmp_path, "okx")
    instruments.write(path, catalog("okx"))
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        assert instruments.read(path, "https://okx") is None


@pytest.mark.parametrize(
    "foreign",
    [
        b"",
        b"null",
        b"{}",
        b"[]",
        b"\xff\x00",
        b'{"protocol":"okx","source":"https://okx","fetched_ns":1}',
        b'{"protocol":"okx","source":"https://okx","fetched_ns":"yesterday","instruments":[]}',
        b'{"protocol":"okx","source":"https://okx","fetched_ns":1,"instruments":[{"native":"BTC-USDT"}]}',
    ],
)
def test_a_foreign_file_is_ignored(foreign, tmp_path):
    path = tmp_path / "okx.json"
    path.write_bytes(foreign)
    assert instruments.read(path, "https://okx") is None


def test_what_another_address_said_is_ignored(tmp_path):
    path = instruments.path_of(tmp_path, "okx")
    instruments.write(path, catalog("okx"))
    assert instruments.read(path, "https://wseea.okx") is None


def test_nothing_kept_is_nothing(tmp_path):
    assert instruments.read(instruments.path_of(tmp_path, "okx"), "https://okx") is None
    assert instruments.read(tmp_path, "https://okx") is None


def test_a_disk_that_does_not_want_it_says_so(tmp_path):
    (tmp_path / "instruments").write_bytes(b"a file where the folder should be")
    with pytest.raises(OSError):
        instruments.write(instruments.path_of(tmp_path, "okx"), catalog("okx"))
