"""Is there a known vulnerability in one of the pinned packages? Asks by pip-audit, in an environment of its own.

    python -m tools.audit [--service pypi|osv] [--sbom FILE] [REQUIREMENTS ...]

Exit 0: none is known of any package. 1: some are, and are listed. 3: the service was not reached or does not know some
package: then nothing is known of it, though pip-audit itself ends with 0.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import other_env

PIP_AUDIT = "pip-audit>=2.10,<3"
REQUIREMENTS = (Path("requirements/runtime.txt"), Path("requirements/dev.txt"))
ASK_S = 600


class NotAsked(Exception):
    """The service, or pip-audit itself, cannot be had; the text says why."""


def ask(file: Path, service: str, sbom: Path | None) -> list[dict[str, Any]]:
    """What the service says of each package of a file; writes a bill of materials (CycloneDX) where one is wanted.

    Raises:
        NotAsked: it did not answer.
    """
    try:
        python = other_env.prepare("pip-audit", [PIP_AUDIT])
    except RuntimeError as error:
        raise NotAsked(f"pip-audit cannot be installed: {error}") from None
    # All is pinned with hashes: nothing is resolved or downloaded.
    command = [str(python), "-m", "pip_audit", "--requirement", str(file), "--disable-pip", "--require-hashes"]
    command += ["--vulnerability-service", service, "--progress-spinner", "off"]
    if sbom is not None:
        subprocess.run([*command, "--format", "cyclonedx-json", "--output", str(sbom)], check=False, timeout=ASK_S)
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=False, timeout=ASK_S)
    try:
        return list(json.loads(done.stdout)["dependencies"])
    except (ValueError, KeyError):
        said = done.stderr.strip().splitlines()
        raise NotAsked(f"{service}: {said[-1] if said else 'no answer'}") from None


def judge(found: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """The exit code, and what to say of one file."""
    bad = [one for one in found if one.get("vulns")]
    unknown = sorted(one["name"] for one in found if "skip_reason" in one)
    lines = [
        f"{one['name']} {one['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for one in bad
        for flaw in one["vulns"]
    ]
    if unknown:
        some = ", ".join(unknown[:5]) + (" ..." if len(unknown) > 5 else "")
        lines.append(f"of {len(unknown)} of {len(found)} packages the service knows nothing: {some}")
    if bad:
        return 1, lines
    if unknown or not found:
        return 3, lines or ["it names no package"]
    return 0, [f"{len(found)} packages, no known vulnerability"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Known vulnerabilities of the pinned packages.")
    parser.add_argument("files", nargs="*", type=Path, default=REQUIREMENTS, metavar="REQUIREMENTS")
    parser.add_argument("--service", choices=["pypi", "osv"], default="pypi", help="whom to ask; default: pypi")
    parser.add_argument("--sbom", type=Path, help="write a bill of materials of the first file (CycloneDX, JSON)")
    arguments = parser.parse_args()
    codes = []
    for number, file in enumerate(arguments.files):
        try:
            code, lines = judge(ask(file, arguments.service, arguments.sbom if number == 0 else None))
        except NotAsked as error:
            code, lines = 3, [str(error)]
        codes.append(code)
        for line in lines:
            print(f"audit: {file}: {line}", file=sys.stderr if code else sys.stdout)
    return 1 if 1 in codes else max(codes)


if __name__ == "__main__":
    sys.exit(main())
