"""What outcomes say of the models: weight and calibration by role, model and prompt, in a JSON file.

`arb scorecard --save` writes it, the decider follows it (`decider.weights_file`). Pure but for `load` and `save`.
"""

import bisect
import hashlib
import math
import os
import re
import tempfile
from pathlib import Path
from typing import Annotated, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.errors import SettingsError
from shared.messages import Nanoseconds, Role

VERSION: Literal[1] = 1
"""Of the file's layout: another one is refused."""

LABEL_VERSION: Literal[1] = 1
"""Of what counts as 1: executable with a net edge above 0 at the horizon. Weights of other labels are refused."""

MIN_OUTCOMES = 200
"""With fewer answers whose outcome is known, a model keeps its configured weight and is not calibrated."""

Probability = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class Entry(_Part):
    """One model in one role with one version of its prompt.

    Attributes:
        n: Answers whose outcome is known.
        base_rate: Share of them that still paid at the horizon.
        brier: Mean of `(p - y)²` of the answers as given: 0 is perfect, 0.25 is always saying a half.
        bss: `1 - brier / brier of always saying the base rate`, 0 where that is 0: above 0 it knows something.
        weight: `weight_of(bss, n)`.
        calibration: (what was said, what it has meant), both in [0, 1]: the first strictly increasing, the second never
            falling. Empty: as it was said.
    """

    role: Role
    model: Name
    prompt_version: Name
    n: int = Field(ge=1)
    base_rate: Probability
    brier: Probability
    bss: float = Field(le=1)
    weight: Probability
    calibration: list[tuple[Probability, Probability]]

    @model_validator(mode="after")
    def _monotone(self) -> Self:
        for (p, calibrated), (next_p, next_calibrated) in zip(self.calibration, self.calibration[1:], strict=False):
            if next_p <= p or next_calibrated < calibrated:
                raise ValueError(f"calibration is not monotone after {p:g}")
        return self

    @property
    def key(self) -> tuple[Role, str, str]:
        return self.role, self.model, self.prompt_version

    def calibrated(self, p: float) -> float:
        """What a probability of this model has meant: straight lines between the points, level beyond the ends.

        Never falls as `p` rises, and stays in [0, 1] whatever `p` is. NaN says nothing: 0.
        """
        if math.isnan(p):
            return 0.0
        points = self.calibration
        if not points:
            return min(1.0, max(0.0, p))
        after = bisect.bisect_right(points, p, key=lambda point: point[0])
        if after == 0:
            return points[0][1]
        if after == len(points):
            return points[-1][1]
        (p0, low), (p1, high) = points[after - 1], points[after]
        # Clamped: rounding may not lead past either end, or the curve would fall where the next line begins.
        return min(high, max(low, low + (high - low) * ((p - p0) / (p1 - p0))))


class Weights(_Part):
    """All entries of one scorecard.

    Attributes:
        horizon_ms: After the opening: the moment at which an edge had to be there still.
        since_ns, until_ns: First and last decision that an entry rests on.
        made_ns: When it was computed.
    """

    version: Literal[1] = VERSION
    label_version: Literal[1] = LABEL_VERSION
    horizon_ms: int = Field(ge=1)
    since_ns: Nanoseconds
    until_ns: Nanoseconds
    made_ns: Nanoseconds
    entries: list[Entry]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        keys = [entry.key for entry in self.entries]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"entries: {', '.join(key)} stands twice")
        if self.since_ns > self.until_ns:
            raise ValueError("since_ns is after until_ns")
        return self

    def of(self, role: str, model: str, prompt_version: str) -> Entry | None:
        """The entry of a model in a role with a prompt; None: nothing is known of it."""
        key = (role, model, prompt_version)
        return next((entry for entry in self.entries if entry.key == key), None)

    def digest(self) -> str:
        """12 hex digits of what decisions rest on: the entries in any order, the horizon, the label; not when made."""
        entries = sorted((entry.model_dump() for entry in self.entries), key=orjson.dumps)
        parts = [self.version, self.label_version, self.horizon_ms, entries]
        return hashlib.sha256(orjson.dumps(parts)).hexdigest()[:12]

    def save(self, path: Path) -> None:
        """Write the file whole or not at all: a reader finds the old one or the new one.

        Raises:
            OSError: it cannot be written; what was there is still there.
        """
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(self.model_dump_json(indent=2).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)  # mkstemp's own mode lets nobody else read it: the decider may run as another user
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise


def weight_of(bss: float, n: int) -> float:
    """What a model weighs in the pool: its skill, held back while there are few outcomes. In [0, 1).

    `clamp(bss, 0, 1) * n / (n + 200)`: half of the skill at 200 outcomes.
    """
    return min(1.0, max(0.0, bss)) * n / (n + MIN_OUTCOMES)


def load(path: Path) -> Weights:
    """The weights of a file.

    Raises:
        SettingsError: one line: it cannot be read, is damaged or of another version, or holds what cannot be (not
            finite, outside its range, a calibration that falls, an entry twice).
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"weights file {path}: {error.strerror or error}") from None
    try:
        return Weights.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        words = re.sub(r"^Value error, ", "", first["msg"])
        raise SettingsError(
            f"weights file {path}: {f'{where}: ' if where else ''}{words}; `arb scorecard --save` writes a new one"
        ) from None
