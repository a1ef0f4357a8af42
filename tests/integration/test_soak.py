"""The soak of benchmarks/soak.py, shortened to seconds: what holds for an hour must hold for these, too."""

import asyncio
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.integration

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def soak(monkeypatch) -> Iterator[ModuleType]:
    """The benchmark as a module; its folder is no package."""
    monkeypatch.syspath_prepend(str(FOLDER))  # it imports its neighbour `common`
    spec = importlib.util.spec_from_file_location("soak", FOLDER / "soak.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    for name in ("soak", "common"):
        sys.modules.pop(name, None)


async def test_five_exchanges_recover_from_faults_and_leave_nothing_behind(soak, broker, tmp_path):
    options = soak.Options(seconds=20, rate=20, seed=1, warm_up_s=6, sample_s=1, logs=tmp_path)
    result = await soak.run(options, broker, asyncio.Event())
    report = "\n".join(str(row) for row in (*result.checks, *result.faults, *result.problems))
    assert not result.failed(), report
    assert {row["exchange"] for row in result.faults} == {row["exchange"] for row in result.exchanges}, report
    checks = {check["check"]: check for check in result.checks}
    assert checks["books live at the end"]["found"] == checks["books live at the end"]["wanted"]
    assert checks["left after stopping"]["found"] == "nothing"
    assert checks["reconnects without a fault"]["found"] == "0"
    assert sum(sum(row["reconnects"].values()) for row in result.faults) > 0, report
    for row in result.exchanges:
        assert row["no_cause"] == 0, report


def test_a_slope_is_told_from_noise(soak):
    rising = soak.slope([(at * 10.0, 1000 + at * 10.0 + (at % 2)) for at in range(100)])
    assert rising.per_h == pytest.approx(3600, rel=0.01)
    assert rising.error_per_h < 50
    flat = soak.slope([(at * 10.0, 1000.0 + (-1) ** at) for at in range(100)])
    assert abs(flat.per_h) < 3 * flat.error_per_h
    assert soak.slope([(0.0, 1.0), (1.0, 2.0)]).error_per_h == float("inf")
