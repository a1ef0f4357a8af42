"""The rules of the layout, held over the import statements themselves."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KAFKA = {f"shared/kafka/{name}.py" for name in ("clients", "groups", "publishing", "reading", "refusals", "thread")}
FILES = sorted(path for folder in ("services", "shared") for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_services_meet_on_kafka_only(path):
    parts = path.relative_to(ROOT).parts
    own = parts[1] if parts[0] == "services" and len(parts) > 2 else None
    for name in imports(path):
        if not name.startswith("services."):
            continue
        assert parts[0] != "shared", f"shared must import no service: {name}"
        assert own in ("cli", name.split(".")[1]), f"{own} must not import {name}"


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("confluent_kafka", {*KAFKA, "shared/cluster.py", "services/cli/broker.py"}),
        ("openai", {"services/decider/llm.py"}),
        ("websockets", {"services/collector/link.py", "services/simulator/service.py"}),
    ],
)
def test_each_outside_world_has_one_door(library, allowed):
    users = {
        str(path.relative_to(ROOT))
        for path in FILES
        if any(name == library or name.startswith(f"{library}.") for name in imports(path))
    }
    assert users == allowed


def test_cores_read_no_clock():
    """Arithmetic, sequences and verdicts get the moment passed in."""
    cores = [
        *("collector/allowance.py", "collector/book.py", "collector/clock.py", "collector/feed.py"),
        *("collector/health.py", "collector/keeper.py", "collector/outputs.py", "collector/verify.py"),
        *(str(path.relative_to(ROOT / "services")) for path in (ROOT / "services/collector/exchanges").glob("*.py")),
        *(
            "detector/edge.py",
            "detector/engine.py",
            "detector/lifecycle.py",
            "detector/verdict.py",
            "detector/books.py",
        ),
        *("detector/context.py", "detector/evaluate.py", "decider/rules.py", "decider/scoring.py", "decider/budget.py"),
        *("decider/prompt.py", "decider/offsets.py", "simulator/market.py", "simulator/truth.py", "cli/board.py"),
        *("cli/doctor/kafka.py", "cli/doctor/outside.py", "cli/doctor/here.py", "cli/dlq/letters.py"),
    ]
    for name in cores:
        assert not imports(ROOT / "services" / name) & {"time", "asyncio", "socket"}, name
