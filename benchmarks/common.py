"""What benchmarks need: the machine in words, a table, a JSON file, the memory of a process."""

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") / 1024


def machine() -> str:
    """Processor, cores and Python of this run."""
    model = "unknown processor"
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        model = platform.processor() or model
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def report(name: str, title: str, rows: list[dict[str, Any]]) -> None:
    """Print a table and write benchmarks/results/NAME.json."""
    table = Table(title=f"{title}\n{machine()}", title_justify="left")
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="right" if column != next(iter(rows[0])) else "left")
    for row in rows:
        table.add_row(*(f"{value:,.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    document = {
        "machine": machine(),
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "rows": rows,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")


def rss_kib() -> float:
    """Resident memory of this process now."""
    try:
        with open("/proc/self/statm", "rb") as file:  # a Path and its text left a block behind with each look
            return int(file.read().split()[1]) * PAGE_KIB
    except OSError:
        raise RuntimeError("no /proc/self/statm: memory is measured on Linux only") from None
