"""`arb explain`: numbers computed by hand, words for every reason, and how a verdict is found."""

import datetime
import functools
import io
import json
import random
import re
from decimal import Decimal
from pathlib import Path

import orjson
import pytest
from rich.console import Console
from typer.testing import CliRunner

from services.cli.__main__ import app
from services.cli.explain import search, show
from services.cli.explain.search import Asked
from services.cli.explain.steps import Explanation, Step, explain, identity, look
from services.cli.explain.sums import average_price
from services.cli.explain.words import REASONS, Present
from services.detector.engine import Engine
from shared import cluster, settings
from shared.errors import ArbiterError, InputError, UsageError
from shared.messages import Leg, Opportunity, RateUsed, Reason, Rejection, RouteLeg, decode, read_tick

D = Decimal
MS = 1_000_000
T0 = 1_795_000_000_000  # ms
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def present() -> Present:
    return Present(settings.load(), datetime.date(2026, 11, 21))


def leg(exchange: str, symbol: str, bid: float, ask: float, fee: str | None, **changes) -> Leg:
    """One level a side, one coin there."""
    values = {"vwap": None, "limit": None, "levels": 0, "alive_age_ms": 40, "book_age_ms": 120}
    values |= {"fee_bps": None if fee is None else D(fee), "bids": [(bid, 1.0)], "asks": [(ask, 1.0)]}
    return Leg(exchange=exchange, symbol=symbol, **(values | changes))


def usdt(side: str, price: str, age_ms: int = 300) -> RateUsed:
    return RateUsed(symbol="USDT-USD", exchange="kraken", side=side, price=D(price), age_ms=age_ms)


def rejection(**changes) -> Rejection:
    """Bought for 67,000 USDT at 1.0005 USD and sold for 67,100 USD:

    naive 100 / 67,000; converted 67,100 / 67,033.5; net 67,100 * 0.9975 / (67,033.5 * 1.001).
    """
    values = {
        "rejection_id": "r1",
        "phase": "opened",
        "base": "BTC",
        "buy": leg("binance", "BTC-USDT", 66_999.9, 67_000.0, "10"),
        "sell": leg("kraken", "BTC-USD", 67_100.0, 67_100.1, "25", alive_age_ms=140),
        "rates": [usdt("ask", "1.0005")],
        "naive_bps": D("14.9254"),
        "net_bps": D("-25.0793"),
        "closed_loop_bps": D("-30.1"),
        "reasons": [Reason.FEES],
        "opened_ns": T0 * MS,
        "detected_ns": T0 * MS,
        "best_net_bps": D("-25.0793"),
    }
    return Rejection(**(values | changes))


def opportunity(**changes) -> Opportunity:
    """1 BTC for 100 USD and 1 BTC for 102 USD, half of each sold at the only bid of 102:

    0.5 BTC cost 50 * 1.001 = 50.05 and bring 51 * 0.999 = 50.949, so 0.899 USD are left: 179.6204 bps.
    """
    bought = {"vwap": D(100), "limit": D(100), "levels": 1}
    sold = {"vwap": D(102), "limit": D(102), "levels": 1}
    values = {
        "opportunity_id": "8f1c",
        "phase": "opened",
        "base": "BTC",
        "buy": leg("coinbase", "BTC-USD", 99.9, 100.0, "10", **bought),
        "sell": leg("kraken", "BTC-USD", 102.0, 102.1, "10", **sold),
        "rates": [],
        "size": D("0.5"),
        "notional_usd": D(50),
        "profit_usd": D("0.899"),
        "naive_bps": D(200),
        "net_bps": D("179.6204"),
        "closed_loop_bps": D("179.6204"),
        "depth_limited": False,
        "limited_by": "notional",
        "opened_ns": T0 * MS,
        "detected_ns": (T0 + 100) * MS,
        "expires_ns": (T0 + 5100) * MS,
        "peak_net_bps": D("179.6204"),
    }
    return Opportunity(**(values | changes))


def steps(explained: Explanation) -> dict[str, Step]:
    return {step.name: step for step in explained.steps}


def text(explained: Explanation) -> str:
    return "\n".join(line for step in explained.steps for line in (step.title, *step.lines))


def shown(explained: Explanation) -> str:
    console = Console(record=True, width=200, file=io.StringIO())
    show.show(console, explained)
    return console.export_text()


# ---------------------------------------------------------------- numbers


def test_a_rejected_pair_of_usd_and_usdt_step_by_step(present):
    explained = explain([rejection()], present)
    assert explained.sums.disagreements == ()
    by_name = steps(explained)
    assert list(by_name) == ["top", "conversion", "fees", "depth", "time", "outcome"]
    running = {name: None if step.bps is None else round(step.bps, 4) for name, step in by_name.items()}
    assert running == {
        "top": D("14.9254"),
        "conversion": D("9.9204"),
        "fees": D("-25.0793"),
        "depth": None,
        "time": None,
        "outcome": D("-25.0793"),
    }
    assert by_name["top"].lines == (
        "buy on binance BTC-USDT: best ask 67,000.00 (1 BTC there)",
        "sell on kraken BTC-USD: best bid 67,100.00 (1 BTC there)",
        "gap: 100.00 for each BTC, with USD and USDT taken as equal",
    )
    assert by_name["conversion"].lines == (
        "USDT-USD on kraken: ask 1.0005 USD to obtain 1 USDT, 300 ms old",
        "the conversion takes 5.00 bps",
    )
    assert round(explained.sums.top.break_even, 4) == D("35.0877"), "0.0035 / 0.9975"
    assert "break-even: a gap of 35.09 bps just pays these fees" in by_name["fees"].lines
    assert by_name["depth"].lines == ("nothing executable: already the first unit would lose",)
    assert list(by_name["time"].lines) == [
        (
            "binance BTC-USDT: last proof of life 40 ms (passes, at most 2,000) before, book last changed 120 ms (passes, "
            "at most 30,000) before"
        ),
        (
            "kraken BTC-USD: last proof of life 140 ms (passes, at most 2,000) before, book last changed 120 ms (passes, "
            "at most 30,000) before"
        ),
        "skew between the books: 100 ms (passes, at most 2,000)",
    ]


def test_the_headline_says_what_it_was_and_what_became_of_it(present):
    assert explain([rejection()], present).headline == (
        "BTC: buying on binance (BTC-USDT) at 67,000.00 and selling on kraken (BTC-USD) at 67,100.00 looked like "
        "14.9 bps, but after fees and conversion it was -25.1 bps: rejected because of fees."
    )
    closed = rejection(phase="closed", close_reason="crossing_gone", reasons=[Reason.FEES, Reason.CONVERSION])
    headline = explain([closed], present).headline
    assert headline.endswith(
        "because of fees and conversion, until the gap is gone: the bid is no longer above the ask."
    )
    assert explain([opportunity()], present).headline == (
        "BTC: buying on coinbase (BTC-USD) at 100.00 and selling on kraken (BTC-USD) at 102.00 looked like 200.0 bps "
        "and paid 179.6 bps after fees and conversion (0.90 USD on 0.5 BTC): an opportunity, open for 100 ms when last "
        "heard of."
    )
    over = opportunity(phase="closed", close_reason="edge", lifetime_ms=2400)
    headline = explain([opportunity(), over], present).headline
    assert headline.endswith("an opportunity for 2.4 s, until the net edge fell below detector.close_net_bps.")


def test_an_opportunity_step_by_step(present):
    explained = explain([opportunity()], present)
    assert explained.sums.disagreements == ()
    by_name = steps(explained)
    assert round(by_name["depth"].bps, 4) == D("179.6204")
    assert by_name["depth"].lines == (
        "buy 0.5 BTC on coinbase BTC-USD at 100.00 on average, limit price 100.00, 1 level of the book",
        "sell 0.5 BTC on kraken BTC-USD at 102.00 on average, limit price 102.00, 1 level of the book",
        "the size is limited by the largest value of one trade (detector.max_notional_usd (now 50,000))",
        "profit: 0.90 USD on 50.00 USD",
        "closed loop: 179.62 bps once the proceeds are back in the currency that was spent",
    )
    assert "both ends are USD: nothing to convert" in by_name["conversion"].lines
    assert "at its best 179.62 bps net" in by_name["outcome"].lines


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"net_bps": D("-25.0795")}, "net_bps is -25.0795, but the top of the books in the same message give -25.0793"),
        ({"naive_bps": D("15")}, "naive_bps is 15, but"),
        ({"rates": [usdt("ask", "1.0006")]}, "net_bps is -25.0793, but"),
    ],
)
def test_a_rejection_that_contradicts_its_own_books_is_said_loudly(present, change, words):
    explained = explain([rejection(**change)], present)
    assert any(words in problem for problem in explained.sums.disagreements), explained.sums.disagreements
    assert "THIS MESSAGE CONTRADICTS ITSELF" in shown(explained)


def test_the_last_digit_may_be_rounded(present):
    for net in ("-25.0793", "-25.0794"):
        assert explain([rejection(net_bps=D(net))], present).sums.disagreements == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"net_bps": D("170")}, "net_bps is 170, but the average prices in the same message give 179.6204"),
        ({"profit_usd": D("0.9")}, "profit_usd is 0.9, but its sizes and average prices give 0.899000"),
        ({"closed_loop_bps": D("1")}, "closed_loop_bps is 1, but"),
        ({"size": D("0.4")}, "profit_usd is 0.899, but its sizes and average prices give 0.719200"),
    ],
)
def test_an_opportunity_that_contradicts_its_own_fills(present, change, words):
    disagreements = explain([opportunity(**change)], present).sums.disagreements
    assert any(words in problem for problem in disagreements), disagreements


def test_an_average_price_is_held_against_the_levels_that_it_came_from(present):
    wrong = leg("coinbase", "BTC-USD", 99.9, 100.0, "10", vwap=D("100.1"), limit=D("100.1"), levels=1)
    disagreements = explain([opportunity(buy=wrong)], present).sums.disagreements
    assert any("coinbase BTC-USD vwap is 100.1, but 0.5 of its own levels cost 100" in d for d in disagreements)
    assert average_price([(100.0, 1.0), (101.0, 1.0)], D(2)) == D("100.5")
    assert average_price([(100.0, 1.0)], D(2)) is None, "a walk may go deeper than what is published"


def test_a_fee_in_the_coin_leaves_less_to_sell(present):
    """1 BTC bought for 100, 0.999 arrive and bring 102 * 0.999 * 0.999 = 101.796102: 179.6102 bps."""
    coin = opportunity(
        buy=opportunity().buy.model_copy(update={"fee_in_base": True}),
        size=D(1),
        sell_size=D("0.999"),
        notional_usd=D(100),
        profit_usd=D("1.796102"),
        net_bps=D("179.6102"),
        closed_loop_bps=D("179.6102"),
    )
    explained = explain([coin], present)
    assert explained.sums.disagreements == ()
    by_name = steps(explained)
    assert "coinbase takes 10 bps on buying, out of the coin that is bought" in by_name["fees"].lines
    assert "the other 0.001 BTC: the fee in the coin, and less than a lot" in by_name["depth"].lines


def test_a_fee_in_the_coin_of_a_rejection_and_one_that_an_older_message_does_not_say(present):
    """67,100 * 0.9975 * 0.999 / 67,033.5 is -25.0893 bps; a fee on top would have been -25.0793."""
    said = rejection(net_bps=D("-25.0893"))
    coin = said.model_copy(update={"buy": said.buy.model_copy(update={"fee_in_base": True})})
    explained = explain([coin], present)
    assert explained.sums.disagreements == ()
    assert round(explained.sums.top.break_even, 4) == D("35.0978"), "1 / (0.999 * 0.9975) - 1"
    assert shown(explain([coin], present)).count("CONTRADICTS") == 0
    assert "Either an older version wrote it" in shown(explain([said], present))


def test_a_missing_rate_leaves_the_rest_unknown_and_contradicts_nothing(present):
    missing = rejection(rates=[], net_bps=None, best_net_bps=None, closed_loop_bps=None, reasons=[Reason.RATE_MISSING])
    explained = explain([missing], present)
    assert explained.sums.disagreements == ()
    by_name = steps(explained)
    assert by_name["conversion"].bps is None
    assert "no usable rate for USDT: what the gap is worth in USD is unknown" in by_name["conversion"].lines
    assert by_name["depth"].lines == ("not worked out: a live book, a rate or a fee is missing",)
    assert "was not worked out: rejected because of a missing conversion rate." in explained.headline
    assert any("Nobody quotes USDT in USD" in line for line in by_name["outcome"].lines)


def test_a_fee_that_is_not_known_is_not_taken_for_0(present):
    dear = leg("kraken", "BTC-USD", 67_100.0, 67_100.1, None)
    unknown = rejection(sell=dear, net_bps=None, best_net_bps=None, closed_loop_bps=None)
    explained = explain([unknown], present)
    assert explained.sums.disagreements == ()
    by_name = steps(explained)
    assert round(by_name["conversion"].bps, 4) == D("9.9204")
    assert by_name["fees"].bps is None
    assert "kraken takes a fee that is not known on selling" in by_name["fees"].lines
    assert any("No fee is known for that day on kraken" in line for line in by_name["outcome"].lines)


def test_a_stale_rate_converts_nothing(present):
    stale = rejection(reasons=[Reason.RATE_STALE], net_bps=None, best_net_bps=None, closed_loop_bps=None)
    explained = explain([stale], present)
    assert explained.sums.disagreements == ()
    assert (steps(explained)["conversion"].bps, steps(explained)["fees"].bps) == (None, None)
    assert (
        "a rate is not live or too old: what the gap is worth in USD is unknown" in steps(explained)["conversion"].lines
    )


def test_an_empty_side_is_said(present):
    empty = rejection(reasons=[Reason.HEALTH], naive_bps=None, net_bps=None, best_net_bps=None, closed_loop_bps=None)
    empty = empty.model_copy(update={"buy": empty.buy.model_copy(update={"asks": []})})
    explained = explain([empty], present)
    assert explained.sums.disagreements == ()
    assert "at no price and selling on kraken (BTC-USD) at 67,100.00 met an empty side" in explained.headline
    assert [step.bps for step in explained.steps] == [None] * 6


def test_equal_quotes_still_pay_the_spread_of_their_rate(present):
    """As the detector does it: x for the ask of USDT, and for its bid."""
    both = rejection(
        sell=leg("okx", "BTC-USDT", 67_100.0, 67_100.1, "10"),
        rates=[usdt("ask", "1.0005"), usdt("bid", "1.0004")],
        net_bps=D("-6.0835"),  # 67,100 * 1.0004 * 0.999 / (67,000 * 1.0005 * 1.001) - 1
        closed_loop_bps=D("-5.0845"),  # 67,100 * 0.999 / (67,000 * 1.001) - 1
        best_net_bps=None,
    )
    explained = explain([both], present)
    assert explained.sums.disagreements == ()
    assert "the conversion takes 1.00 bps: the spread of its own rate" in steps(explained)["conversion"].lines


def test_a_closed_opportunity_is_explained_by_the_look_before_it(present):
    """Its books and sizes are those of that look; only the net edge is of the close."""
    closed = opportunity(phase="closed", close_reason="edge", net_bps=D("-3"), detected_ns=(T0 + 900) * MS)
    for before in ([opportunity()], []):
        explained = explain([*before, closed], present)
        assert explained.sums.disagreements == ()
        lines = steps(explained)["outcome"].lines
        seen = "look of 2026-11-18 11:06:40.100 UTC" if before else "look before it"
        assert f"at the close -3.00 bps net; books and sizes above are of the {seen}" in lines
        moved = "moved by detector.close_net_bps (now 0), detector.close_after_ms (now 250)"
        assert f"closed (edge): the net edge fell below detector.close_net_bps; {moved}" in lines


def route() -> Opportunity:
    """USD buy BTC at 50,000, that buys ETH at 0.04, that is sold at 2,020: 2,020 / 2,000 is 100 bps.

    1 ETH costs 0.04 * 1.001 BTC, these cost 2,002 * 1.001 = 2,004.002 and the ETH brings 2,020 * 0.999 = 2,017.98.
    """

    def order(side: str, symbol: str, price: float, size: str) -> RouteLeg:
        made = leg("binance", symbol, price, price, "10", vwap=D(str(price)), limit=D(str(price)), levels=1)
        return RouteLeg(side=side, size=D(size), **made.model_dump())

    legs = [
        order("buy", "BTC-USD", 50_000.0, "0.04004"),
        order("buy", "ETH-BTC", 0.04, "1"),
        order("sell", "ETH-USD", 2_020.0, "1"),
    ]
    values = {"route": "triangular", "base": "ETH", "legs": legs, "buy": legs[1], "sell": legs[2], "size": D(1)}
    values |= {"notional_usd": D(2002), "profit_usd": D("13.978")}
    values |= {
        "naive_bps": D(100),
        "net_bps": D("69.7504"),
        "closed_loop_bps": D("69.7504"),
        "peak_net_bps": D("69.7504"),
    }
    return opportunity(**values)


def test_a_route_lists_its_orders_in_the_order_of_the_cycle(present):
    explained = explain([route()], present)
    assert explained.sums.disagreements == ()
    by_name = steps(explained)
    assert round(by_name["top"].bps, 4) == 100
    assert round(by_name["fees"].bps, 4) == D("69.7504"), "1.01 * 0.999 / 1.001**2 - 1"
    assert [line.partition(" at ")[0] for line in by_name["depth"].lines[:3]] == [
        "buy 0.04004 BTC on binance BTC-USD",
        "buy 1 ETH on binance ETH-BTC",
        "sell 1 ETH on binance ETH-USD",
    ]
    assert (
        "buying on binance (BTC-USD) at 50,000.00, buying on binance (ETH-BTC) at 0.04 and selling"
        in explained.headline
    )


def test_a_route_that_contradicts_itself_and_a_rejected_one(present):
    (wrong,) = explain([route().model_copy(update={"profit_usd": D(14)})], present).sums.disagreements
    assert wrong == "profit_usd is 14, but its sizes and average prices give 13.978000"
    legs = [
        one.model_copy(update={"size": D(0), "vwap": None, "limit": None, "fee_bps": D(60)}) for one in route().legs
    ]
    dear = rejection(route="triangular", base="ETH", legs=legs, buy=legs[1], sell=legs[2], rates=[])
    # 1.01 * 0.994 / 1.006**2 - 1
    dear = dear.model_copy(update={"naive_bps": D(100), "net_bps": D("-79.9972"), "closed_loop_bps": D("-79.9972")})
    explained = explain([dear], present)
    assert explained.sums.disagreements == ()
    assert steps(explained)["depth"].lines == ("nothing executable: already the first unit would lose",)


def test_an_opportunity_that_fades_and_the_look_that_its_close_is_explained_by(present):
    nothing = {"vwap": None, "limit": None, "levels": 0}
    fading = opportunity(
        phase="updated",
        buy=leg("coinbase", "BTC-USD", 100.9, 101.95, "10", **nothing),
        sell=leg("kraken", "BTC-USD", 102.0, 102.1, "10", **nothing),
        size=D(0),
        notional_usd=D(0),
        profit_usd=D(0),
        naive_bps=D("4.9044"),
        net_bps=D("-15.0854"),
        closed_loop_bps=D("-15.0854"),
        limited_by=None,
        detected_ns=(T0 + 700) * MS,
    )
    explained = explain([fading], present)
    assert explained.sums.disagreements == (), "0.05 / 101.95, and 102 * 0.999 / (101.95 * 1.001) - 1"
    assert explained.headline.endswith(
        "and is -15.1 bps after fees and conversion (nothing executable): an opportunity, open for 700 ms when last "
        "heard of."
    )
    closed = fading.model_copy(update={"phase": "closed", "close_reason": "edge", "detected_ns": (T0 + 950) * MS})
    assert look([opportunity(), fading, closed]) == opportunity()
    assert look([opportunity(), fading]) == fading
    assert look([fading, closed]) == fading
    assert look([closed]) == closed


def test_a_rejection_with_a_fee_in_the_coin_may_leave_dust_behind(present):
    """0.5 bought, 0.4995 left, 0.499 of it sold in lots."""
    buy = leg("binance", "BTC-USD", 99.9, 100.0, "10", vwap=D(100), limit=D(100), levels=1, fee_in_base=True)
    sell = leg("kraken", "BTC-USD", 102.0, 102.1, "10", vwap=D(102), limit=D(102), levels=1)
    net = round((D("0.499") * 102 * D("0.999") / 50 - 1) * 10_000, 4)
    sizes = {"size": D("0.5"), "sell_size": D("0.499"), "limited_by": "depth"}
    bps = {"naive_bps": D(200), "net_bps": net, "closed_loop_bps": net}
    explained = explain([rejection(buy=buy, sell=sell, rates=[], reasons=[Reason.SANITY], **sizes, **bps)], present)
    assert explained.sums.disagreements == ()
    lines = steps(explained)["depth"].lines
    assert "the other 0.001 BTC: the fee in the coin, and less than a lot" in lines
    assert (
        "the size is limited by the published depth: it ran out while it still paid, so the true size is unknown"
        in lines
    )
    assert f"profit: {round(net / 200, 2)} USD" in lines, "of the 50 USD spent"


def test_what_the_detector_publishes_agrees_with_its_own_numbers(present):
    """Random books of two coins, with routes by way of the third book: thousands of real verdicts."""
    prices = {"BTC-USDT": 67_000, "BTC-USD": 67_000, "ETH-USDT": 3350, "ETH-USD": 3350, "ETH-BTC": 0.05}
    books = [("binance", "BTC-USDT"), ("kraken", "BTC-USD"), ("okx", "BTC-USDT"), ("okx", "ETH-BTC")]
    books += [("binance", "ETH-USDT"), ("binance", "ETH-BTC"), ("kraken", "ETH-USD"), ("okx", "ETH-USDT")]
    chance, engine, at, kinds = random.Random(7), Engine(present.settings), T0, set()
    for sequence in range(300):
        at += chance.choice([5, 20, 60, 300])
        common = {"v": 1, "sequence": sequence, "received_ns": at * MS, "exchange_ns": None}
        if sequence % 10 == 0:
            bid = round(chance.uniform(0.998, 1.0005), 4)
            rate = {"kind": "rate", "exchange": "kraken", "symbol": "USDT-USD", "bid": bid, "ask": round(bid + 1e-4, 4)}
            events = engine.on_message(read_tick(orjson.dumps(common | rate | {"state": "live"})), at * MS)
        else:
            exchange, symbol = chance.choice(books)
            digits = 6 if symbol == "ETH-BTC" else 2
            middle, tick = prices[symbol] * chance.uniform(0.994, 1.006), 10**-digits

            def side(sign, middle=middle, tick=tick, digits=digits):
                steps = range(1, 9)
                return [
                    [round(middle + sign * n * 9 * tick, digits), round(chance.uniform(1e-4, 1.5), 5)] for n in steps
                ]

            book = {"kind": "book", "exchange": exchange, "symbol": symbol, "bids": side(-1), "asks": side(1)}
            events = engine.on_message(read_tick(orjson.dumps(common | book)), at * MS)
        for event in [*events, *engine.on_timer((at + 4) * MS)]:
            message = decode(event.encode())
            if isinstance(message, Opportunity | Rejection):
                kinds.add((message.kind, message.phase, message.route != "direct", message.size > 0))
                assert explain([message], present).sums.disagreements == (), event.encode()
    assert len(kinds) > 15, "both kinds, all phases, routes and pairs, with a size and without"


# ---------------------------------------------------------------- words


@pytest.mark.parametrize("reason", list(Reason), ids=lambda reason: reason.value)
def test_every_reason_has_its_sentence_and_the_settings_that_move_it(present, reason):
    assert set(REASONS) == set(Reason)
    explained = explain([rejection(reasons=[reason])], present)
    (sentence,) = (line for line in steps(explained)["outcome"].lines if line.startswith(f"{reason.value}: "))
    assert "{" not in sentence
    for name in REASONS[reason].moved_by:
        for full in [name] if "*" not in name else [name.replace("*", "binance"), name.replace("*", "kraken")]:
            assert f"{full} (now " in sentence


def test_settings_named_are_those_of_the_list_of_reasons():
    """docs/reasons.md, whose settings a test of its own holds against the code."""
    table = (ROOT / "docs" / "reasons.md").read_text().split("## Rejections")[1].split("\n## ")[0]
    for code, moved in re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", table, re.MULTILINE):
        documented = set(re.findall(r"`([\w.*]+)`", moved))
        named = set(REASONS[Reason(code)].moved_by)
        assert documented <= named, code


def test_sentences_carry_the_numbers(present):
    words = text(explain([rejection(reasons=[Reason.FEES, Reason.CONVERSION, Reason.SKEW])], present))
    assert "it is 14.93 bps wide as the prices stand, and they need 35.09 bps" in words
    assert "binance takes 10 bps on buying" in words
    assert "exchanges.binance.fees (now 10 bps since 2026-07-26" in words
    assert "14.93 bps wide as the prices stand, 9.92 bps in USD" in words
    assert "detector.max_skew_ms (now 2,000)" in words


def test_an_exchange_that_the_settings_do_not_know_is_said(present):
    words = text(explain([rejection(buy=leg("mtgox", "BTC-USDT", 66_999.9, 67_000.0, "10"))], present))
    assert "exchanges.mtgox.fees (now no such exchange in your settings)" in words


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("accepted", "became an opportunity"),
        ("crossing_gone", "the gap is gone: the bid is no longer above the ask"),
        ("edge", "the net edge fell below detector.close_net_bps"),
        ("handover", "could not confirm it"),
        ("health", "a gate failed (a book that could not be trusted)"),
        ("sanity", "a gate failed (a gap too good to be true)"),
        ("of_tomorrow", "of_tomorrow"),
    ],
)
def test_why_it_closed(present, code, words):
    headline = explain([rejection(phase="closed", close_reason=code)], present).headline
    assert headline.endswith(f"{words}.")


# ---------------------------------------------------------------- finding


def other_way(**changes) -> Rejection:
    values = {"rejection_id": "r2", "buy": rejection().sell, "sell": rejection().buy, "rates": [usdt("bid", "1.0004")]}
    return rejection(**(values | changes))


def values(*messages) -> list[bytes]:
    return [message.encode() for message in messages]


def test_a_pair_is_found_in_both_directions_and_the_newest_is_last():
    later = other_way(detected_ns=(T0 + 50) * MS)
    elsewhere = rejection(rejection_id="r3", sell=leg("okx", "BTC-USD", 67_100.0, 67_100.1, "25"))
    for pair in (("BTC", "kraken", "binance"), ("BTC", "binance", "kraken")):
        found = search.verdicts(values(later, rejection(), elsewhere), Asked(pair=pair))
        assert [identity(message) for message in found] == ["r1", "r2"]
        ways = search.directions(found)
        assert [[identity(one) for one in way] for way in ways] == [["r2"], ["r1"]], "the newest first"
    assert search.verdicts(values(rejection()), Asked(pair=("ETH", "kraken", "binance"))) == []


def test_a_message_that_came_twice_counts_once_and_rubbish_not_at_all():
    some = [*values(rejection(), rejection()), b'{"rejection_id":"r1"', b""]
    assert len(search.verdicts(some, Asked("r1"))) == 1


def test_an_accepted_rejection_names_its_opportunity():
    legs = {"buy": opportunity().buy, "sell": opportunity().sell}
    accepted = rejection(phase="closed", close_reason="accepted", detected_ns=(T0 + 100) * MS, **legs)
    assert search.became(accepted, values(accepted, opportunity())) == "8f1c"
    assert search.became(accepted, values(accepted)) is None
    assert search.became(rejection(), values(opportunity())) is None


def test_kafka_is_searched_from_the_newest_back_and_then_to_the_beginning_of_what_was_found():
    now_ms = T0 + 3_600_000
    opened = rejection(opened_ns=(T0 - 600_000) * MS, detected_ns=(T0 - 600_000) * MS)
    closed = opened.model_copy(
        update={"phase": "closed", "close_reason": "health", "detected_ns": (T0 + 3_000_000) * MS}
    )
    asked_for = []

    def read(since_ms: int) -> list[bytes]:
        asked_for.append(since_ms)
        return values(*(message for message in (opened, closed) if message.detected_ns >= since_ms * MS))

    found = search.search_kafka(read, Asked("r1"), None, now_ms)
    assert [message.phase for message in search.verdicts(found.values, Asked("r1"))] == ["opened", "closed"]
    assert asked_for == [now_ms - 900_000, T0 - 660_000]
    asked_for.clear()
    assert search.search_kafka(read, Asked("r9"), None, now_ms).found == []
    assert asked_for == [now_ms - 900_000, now_ms - 4 * 3_600_000, now_ms - 86_400_000, search.ALL]
    asked_for.clear()
    within = search.search_kafka(read, Asked(pair=("BTC", "kraken", "binance")), 60.0, now_ms)
    assert (within.found, within.back, len(asked_for)) == ([], "since 2026-11-18 12:05:40.000 UTC", 1)


def test_unknown_ids_and_pairs_name_the_next_step():
    nothing = search.Search([], values(rejection(), other_way()), "of the last 1 h")
    assert isinstance(error := search.not_found(nothing, Asked("x")), ArbiterError)
    assert error.exit_code == 1
    assert "no opportunity and no rejection x in 2 messages of the last 1 h" in str(error)
    assert "`arb watch rejections --json`" in str(error)
    pair = search.not_found(nothing, Asked(pair=("BTC", "okx", "bybit")))
    assert "no verdict on BTC between okx and bybit in 2 messages of the last 1 h" in str(pair)
    assert "`arb watch health`" in str(pair)
    assert "--since looks further back" in str(pair)


@pytest.mark.parametrize(
    ("written", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1.5h", 5400), ("2d", 172_800)]
)
def test_how_far_back(written, seconds):
    assert search.duration_s(written) == seconds


@pytest.mark.parametrize("written", ["", "h", "1w", "-1h", "1 hour"])
def test_what_is_no_time_is_refused(written):
    with pytest.raises(UsageError, match="such as 90s, 30m, 1h or 2d"):
        search.duration_s(written)


# ---------------------------------------------------------------- the command


@pytest.fixture
def file(tmp_path) -> Path:
    """A life: rejected for its fees, for its conversion too, and gone; and another kind of message."""
    opened = rejection()
    more = opened.model_copy(
        update={"phase": "updated", "reasons": [Reason.FEES, Reason.CONVERSION], "detected_ns": (T0 + 1000) * MS}
    )
    gone = more.model_copy(update={"phase": "closed", "close_reason": "crossing_gone", "detected_ns": (T0 + 4000) * MS})
    stored = (ROOT / "tests/shared/stored/v1/health.json").read_bytes().strip()
    path = tmp_path / "verdicts.jsonl"
    path.write_bytes(b"\n".join([opened.encode(), more.encode(), b"", stored, gone.encode(), b""]))
    return path


def arb(*arguments: str):
    return CliRunner().invoke(app, ["explain", *arguments])


def test_from_a_file_for_people_with_its_timeline(file):
    done = arb("r1", "--from-file", str(file), "--all")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("BTC: buying on binance (BTC-USDT) at 67,000.00")
    assert "1. top of the books, as the prices stand: 14.93 bps" in done.stdout
    assert "3. after the fees of each order: -25.08 bps" in done.stdout
    assert "closed (crossing_gone): the gap is gone" in done.stdout
    timeline = done.stdout.partition("timeline of r1")[2]
    assert re.findall(r"(opened|updated|closed) +(-25\.08)", timeline) == [
        ("opened", "-25.08"),
        ("updated", "-25.08"),
        ("closed", "-25.08"),
    ]
    assert "closed: crossing_gone" in timeline


def test_as_json(file):
    done = arb("r1", "--from-file", str(file), "--all", "--json")
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert (value["id"], value["kind"], value["phase"], value["disagreements"]) == ("r1", "rejection", "closed", [])
    assert [step["bps"] for step in value["steps"]] == ["14.9254", "9.9204", "-25.0793", None, None, "-25.0793"]
    assert [point["phase"] for point in value["timeline"]] == ["opened", "updated", "closed"]
    assert value["message"]["phase"] == "updated", "the look that the numbers are of"
    assert value["timeline"][1]["reasons"] == ["fees", "conversion"]


def test_as_json_nothing_is_no_missing_number(present):
    """Sold for what it cost, without fees: 0 bps and a break-even of 0."""
    sides = {"buy": leg("coinbase", "BTC-USD", 99.9, 100.0, "0"), "sell": leg("kraken", "BTC-USD", 100.0, 100.1, "0")}
    even = rejection(**sides, rates=[], naive_bps=D(0), net_bps=D(0), closed_loop_bps=D(0), reasons=[Reason.THRESHOLD])
    value = show.as_value(explain([even], present), [], [], None)
    assert [step["bps"] for step in value["steps"]] == ["0.0000", "0.0000", "0.0000", None, None, "0.0000"]
    assert (value["break_even_bps"], value["disagreements"]) == ("0.0000", [])


def test_a_pair_says_which_directions_there_are(file, tmp_path):
    done = arb("--pair", "btc", "kraken", "binance", "--from-file", str(file))
    assert done.exit_code == 0, done.output
    assert "BTC: buy binance BTC-USDT, sell kraken BTC-USD: 1 verdict, newest 2026-11-18" in done.stdout
    assert "BTC: buy kraken" not in done.stdout
    more = tmp_path / "more.jsonl"
    more.write_bytes(other_way(detected_ns=(T0 + 9000) * MS).encode())
    done = arb("--pair", "BTC", "kraken", "binance", "--from-file", str(file), "--from-file", str(more))
    assert "BTC: buy binance BTC-USDT, sell kraken BTC-USD" in done.stdout
    assert "BTC: buy kraken BTC-USD, sell binance BTC-USDT" in done.stdout
    assert "BTC: buying on kraken (BTC-USD)" in done.stdout


def test_files_that_cannot_be_read_are_named_with_their_line(file, tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.jsonl: No such file"):
        search.search_files([tmp_path / "nowhere.jsonl"], Asked("r1"))
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(rejection().encode() + b'\n{"kind":"gossip"}\n')
    with pytest.raises(InputError, match=r"bad\.jsonl, line 2: .*gossip"):
        search.search_files([file, bad], Asked("r1"))
    assert arb("r1", "--from-file", str(bad)).exception.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "takes the id of an opportunity or a rejection, or --pair"),
        (["r1", "--pair", "BTC", "kraken", "okx"], "takes the id"),
        (["r1", "--since", "soon"], "such as 90s"),
        (["r1", "--since", "1h", "--from-file", "x"], "files are read whole"),
        (["--pair", "BTC", "kraken", "mtgox"], "unknown exchange 'mtgox'"),
    ],
)
def test_wrong_usage(arguments, words):
    done = arb(*arguments)
    assert isinstance(done.exception, UsageError)
    assert done.exception.exit_code == 2
    assert words in str(done.exception)


def test_an_unknown_id_is_1_and_no_broker_is_3(file, monkeypatch):
    done = arb("r9", "--from-file", str(file))
    assert (type(done.exception), done.exception.exit_code) == (ArbiterError, 1)
    assert f"in 4 messages of {file}" in str(done.exception)
    monkeypatch.setenv("ARB_KAFKA_SERVERS", "127.0.0.1:1")
    monkeypatch.setattr(cluster, "wait_for_brokers", functools.partial(cluster.wait_for_brokers, timeout_s=0.2))
    done = arb("r9")
    assert done.exception.exit_code == 3
    assert "ARB_KAFKA_SERVERS" in str(done.exception)
