"""The weights file: what is read is what was written, damage is one line, and calibration never falls."""

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.errors import SettingsError
from shared.weights import MIN_OUTCOMES, Entry, Weights, load, weight_of


def entry(**changes) -> Entry:
    values = {
        "role": "risk",
        "model": "gemini-x",
        "prompt_version": "risk-2",
        "n": 250,
        "base_rate": 0.4,
        "brier": 0.18,
        "bss": 0.25,
        "weight": 0.138889,
        "calibration": [(0.2, 0.1), (0.6, 0.5), (0.8, 0.5), (0.9, 0.7)],
    }
    return Entry(**(values | changes))


def weights(*entries: Entry, **changes) -> Weights:
    values = {"horizon_ms": 1000, "since_ns": 1, "until_ns": 2, "made_ns": 3, "entries": list(entries or [entry()])}
    return Weights(**(values | changes))


curves = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=12).map(
    lambda points: list(zip(sorted({p for p, _ in points}), sorted(c for _, c in points), strict=False))
)


@pytest.mark.parametrize(
    ("p", "calibrated"),
    [
        (0.0, 0.1),  # level beyond the ends
        (0.2, 0.1),
        (0.4, 0.3),  # half-way from 0.1 to 0.5
        (0.6, 0.5),
        (0.7, 0.5),
        (0.85, 0.6),
        (0.9, 0.7),
        (1.0, 0.7),
        (float("nan"), 0.0),
        (float("inf"), 0.7),
    ],
)
def test_calibration_by_hand(p, calibrated):
    assert entry().calibrated(p) == pytest.approx(calibrated)


def test_without_points_a_probability_means_itself():
    plain = entry(calibration=[])
    assert [plain.calibrated(p) for p in (-1.0, 0.0, 0.37, 1.0, 2.0)] == [0.0, 0.0, 0.37, 1.0, 1.0]


@given(curves, st.floats(-1, 2), st.floats(-1, 2))
def test_calibration_never_falls_and_stays_a_probability(points, p, q):
    one = entry(calibration=points)
    low, high = one.calibrated(min(p, q)), one.calibrated(max(p, q))
    assert 0 <= low <= high <= 1
    for said, meant in points:
        assert one.calibrated(said) == meant


@given(st.floats(-1e9, 1), st.integers(0, 10**9))
def test_a_weight_is_a_share_that_grows_with_outcomes_and_skill(bss, n):
    weight = weight_of(bss, n)
    assert 0 <= weight <= 1
    assert weight <= weight_of(bss, n + 1)
    assert weight <= weight_of(min(1.0, bss + 0.1), n) or bss <= 0


def test_weights_by_hand():
    assert weight_of(0.25, 200) == 0.125
    assert weight_of(0.25, 600) == pytest.approx(0.1875)
    assert weight_of(-0.1, 10_000) == 0
    assert weight_of(0.5, 0) == 0
    assert MIN_OUTCOMES == 200


def test_an_entry_is_found_by_role_model_and_prompt():
    one, other = entry(), entry(role="sentiment")
    both = weights(one, other)
    assert both.of("risk", "gemini-x", "risk-2") is one
    assert both.of("sentiment", "gemini-x", "risk-2") is other
    assert both.of("risk", "gemini-x", "risk-3") is None
    assert both.of("risk", "other", "risk-2") is None


@given(curves, st.integers(1, 10**6), st.floats(0, 1), st.floats(-1e6, 1))
def test_what_is_read_is_what_was_written(tmp_path_factory, points, n, rate, bss):
    path = tmp_path_factory.mktemp("weights") / "weights.json"
    written = weights(entry(calibration=points, n=n, base_rate=rate, bss=bss))
    written.save(path)
    assert load(path) == written
    assert load(path).digest() == written.digest()


def test_the_digest_is_of_what_decides_and_not_of_when():
    one, other = entry(), entry(model="other")
    first = weights(one, other)
    assert first.digest() == weights(other, one, made_ns=99, since_ns=0, until_ns=50).digest()
    assert len(first.digest()) == 12
    changed = [
        weights(one),
        weights(one, other, horizon_ms=500),
        weights(one, entry(model="other", weight=0.2)),
        weights(one, entry(model="other", n=199)),
        weights(one, entry(model="other", calibration=[(0.2, 0.1)])),
    ]
    assert len({first.digest(), *(found.digest() for found in changed)}) == 6


def test_saving_replaces_whole_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "weights.json"
    path.write_text("old")
    weights().save(path)
    assert os.listdir(tmp_path) == ["weights.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert load(path) == weights()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "weights.json"
    weights().save(path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        weights(entry(n=999)).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["weights.json"]


def damaged(change) -> bytes:
    value = json.loads(weights().model_dump_json())
    change(value)
    return json.dumps(value).encode()


def at(name, value):
    return damaged(lambda whole: whole.update({name: value}))


def in_entry(name, value):
    return damaged(lambda whole: whole["entries"][0].update({name: value}))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Invalid JSON"),
        (b"[]", "should be an object"),
        (b"\xff\xfe", "Invalid JSON"),
        (weights().model_dump_json().encode()[:-5], "Invalid JSON"),
        (at("version", 2), "version: Input should be 1"),
        (at("label_version", 2), "label_version: Input should be 1"),
        (at("since_ns", 7), "since_ns is after until_ns"),
        (at("since_ns", -7), "since_ns: "),
        (at("horizon_ms", 0), "horizon_ms: "),
        (at("extra", 1), "extra: Extra inputs"),
        (damaged(lambda whole: whole.pop("entries")), "entries: Field required"),
        (damaged(lambda whole: whole["entries"].append(whole["entries"][0])), "risk, gemini-x, risk-2 stands twice"),
        (in_entry("weight", float("nan")), "entries.0.weight: "),
        (in_entry("bss", float("-inf")), "entries.0.bss: "),
        (in_entry("weight", 1.5), "entries.0.weight: "),
        (in_entry("weight", "0.5"), "entries.0.weight: "),
        (in_entry("role", "oracle"), "entries.0.role: "),
        (in_entry("n", 0), "entries.0.n: "),
        (in_entry("calibration", [[0.2, 0.5], [0.3, 0.4]]), "entries.0: calibration is not monotone after 0.2"),
        (in_entry("calibration", [[0.2, 0.5], [0.2, 0.6]]), "entries.0: calibration is not monotone after 0.2"),
        (in_entry("calibration", [[0.2, 1.5]]), "entries.0.calibration.0.1: "),
        (in_entry("calibration", [[0.2, float("inf")]]), "entries.0.calibration.0.1: "),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, content, words):
    path = tmp_path / "weights.json"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.data())
def test_no_damage_gets_anything_else_than_a_valid_file_or_a_settings_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("weights") / "weights.json"
    content = bytearray(weights().model_dump_json().encode())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        found = load(path)
    except SettingsError:
        return
    for p in (0.0, 0.3, 1.0):
        assert 0 <= found.entries[0].calibrated(p) <= 1 if found.entries else True


def test_a_file_that_is_not_there_is_one_line():
    with pytest.raises(SettingsError, match=r"weights file nowhere/weights\.json: No such file"):
        load(Path("nowhere/weights.json"))


def test_nothing_impossible_can_be_built():
    for change in ({"weight": -0.1}, {"calibration": [(0.5, 0.5), (0.4, 0.6)]}, {"base_rate": 2.0}, {"model": ""}):
        with pytest.raises(ValidationError):
            entry(**change)
