"""The table of metrics in docs/monitoring.md, made of shared/metrics.py: `python tools/metric_table.py` writes it, a
test compares.
"""

import re
from pathlib import Path

from shared import metrics

PAGE = Path(__file__).resolve().parents[1] / "docs" / "monitoring.md"
BEGIN, END = "<!-- metrics: made by tools/metric_table.py -->\n", "<!-- end of metrics -->\n"


def exported() -> dict[str, list[tuple[str, str, tuple[str, ...], str]]]:
    """Heading in the module -> (name, kind, labels, meaning) of each metric, in its order."""
    found: dict[str, list[tuple[str, str, tuple[str, ...], str]]] = {}
    heading = ""
    for line in Path(metrics.__file__).read_text().splitlines():
        if line.startswith("# "):
            heading = line.removeprefix("# ")
        elif match := re.match(r"([A-Z_0-9]+) = (Counter|Gauge|Histogram)\(", line):
            metric = getattr(metrics, match[1])
            family = metric.describe()[0]
            name = f"{family.name}_total" if family.type == "counter" else family.name
            found.setdefault(heading, []).append((name, family.type, metric._labelnames, family.documentation))
    return found


def table() -> str:
    """In Markdown."""
    text = ""
    for heading, rows in exported().items():
        text += f"\n### {heading}\n\n| metric | kind | labels | meaning |\n|---|---|---|---|\n"
        for name, kind, labels, meaning in rows:
            text += f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {meaning} |\n"
    return f"{text}\n"


def main() -> None:
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
