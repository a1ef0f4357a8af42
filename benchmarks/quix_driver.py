"""The detector as a Quix Streams application: runs in an environment of its own, see `quix_env.py`.

It does what such an application would do at least, which is less than ours: the latest book of each exchange per coin
in the state of that coin, the tops compared in both directions after fees, and a message where that is above the
threshold. No depth, no lots, no conversion of currencies, no health or age of books, no opening and closing of a gap:
where one stands, every tick of its coin says so anew.

In Quix's favour: no changelog topic (its default would write every change of the state to Kafka too), and with
`"state": "memory"` no store either, which no application that is to survive a rebalance could do.

Prints one line of JSON: wall and CPU seconds from the first to the last record, and how many messages came of them.
"""

import json
import sys
import time
import uuid

from quixstreams import Application

FEE = 0.001
OPEN_NET = 0.0005


def net_edge(buy, sell):
    """Net edge of the tops as a fraction of the cost; -1 where a side is empty."""
    if not buy["asks"] or not sell["bids"]:
        return -1.0
    return sell["bids"][0][0] * (1 - FEE) / (buy["asks"][0][0] * (1 + FEE)) - 1


def found(exchange, book, others):
    """Opportunities between one book and those of other exchanges."""
    opened = []
    for name, other in others:
        for buyer, buy, seller, sell in ((exchange, book, name, other), (name, other, exchange, book)):
            net = net_edge(buy, sell)
            if net > OPEN_NET:
                opened.append(
                    {
                        "kind": "opportunity",
                        "buy": {"exchange": buyer, "bids": buy["bids"][:5], "asks": buy["asks"][:5]},
                        "sell": {"exchange": seller, "bids": sell["bids"][:5], "asks": sell["asks"][:5]},
                        "net_bps": net * 10_000,
                        "opened_ns": book["received_ns"],
                    }
                )
    return opened


def main():
    case = json.loads(sys.argv[1])
    app = Application(
        broker_address=case["servers"],
        consumer_group=f"bench-quix-{uuid.uuid4()}",
        auto_offset_reset="earliest",
        state_dir=case["folder"],
        use_changelog_topics=False,
        auto_create_topics=False,
        loglevel="WARNING",
        consumer_extra_config={"fetch.wait.max.ms": 50, "fetch.queue.backoff.ms": 50},
        producer_extra_config={"linger.ms": 0, "enable.idempotence": True, "acks": "all"},
    )
    source = app.topic(case["topic"], value_deserializer="json", key_deserializer="str")
    out = app.topic(case["out"], value_serializer="json", key_serializer="str")
    seen, messages = 0, 0
    began, ended = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
    held = {}

    def counted(value):
        nonlocal seen, began, ended
        seen += 1
        if seen == 1:
            began = (time.perf_counter(), time.process_time(), time.thread_time())
        elif seen == case["count"]:
            ended = (time.perf_counter(), time.process_time(), time.thread_time())
            app.stop()
        return value["kind"] == "book"

    def by_store(value, state):
        nonlocal messages
        exchange = value["exchange"]
        state.set(exchange, value)
        others = []
        for name in ("binance", "coinbase", "kraken", "bybit", "okx"):
            if name != exchange:
                other = state.get(name)
                if other is not None:
                    others.append((name, other))
        opened = found(exchange, value, others)
        messages += len(opened)
        return opened

    def by_memory(value):
        nonlocal messages
        exchange = value["exchange"]
        books = held.setdefault(value["symbol"].partition("-")[0], {})
        books[exchange] = value
        opened = found(exchange, value, [(name, book) for name, book in books.items() if name != exchange])
        messages += len(opened)
        return opened

    frame = app.dataframe(source).filter(counted)
    if case["state"] == "store":
        frame = frame.apply(by_store, stateful=True, expand=True)
    else:
        frame = frame.apply(by_memory, expand=True)
    frame.to_topic(out)
    app.run()
    if not ended[0]:
        sys.exit(f"only {seen} of {case['count']} records came")
    wall_s, cpu_s, thread_s = (end - begin for begin, end in zip(began, ended, strict=True))
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, "thread_s": thread_s, "messages": messages}), flush=True)


if __name__ == "__main__":
    main()
