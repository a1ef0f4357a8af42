"""Coinbase Exchange's feed as a naive client sees it: written from the documentation, not from our collector."""

import json
from itertools import pairwise

import pytest

from services.simulator.market import TradeEvent

SECOND = 1_000_000_000
CHANNELS = ["level2_batch", "matches", "heartbeat"]


@pytest.fixture
def world(make_world):
    return make_world("coinbase-exchange")


def subscribe(*products, channels=CHANNELS, kind="subscribe"):
    return {"type": kind, "product_ids": list(products), "channels": channels}


def decoded(frames, *kinds):
    return [message for message in map(json.loads, frames) if message["type"] in kinds]


def test_a_client_that_follows_the_documentation_has_the_true_book(world):
    world.say(subscribe("BTC-USD", "ETH-USD"))
    world.run(30)
    sides = {}
    for message in decoded(world.frames, "snapshot", "l2update"):
        if message["product_id"] != "BTC-USD":
            continue
        if message["type"] == "snapshot":
            sides = {
                side: {float(p): float(s) for p, s in message[name]}
                for side, name in (("buy", "bids"), ("sell", "asks"))
            }
            continue
        assert tuple(message) == ("type", "product_id", "changes", "time")
        for side, price, size in message["changes"]:
            sides[side].pop(float(price), None)
            if float(size) > 0:
                sides[side][float(price)] = float(size)
    assert {"bids": sides["buy"], "asks": sides["sell"]} == world.book("BTC-USD")
    texts = [change for message in decoded(world.frames, "l2update") for change in message["changes"]]
    assert any(size == "0.00000000" for _, _, size in texts)


def test_data_comes_before_the_acknowledgement_which_has_another_name_for_the_book_channel(world):
    frames = [json.loads(frame) for frame in world.say(subscribe("BTC-USD", "ETH-USD"))]
    assert [frame["type"] for frame in frames] == ["snapshot"] * 2 + ["last_match"] * 2 + ["subscriptions"]
    names = {row["name"]: row["product_ids"] for row in frames[-1]["channels"]}
    assert names == {name: ["BTC-USD", "ETH-USD"] for name in ("level2_50", "matches", "heartbeat")}


def test_each_acknowledgement_lists_the_whole_current_set(world):
    world.say(subscribe("BTC-USD", channels=["matches"]))
    own = {"name": "level2_batch", "product_ids": ["ETH-USD"]}
    (*_, frame) = world.say(subscribe("BTC-USD", channels=["matches", own]))
    names = {row["name"]: row["product_ids"] for row in json.loads(frame)["channels"]}
    assert names == {"matches": ["BTC-USD"], "level2_50": ["ETH-USD"]}
    assert len(world.frames) == 4, "what was subscribed before brings nothing new"


def test_the_first_match_is_an_old_one_and_the_ids_go_on_from_it(world):
    world.run(3)
    world.say(subscribe("BTC-USD", channels=["matches"]), 3 * SECOND)
    world.run(60)
    matches = decoded(world.frames, "last_match", "match")
    assert [match["type"] for match in matches] == ["last_match"] + ["match"] * (len(matches) - 1)
    assert len(matches) > 20
    fields = "type trade_id maker_order_id taker_order_id side size price product_id sequence time"
    assert {tuple(match) for match in matches} == {tuple(fields.split())}
    for earlier, later in pairwise(matches):
        assert later["trade_id"] == earlier["trade_id"] + 1
        assert later["sequence"] > earlier["sequence"]
    assert any(later["sequence"] > earlier["sequence"] + 1 for earlier, later in pairwise(matches))


def test_a_newcomer_is_told_the_last_match_that_the_others_saw(world):
    world.say(subscribe("BTC-USD", channels=["matches"]))
    world.run(20)
    (first, _) = world.server.session("", 0).on_client(
        json.dumps(subscribe("BTC-USD", channels=["matches"])), 20 * SECOND
    )
    assert json.loads(first) == decoded(world.frames, "match")[-1] | {"type": "last_match"}


def test_a_match_has_the_same_number_for_every_client(world):
    other = world.server.session("", 0)
    world.say(subscribe("BTC-USD", channels=["matches"]))
    other.on_client(json.dumps(subscribe("BTC-USD", channels=["matches"])), 0)
    for trade_id in (7, 8):
        trade = TradeEvent("coinbase", "BTC-USD", 650_001, 200_000, "buy", trade_id)
        assert world.session.on_trade(trade, 0) == other.on_trade(trade, 0) != []


@pytest.mark.parametrize(("taker", "side"), [("buy", "sell"), ("sell", "buy")])
def test_the_side_of_a_match_is_the_makers(world, taker, side):
    world.say(subscribe("BTC-USD", channels=["matches"]))
    (frame,) = world.session.on_trade(TradeEvent("coinbase", "BTC-USD", 650_001, 200_000, taker, 7), SECOND)
    match = json.loads(frame)
    assert (match["side"], match["price"], match["size"]) == (side, "65000.1", "0.002")
    assert match["time"] == "1970-01-01T00:00:01.000000Z"


def test_a_heartbeat_per_product_and_second_names_the_last_trade(world):
    world.say(subscribe("BTC-USD", "ETH-USD", channels=["heartbeat", "matches"]))
    world.run(20)
    assert world.session.on_timer(SECOND // 2) == []
    beats = decoded(world.session.on_timer(20 * SECOND), "heartbeat")
    assert [beat["product_id"] for beat in beats] == ["BTC-USD", "ETH-USD"]
    last = [match for match in decoded(world.frames, "match") if match["product_id"] == "BTC-USD"][-1]
    assert beats[0]["last_trade_id"] == last["trade_id"]
    assert beats[0]["sequence"] >= last["sequence"]
    assert tuple(beats[0]) == ("type", "last_trade_id", "product_id", "sequence", "time")
    assert beats[0]["time"] == "1970-01-01T00:00:20.000000Z"
    assert world.session.on_timer(int(20.9 * SECOND)) == []
    assert len(world.session.on_timer(21 * SECOND)) == 2


def test_what_is_unsubscribed_is_silent_and_comes_back_with_a_snapshot(world):
    world.say(subscribe("BTC-USD", "ETH-USD", channels=["level2_batch", "matches"]))
    (frame,) = world.say(subscribe("BTC-USD", channels=["level2_batch"], kind="unsubscribe"))
    names = {row["name"]: row["product_ids"] for row in json.loads(frame)["channels"]}
    assert names == {"level2_50": ["ETH-USD"], "matches": ["BTC-USD", "ETH-USD"]}
    assert {m["product_id"] for m in decoded(world.run(5), "l2update")} == {"ETH-USD"}
    (frame,) = world.say({"type": "unsubscribe", "channels": ["matches"]})
    assert [row["name"] for row in json.loads(frame)["channels"]] == ["level2_50"]
    (frame,) = world.say({"type": "unsubscribe", "product_ids": ["ETH-USD"]})
    assert json.loads(frame)["channels"] == []
    assert world.run(10) == []
    assert not world.session.overdue(10 * SECOND), "it did subscribe in time"
    assert decoded(world.say(subscribe("BTC-USD")), "snapshot")


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (subscribe("NOPE-USD"), "NOPE-USD is not a valid product"),
        (subscribe("BTC-USD", channels=["news"]), "news is not a valid channel"),
        (
            subscribe("BTC-USD", channels=["matches", "level2"]),
            "level2, level3, and full channels now require authentication. https://docs.cloud.coinbase.com/exchange/docs/websocket-auth",
        ),
        (subscribe(), "level2_batch requires product_ids"),
        (subscribe("BTC-USD", channels=[]), "channels or product_ids required"),
        (subscribe("BTC-USD", kind="buy"), "Type buy is not supported"),
    ],
)
def test_it_refuses_with_a_reason_and_subscribes_nothing(world, request_, reason):
    (frame,) = world.say(request_)
    assert json.loads(frame) == {"type": "error", "message": "Failed to subscribe", "reason": reason}
    assert world.run(5) == []


def test_nonsense_is_an_error_frame(world):
    for text in ("{", "[]", '{"channels":[]}', '{"type":"subscribe","channels":[{}]}'):
        (frame,) = world.session.on_client(text, 0)
        assert json.loads(frame)["type"] == "error"


def test_it_closes_who_does_not_subscribe_within_five_seconds(world):
    assert not world.session.overdue(5 * SECOND)
    assert world.session.overdue(6 * SECOND)
    world.say(subscribe("BTC-USD"))
    assert not world.session.overdue(600 * SECOND)


def test_rest_products_have_the_fields_of_the_captured_ones(world):
    world.server.halted.add("ETH-USD")
    products = {row["id"]: row for row in world.get("/products")}
    expected = {
        "base_currency": "BTC",
        "quote_currency": "USD",
        "quote_increment": "0.1",
        "base_increment": "0.00000001",
        "min_market_funds": "1",
        "status": "online",
        "trading_disabled": False,
        "cancel_only": False,
        "post_only": False,
        "limit_only": False,
        "auction_mode": False,
    }
    assert products["BTC-USD"].items() >= expected.items()
    assert products["ETH-USD"]["trading_disabled"] is True
    assert set(products) == set(world.books), "no alias is listed here"


def test_rest_time(world):
    assert world.get("/time", 1_781_887_413_188_999_999) == {
        "iso": "2026-06-19T16:43:33.188Z",
        "epoch": 1781887413.188,
    }


def test_rest_book(world):
    world.run(5)
    answer = world.get("/products/BTC-USD/book?level=2", 5 * SECOND)
    assert set(answer) == {"bids", "asks", "sequence", "auction_mode", "auction", "time"}
    shown = {side: {float(p): float(s) for p, s, _ in answer[side]} for side in ("bids", "asks")}
    assert shown == world.book("BTC-USD")
    assert answer["sequence"] == world.server.sequence["BTC-USD"]
    assert len(world.get("/products/BTC-USD/book")["bids"]) == 1
    assert world.get("/products/NOPE-USD/book?level=2", status=404) == {"message": "NotFound"}
    assert world.server.rest("/products/BTC-USD/book?level=3", 0).status == 400
