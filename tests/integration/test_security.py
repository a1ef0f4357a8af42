"""Kafka behind SASL_SSL that denies what no rule allows: the services each as their own user, with passwords in files."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from services.cli.dlq import box
from services.cli.dlq.letters import Wanted
from services.cli.jars import JarCluster, Unsuitable, fetch, free_port
from shared import acls, cluster, kafka, topics
from shared.client import decisions
from shared.errors import AccessRefused, BrokerUnavailable, SettingsError, UsageError
from shared.messages import Decision
from shared.settings import KafkaSettings
from tests.integration import certificates

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

WAIT_S = 120.0
"""For what takes five seconds on a quiet machine."""


def password(user: str) -> str:
    return f"pw-{user}-5d1f0c77"


@dataclass(frozen=True)
class Secured:
    """A broker that wants TLS and a login; `folder` has the certificates and passwords."""

    servers: str
    expired: str
    folder: Path

    def options(self, user: str, **changed: str) -> dict[str, str]:
        """For a client; the password is in a file beside."""
        return {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": user,
            "ssl.ca.location": str(self.folder / "ca.pem"),
        } | {name.replace("_", "."): value for name, value in changed.items()}

    def secret(self, user: str) -> Path:
        return self.folder / f"{user}.password"

    def of(self, user: str, *, servers: str = "", secret: str = "", **changed: str) -> KafkaSettings:
        """Settings of a user's clients; `secret` is the user whose password is used instead."""
        files = {"sasl.password": self.secret(secret or user)}
        return KafkaSettings(servers=servers or self.servers, options=self.options(user, **changed), option_files=files)

    def arb(
        self, settings: KafkaSettings, log: IO[bytes], *words: str, stdout: int | None = None, **variables: str
    ) -> subprocess.Popen[bytes]:
        """`arb WORDS` as a process, which logs to `log`."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ARB_")}
        ours = {
            "ARB_KAFKA_SERVERS": settings.servers,
            "ARB_KAFKA_OPTIONS": json.dumps(settings.options),
            "ARB_KAFKA_OPTION_FILES": json.dumps({name: str(file) for name, file in settings.option_files.items()}),
            "ARB_CACHE_DIR": str(self.folder / "cache"),
            "ARB_DECIDER_STATE_FILE": str(self.folder / f"{time.time_ns()}.sqlite"),
        }
        command = [sys.executable, "-m", "services.cli", *words]
        return subprocess.Popen(command, env={**inherited, **ours, **variables}, stdout=stdout or log, stderr=log)


@pytest.fixture(scope="module")
def secured(tmp_path_factory) -> Iterator[Secured]:
    """One node; its second listener shows a certificate that has expired. Topics and rules are those of our tables."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates")
    folder = tmp_path_factory.mktemp("secured")
    certificates.authority(folder)
    certificates.authority(folder, "stranger")
    certificates.signed(folder, "broker", host="IP:127.0.0.1")
    certificates.signed(folder, "expired", host="IP:127.0.0.1", expired=True)
    users = ["admin", *(principal.name for principal in acls.PRINCIPALS)]
    for user in users:
        (folder / f"{user}.password").write_text(f"{password(user)}\n")
    expired = free_port()
    login = "org.apache.kafka.common.security.scram.ScramLoginModule required"
    extra = {
        "listeners": f"SASL_SSL://127.0.0.1:{{port}},EXPIRED://127.0.0.1:{expired},"
        "CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"SASL_SSL://127.0.0.1:{{port}},EXPIRED://127.0.0.1:{expired}",
        "listener.security.protocol.map": "SASL_SSL:SASL_SSL,EXPIRED:SASL_SSL,CONTROLLER:SSL",
        "inter.broker.listener.name": "SASL_SSL",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
        **{
            f"listener.name.{listener}.scram-sha-512.sasl.jaas.config": f'{login} username="admin" '
            f'password="{password("admin")}";'
            for listener in ("sasl_ssl", "expired")
        },
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "broker.store.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(folder / "ca.pem"),
        "listener.name.expired.ssl.keystore.type": "PEM",
        "listener.name.expired.ssl.keystore.location": str(folder / "expired.store.pem"),
        "listener.name.controller.ssl.client.auth": "required",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:admin;User:CN=broker",
    }
    scram = [
        word for user in users for word in ("--add-scram", f"SCRAM-SHA-512=[name={user},password={password(user)}]")
    ]
    options = {"sasl.password": password("admin")}
    options |= Secured("", "", folder).options("admin")
    with contextlib.ExitStack() as stack:
        try:
            libs = fetch()
            node = JarCluster(libs, folder, 1, quick=True, extra=extra, format_arguments=scram, options=options)
            stack.enter_context(node)
            node.format()
            node.start(1)
            node.wait(timeout_s=WAIT_S)
        except Unsuitable as error:
            pytest.skip(f"no real Kafka can run here: {error}")
        found = Secured(node.kafka.servers, f"127.0.0.1:{expired}", folder)
        missing, beyond = cluster.check_rules(found.of("admin"))
        assert (len(missing), beyond) == (len(list(acls.rules())), [])
        cluster.create_rules(found.of("admin"), missing)
        cluster.apply_topics(found.of("operator"))  # by its own user's rights
        yield found


def last_line(log: Path) -> str:
    return log.read_text().strip().splitlines()[-1]


def ended(process: subprocess.Popen[bytes], log: Path) -> int:
    """Its exit code; it must end by itself."""
    try:
        return process.wait(WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise AssertionError(f"does not end: {log.read_text()[-2000:]}") from None


@contextlib.contextmanager
def running(started: Mapping[str, subprocess.Popen[bytes]]) -> Iterator[None]:
    """Ends what still runs."""
    try:
        yield
    finally:
        for process in started.values():
            process.send_signal(signal.SIGTERM)  # of one that has ended: nothing
        for process in started.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def addresses(line: bytes) -> dict[str, str]:
    """Variables that send the services to the simulator."""
    where = json.loads(line)
    model = {"base_url": where["model_base_url"], "api_key_env": "SIMULATED_KEY", "key_pattern": None}
    found = {"SIMULATED_KEY": "sk-demo-0000-0000-0000"}
    found |= {f"ARB_EXCHANGES_{name.upper()}": json.dumps(each) for name, each in where["exchanges"].items()}
    return found | {f"ARB_PROVIDERS_{name}": json.dumps(model) for name in ("OPENAI", "GEMINI", "DEEPSEEK")}


def listeners(pid: int) -> set[tuple[str, int]]:
    """Addresses on which a process takes TCP connections (Linux)."""
    sockets = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            sockets.add(os.readlink(file))
    found = set()
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                host, port = fields[1].split(":")
                words = [bytes.fromhex(host[at : at + 8])[::-1] for at in range(0, len(host), 8)]  # little-endian
                found.add((socket.inet_ntop(family, b"".join(words)), int(port, 16)))
    return found


async def first_decision(secured: Secured) -> Decision:
    """As a user's program gets it."""
    options = secured.options("reader") | {"sasl.password": secured.secret("reader").read_text().strip()}
    async with asyncio.timeout(WAIT_S):
        async for decision in decisions(secured.servers, since_s=600, options=options):
            return decision
    raise AssertionError("the decisions ended")


SERVICES = {
    "collector-kraken": ("collect", "kraken"),
    "collector-coinbase": ("collect", "coinbase"),
    "detector": ("detect",),
    "decider": ("decide",),
}


def test_the_pipeline_runs_with_each_service_as_its_own_user(secured):
    """Decisions come out; nothing listens beyond loopback, nor at all unless told to; no password is told anywhere. A
    collector that may read its topic and not write to it ends."""
    logs = {name: secured.folder / f"{name}.log" for name in ("simulator", *SERVICES, "may-only-read")}
    started: dict[str, subprocess.Popen[bytes]] = {}
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(log.open("wb")) for name, log in logs.items()}
        stack.enter_context(running(started))
        words = ("simulate", "--seed", "3", "--pace", "5")
        simulator = secured.arb(secured.of("reader"), files["simulator"], *words, stdout=subprocess.PIPE)
        started["simulator"] = simulator
        assert simulator.stdout is not None
        variables = addresses(simulator.stdout.readline())
        port = free_port()
        for name, arguments in SERVICES.items():
            served = {"ARB_METRICS_PORT": str(port)} if name == "detector" else {}
            started[name] = secured.arb(secured.of(name), files[name], *arguments, **variables, **served)
        decision = asyncio.run(first_decision(secured))
        assert {decision.buy.exchange, decision.sell.exchange} == {"kraken", "coinbase"}
        reads = secured.arb(secured.of("reader"), files["may-only-read"], "collect", "kraken", **variables)
        started["may-only-read"] = reads
        assert ended(reads, logs["may-only-read"]) == 2
        refused = last_line(logs["may-only-read"])  # of a rate or a tick, whichever came first
        assert refused.startswith(("arb: tick-data-kraken: ", "arb: fx-rates: ")), refused
        assert "Broker: Topic authorization failed; no rule allows this to our user" in refused
        for name in SERVICES:
            assert started[name].poll() is None, logs[name].read_text()[-2000:]
        listening = {name: listeners(process.pid) for name, process in started.items() if process.poll() is None}
        assert len(listening["simulator"]) >= len(topics.EXCHANGES)
        assert listening["detector"] == {("127.0.0.1", port)}
        assert all(host == "127.0.0.1" for found in listening.values() for host, _ in found)
        assert [name for name, found in listening.items() if not found] == [n for n in SERVICES if n != "detector"]
    for name in SERVICES:
        assert started[name].returncode == 0, logs[name].read_text()[-2000:]
        assert "authorization" not in logs[name].read_text().lower()
    assert nothing_tells_a_password(secured) > 20


def test_services_that_may_not_end_with_one_line(secured):
    """Each by itself, with exit 2."""
    cases = {
        "wrong-password": (("collect", "kraken"), secured.of("collector-kraken", secret="reader")),
        "other-exchange": (("collect", "kraken"), secured.of("collector-binance")),
        "decider-without-rules": (("decide",), secured.of("collector-kraken")),
    }
    lines = {
        "wrong-password": "Check sasl.username, sasl.mechanism and the password",
        "other-exchange": "does not show us tick-data-kraken",
        "decider-without-rules": "does not show us arbitrage-opportunities",
    }
    started: dict[str, subprocess.Popen[bytes]] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(started))
        for name, (arguments, settings) in cases.items():
            log = stack.enter_context((secured.folder / f"{name}.log").open("wb"))
            started[name] = secured.arb(settings, log, *arguments)
        for name, words in lines.items():
            log_file = secured.folder / f"{name}.log"
            assert ended(started[name], log_file) == 2
            assert last_line(log_file).startswith("arb: Kafka does")
            assert words in last_line(log_file)
            assert "Traceback" not in log_file.read_text()
    nothing_tells_a_password(secured)


def nothing_tells_a_password(secured: Secured) -> int:
    """Looks for every password in all that was logged and published; how many texts it looked at."""
    looked = 0
    secrets = [password(principal.name).encode() for principal in acls.PRINCIPALS] + [password("admin").encode()]
    texts = [log.read_bytes() for log in secured.folder.glob("*.log")]
    texts += [file.read_bytes() for file in (secured.folder / "cache").rglob("*") if file.is_file()]
    for topic in topics.TOPICS:
        records = kafka.read_range(kafka.reader(secured.of("admin"), "test"), [topic.name], 0)
        texts += [
            b"".join((record.key or b"", record.value or b"", repr(record.headers).encode())) for record in records
        ]
    for text in texts:
        looked += 1
        assert not any(secret in text for secret in secrets)
    return looked


@pytest.mark.parametrize(
    ("change", "error", "line"),
    [
        ({"secret": "reader"}, AccessRefused, "let us in: .* invalid credentials .* Check sasl.username"),
        ({"user": "nobody", "secret": "reader"}, AccessRefused, "let us in: .* invalid credentials"),
        ({"sasl_mechanism": "PLAIN"}, AccessRefused, "supported mechanisms: SCRAM-SHA-512"),
        ({"ssl_ca_location": "stranger.pem"}, AccessRefused, "certificate verify failed.* Check that ssl.ca.location"),
        ({"ssl_ca_location": "gone.pem"}, SettingsError, r"kafka\.options: ssl\.ca\.location: there is no .*gone\.pem"),
        ({"servers": "localhost"}, AccessRefused, "certificate verify failed.* names the host as kafka.servers does"),
        ({"servers": "expired"}, AccessRefused, "certificate verify failed.* has not expired"),
        (
            {"security_protocol": "PLAINTEXT"},
            BrokerUnavailable,
            "closes them: .*another security.protocol .* PLAINTEXT",
        ),
        ({"sasl_pasword": "x"}, SettingsError, 'kafka.options: No such configuration property: "sasl.pasword"'),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(secured, change, error, line):
    given = dict(change)
    if "ssl_ca_location" in given:
        given["ssl_ca_location"] = str(secured.folder / given["ssl_ca_location"])
    port = secured.servers.rpartition(":")[2]
    servers = {"localhost": f"localhost:{port}", "expired": secured.expired}.get(given.pop("servers", ""), "")
    settings = secured.of(given.pop("user", "decider"), servers=servers, **given)
    began = time.monotonic()
    with pytest.raises(error, match=line) as caught:
        cluster.wait_for_brokers(settings, timeout_s=2.0)
    assert time.monotonic() - began < 20
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert password("reader") not in str(caught.value)


def publish(settings: KafkaSettings, topic: str) -> None:
    ticks = topic.startswith("tick-data-")
    config = (kafka.tick_producer if ticks else kafka.event_producer)(settings, "test")
    publisher = kafka.Publisher(config, drop_when_full=ticks)
    try:
        publisher.publish(topic, "BTC", b"{}")
        publisher.confirm(30)
    finally:
        publisher.close(1.0)


@pytest.mark.parametrize(
    ("user", "topic"),
    [
        ("collector-kraken", topics.DECISIONS),
        ("collector-kraken", topics.ticks("binance")),
        ("detector", topics.DECISIONS),
        ("decider", topics.OPPORTUNITIES),
        ("reader", topics.DECISIONS),  # it may write nowhere: Kafka gives it no producer's number
        ("replay", topics.DECISIONS),
        ("kminion", topics.FX_RATES),
    ],
)
def test_who_may_not_write_cannot(secured, user, topic):
    with pytest.raises(AccessRefused, match="no rule allows this to our user"):
        publish(secured.of(user), topic)


def test_every_rule_to_write_is_enough_to_write(secured):
    for rule in acls.rules():
        if rule.operation == "Write" and rule.name.endswith(".dlq"):  # nobody reads those here
            publish(secured.of(rule.principal), rule.name)


@pytest.mark.parametrize(
    ("user", "name", "allowed"),
    [*(("reader", name, True) for name in acls.READERS), ("reader", "decider", False), ("kminion", "kminion", False)],
)
def test_who_reads_without_a_group_may(secured, user, name, allowed):
    config = kafka.reader(secured.of(user), name)
    if allowed:
        kafka.read_range(config, [topics.OUTCOMES], 0)
        return
    with pytest.raises(AccessRefused):
        read_for_a_while(config)


def read_for_a_while(config: kafka.Config) -> None:
    with contextlib.closing(kafka.Reader(config, [topics.OUTCOMES], 0)) as reader:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            reader.read(10, 0.1)


@pytest.mark.parametrize("user", [principal.name for principal in acls.PRINCIPALS if principal.name != "operator"])
def test_nobody_else_creates_or_changes_topics_or_rules(secured, user):
    settings = secured.of(user)
    new = topics.Topic(topics.DECISIONS + "-2", 1, topics.HOUR_MS, 1, "", "", "")
    with pytest.raises(AccessRefused):
        cluster.apply_topics(settings, [new])
    with pytest.raises(AccessRefused):
        cluster.create_rules(settings, [acls.Rule(user, "topic", "*", "literal", "Write")])


def test_even_the_operator_gives_nobody_rights(secured):
    assert cluster.check_rules(secured.of("operator")) == ([], [])
    with pytest.raises(AccessRefused):
        cluster.create_rules(secured.of("operator"), [acls.Rule("reader", "topic", "*", "literal", "Write")])


def test_the_operator_sees_dead_letters_and_only_the_user_for_it_sends_them_again(secured):
    publisher = kafka.Publisher(kafka.event_producer(secured.of("detector"), "test"), drop_when_full=False)
    record = kafka.Record(topics.FX_RATES, 0, 7, b"USDT-USD", b"{}", int(time.time() * 1000), [])
    kafka.dead_letter(publisher, record, group="test", stage="security", error=ValueError("of the test"))
    publisher.confirm()
    publisher.close()
    wanted = Wanted(stage="security")
    (letter,) = box.find(secured.of("operator"), wanted)
    with pytest.raises(BrokerUnavailable, match="no rule allows this to our user"):
        box.send(secured.of("operator"), [letter])
    (letter,) = box.find(secured.of("dlq"), wanted)
    sent = box.send(secured.of("dlq"), [letter])
    assert [one.place for one in sent.taken] == [letter.place]


def test_a_rule_beyond_the_table_is_reported(secured):
    group = acls.Rule("replay", "group", "replay-", "prefixed", "Describe")
    cluster.create_rules(secured.of("admin"), [group])
    assert cluster.check_rules(secured.of("operator")) == (
        [],
        ["User:replay allow describe on group replay- (prefix)"],
    )


def test_a_cluster_without_an_authorizer_says_so(broker):
    missing, beyond = cluster.check_rules(broker)  # the client hears of no rules, and not why
    assert (missing, beyond) == (list(acls.rules()), [])
    with pytest.raises(UsageError, match="has no authorizer, so everybody may do everything"):
        cluster.create_rules(broker, missing[:1])
