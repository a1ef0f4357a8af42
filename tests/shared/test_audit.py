"""What `make audit` makes of pip-audit's answers: silence is not innocence."""

import pytest

from tools.audit import judge

GOOD = {"name": "orjson", "version": "3.11.4", "vulns": []}
BAD = {"name": "idna", "version": "3.6", "vulns": [{"id": "PYSEC-2024-60", "fix_versions": ["3.7"]}]}
SKIPPED = {"name": "anyio", "skip_reason": "Dependency not found on PyPI and could not be audited: anyio (4.9)"}


@pytest.mark.parametrize(
    ("found", "code", "line"),
    [
        ([GOOD, GOOD], 0, "2 packages, no known vulnerability"),
        ([GOOD, BAD], 1, "idna 3.6: PYSEC-2024-60, mended in 3.7"),
        ([GOOD, SKIPPED], 3, "of 1 of 2 packages the service knows nothing: anyio"),
        ([BAD, SKIPPED], 1, "idna 3.6: PYSEC-2024-60, mended in 3.7"),
        ([], 3, "it names no package"),
    ],
)
def test_the_exit_code_says_what_is_known(found, code, line):
    said, lines = judge(found)
    assert (said, lines[0]) == (code, line)
