"""A short version of the chaos suite: `make chaos` is the whole. The same code, three real brokers."""

import os
from pathlib import Path

import pytest

from services.cli import jars
from tools.chaos.run import run
from tools.chaos.scenarios import Scenario, Settings, plain, short

STARVED = ("gaps missed", "opportunities invented")
"""Not asked here: what is found of the simulator's gaps depends on how much of two cores the other tests leave."""


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_a_leader_a_detector_and_a_decider_killed_at_once_lose_nothing(tmp_path):
    if os.environ.get("ARB_TEST_BROKER") not in (None, "jars"):
        pytest.skip("another kind of broker is asked for: drills need Kafka's own processes")
    try:
        jars.java_version()
        libs = jars.fetch()
    except jars.Unsuitable as reason:
        pytest.skip(f"no real Kafka can run here: {reason}")
    said: list[str] = []
    scenario = Scenario("short", "", plain(short))
    settings = Settings(patient=True)  # other tests run beside it

    def tell(doing: str, words: str) -> None:
        said.append(f"{doing}: {words}")

    result = run(scenario, settings, libs, tmp_path, tell, steady=3)
    assert result.failed is None, (result.failed, said[-3:], logs(tmp_path))
    broken = [check for check in result.checks if not check.ok and not check.what.startswith(STARVED)]
    words = "; ".join(f"{check.what}: {check.found}" for check in broken)  # a whole list would be cut in the middle
    assert not broken, f"{words}\n{result.recoveries}\n{logs(tmp_path)}"
    assert result.accounts is not None
    assert result.accounts.decided == result.accounts.opened > 6
    assert [one.what.partition(" of ")[0] for one in result.recoveries] == ["kill -9"]
    assert {row["service"]: row["killed"] for row in result.members if row["killed"]} == {
        "detector-1": 1,
        "decider-1": 1,
    }


def logs(folder: Path) -> str:
    return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in folder.rglob("*.log"))
