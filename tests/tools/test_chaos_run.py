"""A scenario that goes wrong ends as a result, and not the suite; what ends is started again until the end."""

import contextlib
import shutil

import pytest
from confluent_kafka import KafkaError, KafkaException

from shared.errors import DependencyMissing
from tools.chaos import run
from tools.chaos.machine import Cable, Namespace, NotHere
from tools.chaos.scenarios import Scenario, Settings, plain
from tools.chaos.stage import Member, Plan, Stage


def scenario(prepare):
    return Scenario("one", "", prepare)


def outcome(prepare, tmp_path):
    return run.run(scenario(prepare), Settings(), tmp_path, tmp_path / "logs", lambda doing, words: None)


def test_what_the_machine_does_not_allow_is_skipped_and_holds(tmp_path):
    @contextlib.contextmanager
    def prepare(folder):
        raise NotHere("needs root")
        yield

    result = outcome(prepare, tmp_path)
    assert (result.skipped, result.failed, result.ok()) == ("needs root", None, True)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KafkaException(KafkaError(KafkaError._TIMED_OUT)), "KafkaException"),
        (TimeoutError("no answer"), "TimeoutError: no answer"),
        (NotHere("`ip`: no such device"), "NotHere: `ip`: no such device"),
        (ValueError("a mistake of ours"), "ValueError: a mistake of ours"),
        (DependencyMissing("the market has ended"), "the market has ended"),
    ],
)
def test_any_error_once_it_has_begun_is_a_failure_of_this_scenario_only(tmp_path, monkeypatch, error, words):
    def act(*_):
        raise error

    monkeypatch.setattr(run, "_act", act)
    result = outcome(plain(lambda stage, settings: None), tmp_path)
    assert result.failed is not None
    assert result.failed.startswith(words)
    assert result.skipped is None
    assert not result.ok()


def test_a_failure_while_a_cable_is_pulled_does_not_count_as_skipped():
    if shutil.which("ip") is None:
        pytest.skip("needs `ip`")
    gone = Namespace("arbchaos-none", Cable("198.18.0.1", "inx"), Cable("198.18.0.129", "ink"))
    with pytest.raises(DependencyMissing, match="ip -n arbchaos-none"):
        gone.cut()


def test_a_service_that_is_down_at_the_end_is_told_of_and_stays_down(tmp_path):
    with Stage(Plan(), tmp_path, tmp_path, 1, lambda doing, words: None) as stage:
        member = stage.members["wrong"] = Member("wrong", ("no-such-command",), {})
        stage._start(member)
        assert member.process is not None
        assert member.process.wait(60) == 2
        stage._keep(member, 0.0)
        assert [code for code, _ in member.own_ends] == ["2"]
        assert "no-such-command" in (tmp_path / "wrong.log").read_text()
        stage._stop("wrong")
        stage._keep(member, 1e9)
        assert member.process is None
        assert (member.ends, len(member.own_ends)) == (["2"], 1)
