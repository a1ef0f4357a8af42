"""`arb topics acls`: what it prints and how it ends, without a cluster."""

import json

import pytest

from services.cli import acls as command
from shared import acls, cluster
from shared.acls import Rule
from shared.settings import KafkaSettings

KAFKA = KafkaSettings(servers="b:1")
RULE = Rule("detector", "group", "detector-", "prefixed", "Describe")
LINE = "User:detector allow describe on group detector- (prefix)"


def run(capsys: pytest.CaptureFixture[str], **options: bool) -> tuple[int, str]:
    chosen = {"ask": False, "apply": False, "as_json": False} | options
    return command.run(KAFKA, **chosen), capsys.readouterr().out


def test_without_options_it_prints_the_table_as_commands(capsys):
    code, out = run(capsys)
    assert code == 0
    assert out.splitlines() == list(acls.commands("b:1"))


def test_the_table_as_json_has_every_rule(capsys):
    code, out = run(capsys, as_json=True)
    assert code == 0
    assert [Rule(**each) for each in json.loads(out)] == list(acls.rules())


@pytest.mark.parametrize(
    ("missing", "beyond", "code", "lines"),
    [
        ([], [], 0, ["all rules are as they must be"]),
        ([RULE], [], 1, [f"missing: {LINE}: `arb topics acls --apply` creates it"]),
        ([], ["User:reader deny all on topic x"], 1, ["beyond the table: User:reader deny all on topic x: "]),
    ],
)
def test_what_differs_is_the_answer_no(capsys, monkeypatch, missing, beyond, code, lines):
    monkeypatch.setattr(cluster, "check_rules", lambda settings: (missing, beyond))
    said, out = run(capsys, ask=True)
    assert said == code
    assert [line.startswith(begin) for line, begin in zip(out.splitlines(), lines, strict=True)] == [True]
    said, out = run(capsys, ask=True, as_json=True)
    assert said == code
    assert json.loads(out) == {"created": [], "missing": [rule._asdict() for rule in missing], "beyond": beyond}


def test_apply_creates_what_is_missing_and_no_more(capsys, monkeypatch):
    created: list[Rule] = []
    monkeypatch.setattr(cluster, "check_rules", lambda settings: ([RULE], []))
    monkeypatch.setattr(cluster, "create_rules", lambda settings, rules: created.extend(rules))
    assert run(capsys, ask=True, apply=True) == (0, f"created: {LINE}\n")
    assert created == [RULE]
