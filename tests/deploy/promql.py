"""What a PromQL expression asks for: every metric with its labels, and the labels that it groups by. Not a checker of
the language (promtool is), but strict: what it does not know is an error, never left out.
"""

import re
from dataclasses import dataclass, field

FUNCTIONS = {
    *("abs", "absent", "avg_over_time", "changes", "histogram_quantile", "increase", "label_replace", "max_over_time"),
    *("min_over_time", "predict_linear", "rate", "scalar", "sort_desc", "time", "vector"),
}
AGGREGATIONS = {"sum", "min", "max", "avg", "count"}
GROUPINGS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}

TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
      | (?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`[^`]*`)
      | (?P<window>\[[^\]]*\])
      | (?P<number>(?:\d+(?:ms|[smhdwy]))+|\d+(?:\.\d+)?(?:e[+-]?\d+)?)
      | (?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
      | (?P<sign>=~|!~|!=|==|>=|<=|[-+*/%^<>=@(){},])""",
    re.VERBOSE,
)


class Unknown(Exception):
    """Something in the expression that this does not know."""


@dataclass
class Asked:
    """One metric as an expression names it."""

    metric: str
    labels: dict[str, str] = field(default_factory=dict)
    place: int = 0


@dataclass
class Grouping:
    """Labels after by, on and the like. `over`: places of the metrics that they are taken from; None: of all."""

    word: str
    labels: list[str]
    over: tuple[int, int] | None


@dataclass
class Expression:
    metrics: list[Asked] = field(default_factory=list)
    groupings: list[Grouping] = field(default_factory=list)


def tokens(text: str) -> list[tuple[str, str]]:
    """(kind, text) without spaces and comments."""
    found, place = [], 0
    while place < len(text):
        match = TOKEN.match(text, place)
        if match is None:
            raise Unknown(f"{text[place : place + 20]!r} in {text!r}")
        if match.lastgroup != "space":
            found.append((match.lastgroup or "", match[0]))
        place = match.end()
    return found


def read(text: str) -> Expression:
    """Everything that the expression asks for."""
    line = tokens(text)
    found = Expression()
    place = 0

    def follows(at: int, sign: str) -> bool:
        return at < len(line) and line[at] == ("sign", sign)

    def closing(at: int) -> int:
        """Where the bracket that opens at `at` ends."""
        depth = 0
        for end in range(at, len(line)):
            depth += line[end][1] in ("(", "{") and line[end][0] == "sign"
            depth -= line[end][1] in (")", "}") and line[end][0] == "sign"
            if depth == 0:
                return end
        raise Unknown(f"a bracket that does not end: {text!r}")

    def names(at: int) -> tuple[list[str], int]:
        """Labels in brackets, and what comes after."""
        end = closing(at)
        return [word for kind, word in line[at:end] if kind == "name"], end + 1

    while place < len(line):
        kind, word = line[place]
        if kind == "sign" and word == "{":
            raise Unknown(f"a selector without a name: {text!r}")
        if kind != "name":
            place += 1
        elif word in AGGREGATIONS:
            if place + 1 < len(line) and line[place + 1][1] in ("by", "without"):
                labels, body = names(place + 2)
                if not follows(body, "("):
                    raise Unknown(f"{word} of nothing: {text!r}")
                found.groupings.append(Grouping(line[place + 1][1], labels, (body, closing(body))))
                place = body
            elif follows(place + 1, "("):
                after = closing(place + 1) + 1
                if after < len(line) and line[after][1] in ("by", "without"):
                    raise Unknown(f"write `{word} by (...) (...)`: {text!r}")
                place += 1
            else:
                raise Unknown(f"{word} of nothing: {text!r}")
        elif word in GROUPINGS:
            labels, place = names(place + 1)
            found.groupings.append(Grouping(word, labels, None))
        elif word.lower() in WORDS:
            place += 1
        elif follows(place + 1, "("):
            if word not in FUNCTIONS:
                raise Unknown(f"function {word}: {text!r}")
            place += 1
        else:
            asked = Asked(word, place=place)
            found.metrics.append(asked)
            place += 1
            if follows(place, "{"):
                end = closing(place)
                inside = line[place + 1 : end]
                for at in range(0, len(inside), 4):
                    (of, label), (_, _), (string, value), *comma = inside[at : at + 4]
                    if of != "name" or string != "string" or comma not in ([], [("sign", ",")]):
                        raise Unknown(f"a selector: {text!r}")
                    asked.labels[label] = value[1:-1]
                place = end + 1
    return found
