"""Documents that must say what the code does."""

import re
from pathlib import Path

from services.decider import judge, rules, scoring
from shared import settings
from shared.messages import Reason

ROOT = Path(__file__).parents[2]


def section(title: str) -> dict[str, str]:
    """First column to last column of the table under a heading of docs/reasons.md."""
    text = (ROOT / "docs" / "reasons.md").read_text().split(f"## {title}")[1].split("\n## ")[0]
    rows = [re.split(r"\s*\|\s*", line)[1:-1] for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[-1] for row in rows}


def test_every_reason_is_explained_and_none_is_made_up():
    assert set(section("Rejections")) == {reason.value for reason in Reason}
    assert set(section("Rules of the decider")) == {code.value for code in rules.Code}
    reasons = {why.value for why in scoring.Why} | {reason.value for reason in judge.Reason}
    assert set(section("Decisions")) == reasons


def test_every_setting_that_a_reason_names_exists():
    loaded = settings.load()
    for table in ("Rejections", "Rules of the decider"):
        for name in re.findall(r"`([\w.*]+)`", " ".join(section(table).values())):
            part, *rest = name.split(".")
            value = getattr(loaded, part)
            for key in rest:
                value = next(iter(value.values())) if key == "*" else getattr(value, key)


def test_the_readme_has_two_commands_to_start_and_a_subscriber_of_less_than_ten_lines():
    text = (ROOT / "README.md").read_text()
    assert re.findall(r"^    (make \w+)", text, re.MULTILINE) == ["make demo", "make test"]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) < 10
    assert "async for decision in decisions(" in code


def test_what_documents_link_to_exists():
    for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name} links to {target}"
