"""`python -m services.cli.health`, as containers start it: one line and an exit code, whatever is wrong."""

import pytest

from services.cli import health


def test_wrong_settings_are_one_line(monkeypatch, capsys):
    monkeypatch.delenv("ARB_METRICS_PORT", raising=False)
    monkeypatch.setenv("ARB_KAFKA_NOPE", "1")
    assert health.main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("arb: ")
    assert "kafka.nope" in said
    assert said.count("\n") == 1


def test_a_wrong_option_ends_two():
    with pytest.raises(SystemExit) as ended:
        health.main(["--nope"])
    assert ended.value.code == 2
