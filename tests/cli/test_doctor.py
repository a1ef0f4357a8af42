"""`arb doctor`: each thing that can be broken is found, and its finding names what mends it."""

import asyncio
import contextlib
import datetime
import io
import json
import socket
import time
from dataclasses import replace
from decimal import Decimal

import pytest
from pydantic import SecretStr
from rich.console import Console

from services.cli import doctor
from services.cli.doctor import gather, here, kafka, outside, show
from services.cli.doctor.finding import Finding, Part, Result
from services.cli.doctor.gather import Asked
from services.cli.doctor.outside import Heard, Provider, Service, Venue
from services.collector.clock import Offset
from services.decider.budget import Budget
from services.decider.llm import Listing
from services.decider.state import State
from shared import cluster, messages, secrets, settings, topics
from shared import kafka as client
from shared.cluster import Group, Look, Member, Partition
from shared.errors import BrokerUnavailable, UsageError
from shared.settings import KafkaSettings
from shared.topics import TOPICS
from tests.decider.hostile import KEYS, Hostile, http, listed, settings_at

TODAY = datetime.date(2026, 11, 21)
NOW_MS = 1_795_000_000_000
SECOND = 1_000_000_000
D = Decimal


@pytest.fixture
def configured():
    return settings.load()


def wrong(found: list[Finding]) -> list[Finding]:
    """What is not well; each must say what mends it."""
    bad = [one for one in found if one.result in (Result.FAIL, Result.WARN)]
    assert all(one.fix for one in bad)
    return bad


def the_one(found, result=Result.FAIL):
    (finding,) = wrong(found if isinstance(found, list) else [found])
    assert finding.result == result
    return finding


# ---------------------------------------------------------------- no broker


@pytest.mark.parametrize(
    ("said", "words", "fix"),
    [
        (
            (
                "sasl_plaintext://a:1/bootstrap: SASL SCRAM-SHA-512 mechanism handshake failed: Broker: Request not valid in "
                "current SASL state: broker's supported mechanisms: (after 8ms in state AUTH_HANDSHAKE)"
            ),
            "wants no SASL",
            "security.protocol",
        ),
        (
            (
                "sasl_ssl://a:1/bootstrap: SASL authentication error: Authentication failed during authentication due to "
                "invalid credentials with SASL mechanism SCRAM-SHA-512"
            ),
            "refused user or password",
            "sasl.password",
        ),
        (
            (
                "ssl://a:1/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker "
                "certificate could not be verified"
            ),
            "authority that is not known here",
            "ssl.ca.location",
        ),
        (
            (
                "ssl://a:1/bootstrap: SSL handshake failed: Disconnected: SSL connection closed by peer: connecting to a "
                "PLAINTEXT broker listener?"
            ),
            "TLS was tried on a listener without it",
            "PLAINTEXT",
        ),
        ("a:1/bootstrap: Receive failed: Invalid response size 1213486160 (0..100000000)", "HTTP server", "own port"),
        ("a:1/bootstrap: Receive failed: Invalid response size 1347703880", "does not speak Kafka", "own port"),
        (
            "ssl://a:1: SSL handshake failed: tlsv13 alert certificate required",
            "wants a certificate",
            "ssl.key.location",
        ),
    ],
)
def test_what_the_client_says_of_an_attempt_is_put_into_words(said, words, fix):
    found = the_one(kafka.no_contact("a:1", "ssl", ["0/1 brokers are down", said], [kafka.Listener("a:1", None)]))
    assert words in found.words
    assert fix in found.fix


def test_an_address_that_nobody_listens_at_or_that_is_no_name():
    gone = kafka.no_contact(
        "a:1", "plaintext", [], [kafka.Listener("a:1", "nothing listens there (connection refused)")]
    )
    assert "docker compose up" in the_one(gone).fix
    unnamed = kafka.no_contact("b:1", "plaintext", [], [kafka.Listener("b:1", "no such name: b")])
    assert "correct the name" in the_one(unnamed).fix


def test_a_listener_with_tls_that_was_asked_without():
    found = the_one(kafka.no_contact("a:1", "sasl_plaintext", [], [kafka.Listener("a:1", None, tls=True)]))
    assert "wants TLS" in found.words
    assert "SASL_SSL" in found.fix


async def serve(stack, answer):
    """A listener that is no Kafka; its address."""
    over = asyncio.Event()

    async def talk(reader, writer):
        if answer is None:
            await over.wait()
        else:
            with contextlib.suppress(OSError):
                await reader.read(100)
                writer.write(answer)
                await writer.drain()
        writer.close()

    async def close(server):
        over.set()
        server.close()
        await server.wait_closed()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    stack.push_async_callback(close, server)
    return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def at(configured, servers, **options):
    kafka_settings = configured.kafka.model_copy(update={"servers": servers, "options": options})
    return configured.model_copy(update={"kafka": kafka_settings})


async def look_at_kafka(configured, servers, **options):
    return await gather.examine(at(configured, servers, **options), Asked((Part.KAFKA, Part.TOPICS), timeout_s=8))


async def test_real_listeners_that_are_no_kafka(configured):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{probe.getsockname()[1]}"
        async with contextlib.AsyncExitStack() as stack:
            web = await serve(stack, b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
            silent = await serve(stack, None)
            found = dict(
                zip(
                    ("gone", "web", "silent"),
                    await asyncio.gather(*(look_at_kafka(configured, one) for one in (nobody, web, silent))),
                    strict=True,
                )
            )
    assert "nothing listens there" in the_one(found["gone"]).words
    assert "an HTTP server answers there" in the_one(found["web"]).words
    assert "does not answer as Kafka does" in the_one(found["silent"]).words
    for findings in found.values():
        assert show.exit_code(findings) == 3
        assert [one.words for one in findings if one.part == Part.TOPICS] == ["no Kafka"]


async def test_an_option_that_the_client_does_not_know(configured):
    async with contextlib.AsyncExitStack() as stack:
        somebody = await serve(stack, None)
        found = the_one(await look_at_kafka(configured, somebody, **{"no.such.option": 1}))
    assert "no.such.option" in found.words
    assert found.fix == "correct [kafka.options]"


async def test_a_file_that_an_option_names_and_is_not_there(configured, tmp_path):
    async with contextlib.AsyncExitStack() as stack:
        found = await look_at_kafka(configured, await serve(stack, None), **{"ssl.ca.location": str(tmp_path / "ca")})
    assert the_one(found).fix == "correct [kafka.options]"
    assert show.exit_code(found) == 2


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("a:1", ("a", 1)),
        ("PLAINTEXT://a:1", ("a", 1)),
        ("sasl_ssl://a", ("a", 9092)),
        ("a", ("a", 9092)),
        ("[::1]:1", ("::1", 1)),
        ("ssl://[::1]", ("::1", 9092)),
        ("a:70000", None),
        ("a:b", None),
        ("", None),
    ],
)
def test_addresses_are_read_as_the_client_reads_them(address, place):
    assert kafka.host_and_port(address) == place


async def test_the_client_is_asked_even_where_no_connection_could_be_made(configured, monkeypatch):
    monkeypatch.setattr(cluster, "look", lambda *_: a_look())
    monkeypatch.setattr(cluster, "check_topics", lambda *_: [])
    assert not wrong(await gather.examine(at(configured, "127.0.0.1:1"), Asked((Part.TOPICS,))))


def test_a_book_that_changes_all_the_time_is_live_without_a_word_about_its_health(configured, monkeypatch):
    """Its collector sends health records on changes and for quiet books only."""
    now_ns = time.time_ns()
    values = [
        messages.book_value("kraken", "BTC-USD", 8, now_ns, None, [(1.0, 1.0)], [(2.0, 1.0)]),
        messages.health_value("kraken", "BTC-USD", 7, now_ns, "gap", None, now_ns, now_ns),
        messages.book_value("kraken", "ETH-USD", 3, now_ns, None, [(1.0, 1.0)], [(2.0, 1.0)]),
        messages.health_value("kraken", "ETH-USD", 4, now_ns, "gap", None, now_ns, now_ns),
        messages.trade_value("kraken", "SOL-USD", 1, now_ns, 2, 1.0, 0.01, None, "1"),
        b"no tick",
    ]
    records = [client.Record("tick-data-kraken", 0, n, b"k", value, 0, []) for n, value in enumerate(values)]
    monkeypatch.setattr(gather.client, "spans", lambda *_, **__: [])
    monkeypatch.setattr(gather.client, "read_spans", lambda *_: iter([None, *records]))
    found = gather._states(configured, ["tick-data-kraken"], now_ns // 1_000_000, time.monotonic() + 5)
    assert found == {"kraken": {"BTC-USD": "live", "ETH-USD": "gap"}}


async def test_what_comes_while_the_brokers_are_asked_is_not_of_the_future(configured, monkeypatch):
    def newest_ms(settings, asked, timeout_s):
        time.sleep(1.2)  # a busy broker
        return dict.fromkeys(asked, int(time.time() * 1000))

    monkeypatch.setattr(cluster, "newest_ms", newest_ms)
    monkeypatch.setattr(gather, "_states", lambda *_: {})
    found = await gather._ticks(configured, a_look(), time.monotonic() + 10)
    assert {one.result for one in found if "books" not in one.check} == {Result.OK}


def test_a_broker_that_goes_between_two_questions_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(cluster, "wait_for_brokers", lambda *_, **__: 1)
    for ask in (cluster.check_topics, lambda *a, **k: cluster.require_topics(*a, ["x"], **k)):
        with pytest.raises(BrokerUnavailable, match="no Kafka"):
            ask(KafkaSettings(servers="127.0.0.1:1"), timeout_s=0.2)


# ---------------------------------------------------------------- brokers, topics, copies


def a_look(brokers=3, **changes):
    partitions = [
        Partition(topic.name, number, 1 + number % brokers, tuple(range(1, min(3, brokers) + 1)), (1, 2, 3)[:brokers])
        for topic in TOPICS
        for number in range(topic.partitions)
    ]
    addresses = {n: (f"kafka-{n}", 9092) for n in range(1, brokers + 1)}
    return replace(Look("id", addresses, tuple(partitions), 5), **changes)


def test_a_sound_cluster_has_nothing_wrong(configured):
    assert not wrong(kafka.contact(a_look(), "kafka-1:9092", {}))
    assert not wrong(kafka.table([]))
    for brokers in (1, 2, 3):
        assert not wrong(kafka.copies(a_look(brokers)))
    assert not wrong(kafka.brokers({"auto.create.topics.enable": "false"}, configured))


def test_a_broker_that_calls_itself_by_a_name_that_leads_nowhere():
    found = the_one(kafka.contact(a_look(), "localhost:29092", {"kafka-2:9092": "no such name: kafka-2"}))
    assert "kafka-2:9092" in found.words
    assert "advertised.listeners" in found.fix


def test_brokers_that_create_topics_by_themselves(configured):
    found = the_one(kafka.brokers({"auto.create.topics.enable": "true"}, configured), Result.WARN)
    assert "auto.create.topics.enable=false" in found.fix


@pytest.mark.parametrize(
    ("protocols", "session", "result", "fix"),
    [
        ("classic", "10000", Result.FAIL, "kafka.group_protocol to classic"),
        ("classic,consumer", "45000", Result.WARN, "group.consumer.session.timeout.ms"),
    ],
)
def test_brokers_that_do_not_fit_the_new_group_protocol(configured, protocols, session, result, fix):
    new = configured.model_copy(update={"kafka": configured.kafka.model_copy(update={"group_protocol": "consumer"})})
    told = {"group.coordinator.rebalance.protocols": protocols, "group.consumer.session.timeout.ms": session}
    assert fix in the_one(kafka.brokers(told, new), result).fix


def test_a_missing_topic_a_wrong_count_and_a_wrong_setting():
    missing = the_one(kafka.table([cluster.Finding("fx-rates", "is missing", mendable=True)]))
    assert (missing.words, missing.fix) == ("1 missing: fx-rates", "arb topics apply")
    count = the_one(kafka.table([cluster.Finding("tick-data-okx", "has 8 partitions, must have 16", mendable=False)]))
    assert "refuse to run" in count.words
    assert "--delete --topic tick-data-okx" in count.fix
    least = the_one(kafka.table([cluster.Finding("x", "min.insync.replicas is 1, must be 2", mendable=True)]))
    assert least.fix == "arb topics apply"


def test_copies_that_are_behind_too_few_or_without_a_leader():
    def changed(**fields):
        sound = a_look()
        hit = [p._replace(**fields) if p.topic == topics.DECISIONS and p.number < 2 else p for p in sound.partitions]
        return replace(sound, partitions=tuple(hit), brokers={1: ("a", 1), 3: ("c", 1)})

    behind = the_one(kafka.copies(changed(in_sync=(1, 3))), Result.WARN)
    assert "2 partitions (ai-trading-decisions: 2)" in behind.words
    assert behind.fix == "start broker 2 again"
    assert "writes are refused" in the_one(kafka.copies(changed(in_sync=(1,)))).words
    assert "no leader" in the_one(kafka.copies(changed(leader=-1, in_sync=()))).words
    few = a_look()
    few = replace(
        few, partitions=tuple(p._replace(replicas=(1,), in_sync=(1,)) for p in few.partitions if p.topic == "fx-rates")
    )
    assert "reassign" in the_one(kafka.copies(few), Result.WARN).fix


# ---------------------------------------------------------------- groups


def detectors(*held, **changes):
    members = tuple(
        Member(
            f"detector-{n}",
            "/10.0.0.1",
            frozenset((topic, number) for topic in topics.tick_topics() for number in numbers),
        )
        for n, numbers in enumerate(held)
    )
    return replace(Group("detector", "stable", "classic", "range", members, {}), **changes)


def judged(group, protocol="classic"):
    return kafka.group(group, topics.tick_topics(), topics.TICK_PARTITIONS, protocol)


def test_a_sound_group():
    (found,) = judged(detectors(range(8), range(8, 16)))
    assert (found.result, found.words) == (Result.OK, "2 members, range, 0 records behind")


def test_a_group_that_is_away_stuck_wrong_or_slow():
    assert "arb detect" in the_one(judged(detectors(state="empty"))).fix
    stuck = the_one(judged(detectors(range(16), state="preparing_rebalancing")))
    assert "preparing rebalancing" in stuck.words
    assert "detector-0" in stuck.fix
    other = the_one(judged(detectors(range(16), assignor="cooperative-sticky")))
    assert "partition.assignment.strategy" in other.fix
    assert "1 record" not in other.words
    mixed = the_one(judged(detectors(range(16)), "consumer"), Result.WARN)
    assert "kafka.group_protocol" in mixed.fix
    unread = the_one(judged(detectors(range(15))))
    assert unread.words == "5 of 80 partitions are read by nobody"
    idle = the_one(judged(detectors(range(16), ())), Result.WARN)
    assert "run at most 16" in idle.fix
    slow = the_one(judged(detectors(range(16), lag={("tick-data-okx", 3): 30_000})), Result.WARN)
    assert "30000 records behind, most of them on tick-data-okx/3" in slow.words
    assert "more of `arb detect`" in slow.fix


def test_a_member_that_has_a_coin_on_some_exchanges_only():
    sound = detectors(range(16)).members[0]
    halves = [
        replace(sound, places=frozenset(p for p in sound.places if (p[0] == "tick-data-okx") == okx))
        for okx in (True, False)
    ]
    found = the_one(judged(detectors(members=tuple(halves))))
    assert "other partitions of one topic than of another" in found.words
    assert "arb topics check" in found.fix


# ---------------------------------------------------------------- ticks


def test_ticks_that_are_stale_missing_or_of_the_future():
    ages_s = {"binance": 0.4, "coinbase": 3600.0, "kraken": None, "okx": -5.0}
    newest = {topics.ticks(name): None if age is None else NOW_MS - int(age * 1000) for name, age in ages_s.items()}
    found = {one.check: one for one in kafka.ticks(newest, NOW_MS, list(ages_s))}
    assert found["binance"].result == Result.OK
    assert "60 min old" in found["coinbase"].words
    assert "arb collect coinbase" in found["coinbase"].fix
    assert "arb collect kraken" in found["kraken"].fix
    assert "5.0 s in the future" in found["okx"].words
    assert "NTP" in found["okx"].fix
    assert (found["fx-rates"].words, found["fx-rates"].fix) == ("its topic is missing (fx-rates)", "arb topics apply")
    empty = dict.fromkeys([*newest, topics.FX_RATES])
    nothing = the_one(kafka.ticks(empty, NOW_MS, list(ages_s)))
    assert "arb collect" in nothing.fix


async def test_ticks_of_a_cluster_without_topics(configured, monkeypatch):
    monkeypatch.setattr(cluster, "look", lambda *_: Look("id", {1: ("127.0.0.1", 1)}, (), 5))
    found = wrong(await gather.examine(at(configured, "127.0.0.1:1"), Asked((Part.TICKS,))))
    assert {one.check for one in found} == {*configured.enabled_exchanges(), "fx-rates"}
    assert {one.fix for one in found} == {"arb topics apply"}


def test_books_that_are_not_live():
    wanted = {"kraken": ["BTC-USD", "ETH-USD"]}
    assert not wrong(kafka.books({"kraken": {"BTC-USD": "live", "ETH-USD": "live"}}, wanted))
    some = the_one(kafka.books({"kraken": {"BTC-USD": "live", "ETH-USD": "stale"}}, wanted), Result.WARN)
    assert "1 of 2 live; ETH-USD stale" in some.words
    assert "silent" in some.fix
    none = the_one(kafka.books({}, wanted))
    assert "0 of 2 live; BTC-USD unknown" in none.words


# ---------------------------------------------------------------- exchanges and clocks

WELL = Heard(40)


def venue(**changes):
    return replace(Venue("kraken", WELL, WELL, symbols=3), **changes)


def seen(found):
    return outside.exchange(found, "https://rest", "wss://ws")


def test_an_exchange_that_is_well():
    assert not wrong(seen(venue()))


@pytest.mark.parametrize(
    ("changes", "result", "words", "fix"),
    [
        ({"rest": Heard(5, "no answer: refused")}, Result.FAIL, "refused", "exchanges.kraken.rest_url (https://rest)"),
        ({"socket": Heard(5, "no WebSocket")}, Result.FAIL, "no WebSocket", "exchanges.kraken.ws_url (wss://ws)"),
        ({"rest": Heard(2500)}, Result.WARN, "only after 2.5 s", "nearer"),
        ({"limited": "kraken: HTTP 429, waiting 30 s"}, Result.FAIL, "429", "wait as it says"),
        ({"unlisted": ("kraken does not list XX-USD",)}, Result.FAIL, "XX-USD", "arb instruments kraken --all"),
        ({"halted": ("BTC-USD not traded: halted",)}, Result.WARN, "halted", "exchanges.kraken.symbols"),
    ],
)
def test_an_exchange_that_is_not(changes, result, words, fix):
    found = the_one(seen(venue(**changes)), result)
    assert words in found.words
    assert fix in found.fix


def test_no_exchange_at_all_is_one_finding(configured):
    away = Heard(9, "no such name")
    found = the_one(
        outside.exchanges(
            [venue(rest=away, socket=away), venue(name="okx", rest=away, socket=away)], configured.exchanges
        )
    )
    assert "none can be reached (kraken, okx)" in found.words
    assert "DNS" in found.fix


def offsets(**seconds):
    return {name: Offset(int(s * SECOND), 20_000_000, 40_000_000, 0) for name, s in seconds.items()}


def test_our_clock_is_off_if_all_say_so_and_theirs_if_one_does():
    assert not wrong(outside.clock(offsets(a=0.01, b=-0.02, c=0.0)))
    ours = the_one(outside.clock(offsets(a=5.0, b=5.1, c=4.9)))
    assert "5.00 s behind a, b, c" in ours.words
    assert "timedatectl set-ntp true" in ours.fix
    assert "ahead of" in the_one(outside.clock(offsets(a=-5.0))).words
    assert "NTP" in the_one(outside.clock(offsets(a=0.5)), Result.WARN).fix
    theirs = the_one(outside.clock(offsets(a=0.0, b=0.0, c=5.0)), Result.WARN)
    assert theirs.check == "c"
    assert outside.clock({})[0].result == Result.SKIPPED


# ---------------------------------------------------------------- models


async def models_of(base_url, environ=KEYS, **asked):
    at_server = settings_at(dict.fromkeys(("openai", "gemini", "deepseek"), base_url))
    return await gather.examine(at_server, Asked((Part.MODELS,), timeout_s=20, **asked), environ)


async def test_providers_that_take_the_key(configured):
    async with Hostile(listing=listed(*(one.model for one in configured.roles.values()))) as server:
        found = await models_of(server.base_url)
        assert not wrong(found)
        assert {request.method for request in server.requests} == {"GET"}, "nothing is paid for"


@pytest.mark.parametrize(
    ("listing", "words", "fix"),
    [
        (http(401, b"{}"), "refused the key (HTTP 401)", "OPENAI_API_KEY"),
        (http(402, b"{}"), "no money", "billing"),
        (http(503, b"{}"), "in trouble", "status page"),
        (http(429, b"{}"), "limits this key", "calls_per_s"),
        (listed("other"), "lists 1 models, but no 'gpt-6-luna'", "roles.sentiment.model"),
    ],
)
async def test_providers_that_do_not(listing, words, fix):
    async with Hostile(listing=listing) as server:
        (openai,) = [one for one in wrong(await models_of(server.base_url)) if one.check == "openai"]
    assert words in openai.words
    assert fix in openai.fix


async def test_a_key_of_the_wrong_form_is_told_without_itself():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found = await models_of(
            f"http://127.0.0.1:{probe.getsockname()[1]}/v1", KEYS | {"OPENAI_API_KEY": "hunter2-hunter2-hunter2"}
        )
    openai, gemini, _ = [one for one in wrong(found) if one.check in ("openai", "gemini", "deepseek")]
    assert "does not look like one for" in openai.words
    assert "hunter2" not in str(found)
    assert "put the whole key into OPENAI_API_KEY" in openai.fix
    assert gemini.words == "cannot be reached"
    assert "providers.gemini.base_url" in gemini.fix


async def test_without_keys_only_rules_decide():
    found = await models_of("http://127.0.0.1:1/v1", {}, offline=True)
    assert [one.result for one in wrong(found)] == [Result.WARN] * 4
    assert "set OPENAI_API_KEY" in wrong(found)[0].fix
    assert "rules only" in wrong(found)[-1].words
    without_risk = await models_of("http://127.0.0.1:1/v1", KEYS | {"GEMINI_API_KEY": ""}, offline=True)
    assert "without the risk role nothing is executed" in [one.words for one in wrong(without_risk)]


def test_a_model_past_its_last_day_and_old_prices(configured):
    risk = configured.roles["risk"].model_copy(update={"model": "gpt-4.1", "provider": "openai"})
    changed = configured.model_copy(update={"roles": {**configured.roles, "risk": risk}})
    over = here.models(changed, datetime.date(2027, 1, 15))
    last, price = [one for one in wrong(over) if "gpt-4.1" in one.check]
    assert last.result == Result.FAIL
    assert "last day was 2027-01-14" in last.words
    assert "roles.risk.model" in last.fix
    assert price.result == Result.WARN
    assert "prices" in price.fix
    soon = [one for one in here.models(changed, datetime.date(2027, 1, 10)) if "last day" in one.words]
    assert "in 4 days" in soon[0].words


def test_fees_that_are_old_or_not_valid_yet(configured):
    assert not wrong(here.dates(configured, TODAY))
    old = wrong(here.dates(configured, datetime.date(2027, 6, 1)))
    assert len(old) == 5
    assert "exchanges.kraken.fees" in " ".join(one.fix for one in old)
    early = wrong(here.dates(configured, datetime.date(2026, 1, 1)))
    assert all(one.result == Result.FAIL and "no fee is valid today" in one.words for one in early)


# ---------------------------------------------------------------- money, files, machine


def with_file(configured, file, **decider):
    return configured.model_copy(
        update={"decider": configured.decider.model_copy(update={"state_file": file, **decider})}
    )


async def money(configured):
    return await gather.examine(configured, Asked((Part.BUDGET,)), {})


async def test_a_budget_that_is_spent(configured, tmp_path):
    changed = with_file(configured, tmp_path / "d.sqlite", max_day_usd=D("0.02"), max_minute_usd=D(1))
    assert not wrong(await money(changed)), "no decider has run with it"
    assert not (tmp_path / "d.sqlite").exists(), "it only looks"
    with State(tmp_path / "d.sqlite") as state:
        budget = Budget(changed, state)
        for _ in range(2):
            assert budget.reserve("openai", D("0.01"), D(0), time.time_ns())
    found = the_one(await money(changed))
    assert found.words == "0.02 of 0.02 USD spent: no model is asked"
    assert found.fix == "wait until 00:00 UTC, or raise decider.max_day_usd"


async def test_a_state_file_that_is_damaged(configured, tmp_path):
    file = tmp_path / "d.sqlite"
    file.write_bytes(b"SQLite format 3\0" + b"x" * 4000)
    found = the_one(await money(with_file(configured, file)))
    assert "is damaged" in found.words
    assert f"mv {file}" in found.fix


async def test_a_kill_switch_that_is_on(configured, tmp_path):
    switch = tmp_path / "stop"
    off = with_file(configured, tmp_path / "d.sqlite", kill_switch=switch)
    assert not wrong(await money(off))
    switch.touch()
    found = the_one(await money(off))
    assert found.check == "kill switch"
    assert f"rm {switch}" in found.fix


async def test_a_disk_that_is_full(configured, tmp_path):
    environ = {"ARB_CACHE_DIR": str(tmp_path / "not" / "yet")}
    found = await gather.examine(
        with_file(configured, tmp_path / "d.sqlite"), Asked((Part.MACHINE,), least_free=2**62), environ
    )
    bad = [one for one in wrong(found) if one.check.startswith("disk")]
    assert [one.result for one in bad] == [Result.FAIL, Result.FAIL]
    assert "ARB_CACHE_DIR" in bad[0].fix
    assert "decider.state_file" in bad[1].fix


def test_a_folder_that_cannot_be_written():
    cache = the_one(here.disk(here.Folder("cache", "/var/cache/arbiter", 0, None, writable=False)), Result.WARN)
    assert "only collectors" in cache.words
    assert "ARB_CACHE_DIR" in cache.fix
    state = the_one(here.disk(here.Folder("state", "/var/lib/arbiter", 10**12, None, writable=False)))
    assert "decider.state_file" in state.fix


async def test_a_folder_that_cannot_be_entered(configured, tmp_path, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(gather.Path, "exists", refuse)  # as Python up to 3.13 does it for a folder of another user
    found = await gather.examine(
        with_file(configured, tmp_path / "d.sqlite"), Asked((Part.MACHINE,)), {"ARB_CACHE_DIR": str(tmp_path / "x")}
    )
    assert {one.check for one in found} >= {"disk for cache", "disk for state", "open files"}


def test_a_file_system_old_libraries_and_few_files():
    found = the_one(here.disk(here.Folder("state", "/mnt/x", 10**12, "nfs4")))
    assert "local disk" in found.fix
    assert not wrong(here.disk(here.Folder("cache", "/mnt/x", 10**12, "nfs4")))
    mounts = [("/", "ext4"), ("/mnt", "nfs4"), ("/mnt/local", "xfs")]
    from pathlib import Path

    assert [gather._file_system(Path(p), mounts) for p in ("/a", "/mnt/a", "/mnt/local/a")] == ["ext4", "nfs4", "xfs"]
    assert "requirements" in the_one(here.versions((3, 13, 1), "2.13.0", "2.13.2")).fix
    assert not wrong(here.versions((3, 13, 1), "2.16.1", "2.16.0"))
    assert "ulimit -n" in the_one(here.open_files(256), Result.WARN).fix
    assert here.tick_path(None).result is Result.OK
    assert "make compiled" in the_one(here.tick_path(("no compiler", "make compiled")), Result.WARN).fix


# ---------------------------------------------------------------- services


async def test_services_that_are_ready_not_ready_gone_or_others():
    def report(ready):
        checks = [
            {"check": "kafka", "ok": ready, "words": "no answer for 14 s"},
            {"check": "x", "ok": True, "words": ""},
        ]
        return json.dumps({"service": "detector", "ready": ready, "checks": checks}).encode()

    async with contextlib.AsyncExitStack() as stack:
        urls = [
            "http://" + await serve(stack, http(*answer))
            for answer in ((200, report(True)), (503, report(False)), (200, b"[]"))
        ]
        found = await gather.examine(settings.load(), Asked((Part.SERVICES,), services=[*urls, "http://127.0.0.1:1"]))
        only = await gather.examine(settings.load(), Asked((Part.SETTINGS,), services=urls[:1]))
    assert only[-1].part == Part.SERVICES, "what is named is asked, whatever the parts"
    ready, other, foreign, gone = found
    assert (ready.check, ready.result) == ("detector", Result.OK)
    assert other.words == "is not ready: kafka: no answer for 14 s"
    assert "/readyz" in other.fix
    assert "not as a service of ours" in foreign.words
    assert "ARB_METRICS_PORT" in gone.fix
    assert isinstance(outside.service(Service("u")), Finding)


# ---------------------------------------------------------------- as a whole


def test_exit_codes():
    def code(*results):
        return show.exit_code([Finding(Part.MACHINE, "x", one, "") for one in results])

    assert code(Result.OK, Result.WARN, Result.SKIPPED) == 0
    assert code(Result.OK, Result.FAIL) == 1
    assert show.exit_code([Finding(Part.KAFKA, "broker", Result.FAIL, "")]) == 3


def test_parts_are_chosen_by_name():
    assert doctor.chosen(None) == tuple(Part)
    assert doctor.chosen("kafka, clock") == (Part.KAFKA, Part.CLOCK)
    for bad in ("kafka,moon", "", ","):
        with pytest.raises(UsageError, match="there are settings, kafka, topics"):
            doctor.chosen(bad)


def test_it_is_readable_at_80_columns_and_whole_as_json():
    findings = [
        Finding(Part.KAFKA, "broker", Result.FAIL, "[a] " + "long words " * 20, "do [this]"),
        Finding(Part.TOPICS, "all", Result.SKIPPED, "no Kafka"),
    ]
    out = io.StringIO()
    show.show(Console(file=out, width=80, highlight=False), findings)
    lines = out.getvalue().splitlines()
    assert max(len(line) for line in lines) <= 80
    assert all(line == line.rstrip() for line in lines)
    assert "FAIL" in out.getvalue()
    assert "[a]" in out.getvalue()
    assert "fix: do [this]" in out.getvalue()
    assert lines[-1] == "0 ok, 0 to look at, 1 wrong, 1 not looked at"
    value = show.as_value(findings)
    assert value["ok"] is False
    assert value["counts"] == {"ok": 0, "warn": 0, "fail": 1, "skipped": 1}
    assert value["findings"][0]["fix"] == "do [this]"


async def test_it_ends_in_time_whatever_hangs(configured, monkeypatch):
    async def never(*_):
        await asyncio.sleep(3600)

    monkeypatch.setattr(gather, "_exchanges", never)
    began = time.monotonic()
    found = the_one(await gather.examine(configured, Asked((Part.EXCHANGES,), timeout_s=1)))
    assert time.monotonic() - began < 5
    assert "exchanges: not done within 1 s" in found.words
    assert "--timeout" in found.fix


async def test_what_nobody_foresaw_is_a_finding_and_the_others_stay(configured, monkeypatch):
    planted = KEYS["OPENAI_API_KEY"]
    secrets.register(SecretStr(planted))

    def fall(*_):
        raise RuntimeError(f"with {planted}")

    monkeypatch.setattr(gather, "_machine", fall)
    monkeypatch.setattr(cluster, "look", lambda *_: a_look())
    monkeypatch.setattr(cluster, "check_topics", fall)
    parts = (Part.SETTINGS, Part.TOPICS, Part.MACHINE)
    found = await gather.examine(at(configured, "127.0.0.1:1"), Asked(parts, timeout_s=3))
    assert Part.SETTINGS in {one.part for one in found}
    broken = [one for one in wrong(found) if one.check == "unforeseen"]
    assert [one.part for one in broken] == [Part.TOPICS, Part.MACHINE]
    assert all("RuntimeError: with" in one.words for one in broken)
    assert planted not in str(found)


async def test_addresses_that_are_none(configured):
    bad = "http://[::1/v1"
    changed = settings_at({"openai": bad, "gemini": bad})
    found = await gather.examine(changed, Asked((Part.MODELS,)), {"OPENAI_API_KEY": KEYS["OPENAI_API_KEY"]})
    lines = {one.check: one for one in wrong(found)}
    assert "providers.openai.base_url" in lines["openai"].fix
    assert "providers.gemini.base_url" in lines["gemini"].fix
    exchange = configured.exchanges["kraken"].model_copy(update={"rest_url": bad, "ws_url": "ws://[::1/v1"})
    alone = configured.model_copy(update={"exchanges": {"kraken": exchange}})
    rest, stream = wrong(await gather.examine(alone, Asked((Part.EXCHANGES,), timeout_s=3)))
    assert "is no address" in rest.words
    assert "exchanges.kraken.rest_url" in rest.fix
    assert "no WebSocket: Invalid port" in stream.words
    assert "exchanges.kraken.ws_url" in stream.fix


async def test_no_key_is_ever_shown(configured):
    planted = KEYS["OPENAI_API_KEY"]
    async with Hostile(listing=http(401, planted.encode())) as server:
        changed = settings_at({"openai": f"{server.base_url}?k={planted}"})
        found = await gather.examine(changed, Asked((Part.MODELS,), timeout_s=20), {"OPENAI_API_KEY": planted})
    assert planted not in str(found)


def test_a_provider_that_was_not_asked(configured):
    (found,) = outside.provider(Provider("openai", ("sentiment",), key=True), configured)
    assert found.result == Result.SKIPPED
    (found,) = outside.provider(Provider("openai", ("sentiment",), key=True, listing=Listing("late")), configured)
    assert "base_url" in found.fix
