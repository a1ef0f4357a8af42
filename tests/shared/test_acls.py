"""The table of access rules against the table of topics, the code that uses Kafka, and docs/security.md."""

import itertools
import re
import shlex
from pathlib import Path

import pytest

from services.decider import service as decider
from services.detector import service as detector
from shared import acls, topics
from shared.acls import PRINCIPALS, Principal, Rule

ROOT = Path(__file__).parents[2]
BY_NAME = {principal.name: principal for principal in PRINCIPALS}
COLLECTORS = {f"collector-{name}" for name in topics.EXCHANGES}


def who(operation: str, resource: str, name: str) -> set[str]:
    """Whose rules allow an operation on exactly this resource, or on its prefix."""
    return {
        rule.principal
        for rule in acls.rules()
        if (rule.operation, rule.resource) == (operation, resource)
        and (name.startswith(rule.name) if rule.pattern == "prefixed" else rule.name == name)
    }


def test_each_topic_is_written_by_whom_the_table_of_topics_says():
    for topic in topics.TOPICS:
        named = topic.written_by.replace(" ", "-")
        wanted = COLLECTORS if named == "collector" else {named}
        assert who("Write", "topic", topic.name) - {"dlq", "replay"} == wanted, topic.name
    assert set(acls.EVENTS) == {rule.name for rule in acls.rules([BY_NAME["replay"]]) if rule.operation == "Write"}


def test_a_collector_writes_its_own_ticks_and_rates_and_nothing_else_is_allowed_to_it():
    for name in topics.EXCHANGES:
        found = {(rule.operation, rule.name) for rule in acls.rules([BY_NAME[f"collector-{name}"]])}
        assert found == {("Write", topics.ticks(name)), ("Write", topics.FX_RATES)}


@pytest.mark.parametrize("operation", ["Create", "Delete", "AlterConfigs"])
def test_only_the_operator_creates_and_changes_topics(operation):
    allowed = [rule for rule in acls.rules() if rule.operation == operation]
    assert {rule.principal for rule in allowed} == {"operator"}
    assert {rule.name for rule in allowed} == {topic.name for topic in topics.TOPICS}


def test_no_rule_gives_rights_away_or_reads_or_writes_more_than_named_topics():
    for rule in acls.rules():
        assert rule.operation not in ("Alter", "All", "ClusterAction", "IdempotentWrite")
        if rule.operation in ("Read", "Write") and rule.resource == "topic":
            assert rule.pattern == "literal"
            assert rule.name in {topic.name for topic in topics.TOPICS}


def test_only_who_sends_dead_letters_again_writes_what_others_write_and_reads_no_more_than_them():
    rules = list(acls.rules([BY_NAME["dlq"]]))
    sources = [*topics.tick_topics(), topics.FX_RATES, topics.OPPORTUNITIES]
    dead = {topics.dlq(name) for name in sources}
    assert {rule.name for rule in rules if rule.operation == "Write"} == {*sources, *dead}
    assert {rule.name for rule in rules if rule.operation == "Read"} == dead
    assert "dlq" in who("Describe", "group", "dlq-1")
    assert who("Write", "topic", topics.ticks("kraken")) == {"collector-kraken", "dlq"}
    assert not [rule for rule in acls.rules([BY_NAME["operator"]]) if rule.operation == "Write"]


def test_the_groups_are_those_of_the_services():
    assert who("Read", "group", detector.GROUP) == {"detector"}
    assert who("Read", "group", decider.GROUP) == {"decider"}


def test_whoever_reads_without_a_group_in_the_code_is_allowed_to():
    """`kafka.reader(settings, "NAME")` makes a group `NAME-...`, and the client asks who coordinates it."""
    names = set()
    for file in [*(ROOT / "services").rglob("*.py"), *(ROOT / "shared").rglob("*.py")]:
        names |= set(re.findall(r'kafka\.reader\([\w.]+, "(\w+)"\)', file.read_text()))
    assert {"detector", "decider", "client", "watch"} < names
    for name in names - {"detector", "decider"} - BY_THE_OPERATOR:
        assert "reader" in who("Read", "group", f"{name}-1") | who("Describe", "group", f"{name}-1"), name


BY_THE_OPERATOR = {"doctor", "dlq"}
"""Who reads so may describe every group."""


def test_the_table_has_no_rule_twice_and_the_commands_say_the_same():
    rules = list(acls.rules())
    assert len(set(rules)) == len(rules)
    said = set()
    for command in acls.commands("b:1"):
        words = shlex.split(command)
        assert words[:6] == [
            "kafka-acls.sh",
            "--bootstrap-server",
            "b:1",
            "--command-config",
            "admin.properties",
            "--add",
        ]
        operations = [value for name, value in itertools.pairwise(words) if name == "--operation"]
        user = words[words.index("--allow-principal") + 1].removeprefix("User:")
        prefixed = "--resource-pattern-type" in words
        resource = next(kind for kind in ("topic", "group", "cluster") if f"--{kind}" in words)
        name = acls.CLUSTER if resource == "cluster" else words[words.index(f"--{resource}") + 1]
        said |= {Rule(user, resource, name, "prefixed" if prefixed else "literal", one) for one in operations}
    assert said == set(rules)


def may(principal: Principal) -> str:
    """What a user may do, as docs/security.md says it."""
    parts: dict[str, list[str]] = {}
    for allow in principal.allows:
        name = f"{allow.name}*" if allow.pattern == "prefixed" else allow.name
        words = f"{', '.join(allow.operations)} {allow.resource if allow.resource != 'topic' else ''}".strip()
        parts.setdefault(words, []).append("" if allow.resource == "cluster" else f"`{name}`")
    return "; ".join(f"{words} {', '.join(names)}".strip() for words, names in parts.items())


def table() -> str:
    rows = [f"| `{one.name}` | {one.used_by} | {may(one)} |" for one in PRINCIPALS]
    return "\n".join(["| user | used by | may |", "|---|---|---|", *rows])


def test_the_document_has_the_table():
    text = (ROOT / "docs" / "security.md").read_text()
    found = text.split("<!-- rules -->\n")[1].split("\n<!-- /rules -->")[0]
    assert found == table(), f"put this into docs/security.md:\n{table()}"
