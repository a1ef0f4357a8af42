"""`arb evaluate`: what a case gives, and what a bad one says."""

import copy
from decimal import Decimal

import pytest

from services.detector.evaluate import evaluate_case, text
from shared.errors import InputError

CASE = {
    "base": "BTC",
    "buy": {"exchange": "binance", "symbol": "BTC-USDT", "asks": [["100", "1"], ["100.2", "2"], ["100.7", "11"]]},
    "sell": {"exchange": "kraken", "symbol": "BTC-USD", "bids": [["101", "1.5"], ["100.8", "1.5"], ["100.75", "11"]]},
    "fees_bps": {"buy": 10, "sell": 10},
    "rates": {"USDT-USD": {"bid": "0.9999", "ask": 1}},
}
KEYS = [
    *("verdict", "reasons", "size", "profit", "naive_bps", "net_bps", "closed_loop_bps", "buy_vwap", "sell_vwap"),
    *("buy_limit", "sell_limit", "levels_used", "depth_limited", "sell_size", "limited_by"),
]


def case(**changes):
    changed = copy.deepcopy(CASE)
    for path, value in changes.items():
        target = changed
        *parents, last = path.split("__")
        for name in parents:
            target = target[name]
        if value is ...:
            del target[last]
        else:
            target[last] = value
    return changed


def test_an_open_verdict_has_every_number_as_an_exact_text():
    result = evaluate_case(CASE)
    assert list(result) == KEYS
    assert (result["verdict"], result["reasons"]) == ("open", [])
    assert (result["size"], result["profit"]) == ("3", "1.6969")
    assert result["levels_used"] == {"buy": 2, "sell": 2}
    assert result["depth_limited"] is False
    assert (result["buy_limit"], result["sell_limit"]) == ("100.2", "100.8")


def test_what_a_case_leaves_out_does_not_limit():
    result = evaluate_case(case(fees_bps=..., rates=..., buy__symbol="BTC-USD"))
    assert result["size"] == "14"
    # bought 100 + 200.4 + 11 * 100.7 = 1408.1; sold 151.5 + 151.2 + 11 * 100.75 = 1410.95
    assert result["profit"] == "2.85"


def test_balances_a_share_of_the_depth_and_a_fee_in_the_coin_act():
    assert evaluate_case(case(balances={"buy": "100.1"}))["size"] == "1", "100 and ten basis points of it"
    assert evaluate_case(case(balances={"sell": "0.25"}))["limited_by"] == "balance"
    assert evaluate_case(case(balances={"sell": 0}))["reasons"] == ["balance"]
    half = evaluate_case(case(max_depth_share="0.1"))
    assert (half["size"], half["limited_by"]) == ("1.4", "share")
    in_base = evaluate_case(case(fee_in_base=True, buy__asks=[["100", "1"]]))
    assert (in_base["size"], in_base["sell_size"]) == ("1", "0.999")


def test_swapping_names_changes_only_names():
    renamed = case(
        buy__exchange="okx", sell__exchange="bybit", base="ETH", buy__symbol="ETH-USDT", sell__symbol="ETH-USD"
    )
    assert evaluate_case(renamed) == evaluate_case(CASE)


def test_a_missing_rate_is_a_reason_and_never_one():
    result = evaluate_case(case(rates=...))
    assert (result["verdict"], result["reasons"], result["size"]) == ("reject", ["rate_missing"], "0")
    assert result["net_bps"] is None
    assert result["naive_bps"] == "100"


def test_an_inverse_rate_works():
    direct = evaluate_case(case(rates={"USDT-USD": {"bid": "0.8", "ask": "0.8"}}))
    inverse = evaluate_case(case(rates={"USD-USDT": {"bid": "1.25", "ask": "1.25"}}))
    assert direct == inverse


def test_a_rates_own_fee_is_in_the_closed_loop_only():
    free, paid = evaluate_case(CASE), evaluate_case(case(rates={"USDT-USD": {"bid": "0.9999", "ask": 1, "fee_bps": 5}}))
    assert free["net_bps"] == paid["net_bps"]
    assert Decimal(paid["closed_loop_bps"]) < Decimal(free["closed_loop_bps"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": ...}, "base is missing"),
        ({"buy": ...}, "buy is missing or not an object"),
        ({"buy__asks": ...}, "buy.asks is missing or not a list"),
        ({"buy__asks": [["100"]]}, "buy.asks[0]: must be [price, size]"),
        ({"buy__asks": [["x", "1"]]}, "buy.asks[0][0]: 'x' is not a number"),
        ({"buy__asks": [["100", True]]}, "buy.asks[0][1]: must be a number"),
        ({"buy__asks": [["0", "1"]]}, "buy.asks[0][0]: 0 must be above 0"),
        ({"buy__asks": [["-1", "1"]]}, "buy.asks[0][0]: -1 must be above 0"),
        ({"buy__asks": [["100", "NaN"]]}, "buy.asks[0][1]"),
        ({"buy__asks": [["1e99", "1"]]}, "buy.asks[0][0]"),
        ({"buy__asks": [["101", "1"], ["100", "1"]]}, "buy.asks[1][0]: asks must rise, best first"),
        ({"sell__bids": [["100", "1"], ["101", "1"]]}, "sell.bids[1][0]: bids must fall, best first"),
        ({"buy__symbol": "ETH-USDT"}, "buy.symbol: ETH-USDT is not a pair of BTC"),
        ({"buy__symbol": "BTCUSDT"}, "buy.symbol: 'BTCUSDT' is not a symbol"),
        ({"colour": 1}, "unknown field colour; allowed are base, buy"),
        ({"buy__colour": 1}, "unknown field buy.colour; allowed are exchange, symbol, asks"),
        ({"fee_in_base": 1}, "fee_in_base: must be true"),
        ({"max_depth_share": 2}, "max_depth_share"),
        ({"balances": {"buy": -1}}, "balances.buy"),
        ({"fees_bps__buy": "much"}, "fees_bps.buy"),
        ({"fees_bps__buy": 20_000}, "fees_bps.buy: 20000 must be between -10000 and 10000"),
        ({"rates": {"USDT-USD": {"bid": 1}}}, "rates.USDT-USD.ask is missing"),
        ({"rates": {"USDT-USD": {"bid": 2, "ask": 1}}}, "rates.USDT-USD: bid 2 is above ask 1"),
        ({"rates": {"USDT": {"bid": 1, "ask": 1}}}, "rates.USDT: must be a pair"),
        ({"lot_step": {"buy": 0}}, "lot_step.buy: 0 must be above 0"),
        ({"max_notional": -1}, "max_notional: -1 must be at least 0"),
        ({"min_notional": {"left": 1}}, "unknown field min_notional.left"),
    ],
)
def test_bad_input_names_the_field(changes, words):
    with pytest.raises(InputError) as caught:
        evaluate_case(case(**changes))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("number", "written"),
    [("3.000", "3"), ("1E+2", "100"), ("1E-7", "0.0000001"), ("0.0", "0"), ("-5.50", "-5.5"), ("100", "100")],
)
def test_numbers_are_written_plainly(number, written):
    assert text(Decimal(number)) == written
