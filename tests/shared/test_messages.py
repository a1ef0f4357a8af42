"""What crosses Kafka: one example of each, stored as it once was, and the fast writers against the models."""

import functools
import math
import types
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal, Union, get_args, get_origin

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from services.cli.schemas import DOCS, documents
from shared import messages
from shared.errors import UndecodableRecord
from shared.messages import MODELS, decode

STORED = Path(__file__).parent / "stored"


@pytest.mark.parametrize("file", sorted(STORED.glob("v*/*.json")), ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_stored_messages_of_every_version_are_still_read(file):
    """A changed meaning is a new version or kind: these files are never edited, only added to."""
    message = decode(file.read_bytes())
    assert message.kind == file.stem
    again = orjson.loads(message.encode())
    for name, value in orjson.loads(file.read_bytes()).items():
        if name != "unknown_field":
            assert _of(again[name], value) == value, name


def _of(found, stored):
    """What is found, without the fields that came later."""
    if isinstance(stored, dict):
        return {name: _of(found[name], value) for name, value in stored.items()}
    if isinstance(stored, list) and isinstance(found, list) and len(found) == len(stored):
        return [_of(one, value) for one, value in zip(found, stored, strict=True)]
    return found


@pytest.mark.parametrize("file", sorted(STORED.glob("v1/*.json")), ids=lambda file: file.stem)
def test_what_is_trusted_is_what_is_checked(file):
    """Unchecked, without the fields that have their defaults, in any order: the same bytes."""
    message = decode(file.read_bytes())
    if not isinstance(message, messages.Message):
        pytest.skip("no model of this base")
    given = {name: getattr(message, name) for name in reversed(type(message).model_fields)}
    fields = type(message).model_fields
    told = {name: value for name, value in given.items() if fields[name].is_required() or value != fields[name].default}
    made = type(message).trusted(**told)
    assert made == message
    assert made.encode() == message.encode()
    assert made.model_copy(update={"v": 1}) == message
    with pytest.raises(ValidationError, match="frozen"):
        made.v = 2
    name = max(name for name, value in given.items() if isinstance(value, str))
    changed, copied = made.changed(**{name: "other"}), made.model_copy(update={name: "other"})
    assert (changed, changed.encode()) == (copied, copied.encode())
    assert getattr(made, name) == given[name]


def test_there_is_a_stored_example_of_every_kind():
    assert {file.stem for file in STORED.glob("v1/*.json")} == set(MODELS)


@pytest.mark.parametrize(
    ("value", "model"),
    [
        (
            messages.book_value("kraken", "BTC-USD", 7, 1, None, [(63004.9, 0.01876947)], [(63005.0, 0.4)]),
            messages.Book,
        ),
        (messages.trade_value("kraken", "BTC-USD", 7, 1, 2, 63005.0, 0.01, None, "4665906"), messages.Trade),
        (messages.health_value("kraken", "BTC-USD", 7, 1, "live", None, 1, 1), messages.Health),
        (messages.rate_value("kraken", "USDT-USD", 7, 1, None, 0.9991, 0.9992, "live"), messages.Rate),
    ],
)
def test_the_fast_writers_write_exactly_what_the_models_say(value, model):
    message = decode(value)
    assert type(message) is model
    assert list(orjson.loads(value)) == list(model.model_fields), "fields in the model's order, none missing"
    assert orjson.loads(message.encode()) == orjson.loads(value)


def _any(annotation):
    """Values of a field's type, the awkward ones among them."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _any(inner[0])
    if origin is Literal:
        return st.sampled_from(inner)
    if origin in (Union, types.UnionType):
        return st.one_of(*(_any(one) for one in inner))
    if origin is list:
        return st.lists(_any(inner[0]), max_size=2)
    if origin is tuple:
        return st.tuples(*(_any(one) for one in inner))
    if issubclass(annotation, BaseModel):
        return _messages(annotation)
    if issubclass(annotation, Enum):
        return st.sampled_from(list(annotation))
    return {
        str: st.text(max_size=8),
        int: st.integers(0, 2**63 - 1),
        bool: st.booleans(),
        float: st.floats(allow_nan=False, allow_infinity=False),
        Decimal: st.decimals(allow_nan=False, allow_infinity=False),
        type(None): st.none(),
    }[annotation]


@functools.cache
def _messages(model):
    """Valid messages of a kind; a field that has a default is left out now and then."""
    fields = model.model_fields.items()
    if model is messages.RoleAnswer:
        return st.builds(
            model,
            p_edge=st.floats(0, 1),
            volatility=st.floats(0, 1),
            **{name: _any(field.annotation) for name, field in fields if name not in ("p_edge", "volatility")},
        )
    return st.fixed_dictionaries(
        {name: _any(field.annotation) for name, field in fields if field.is_required()},
        optional={name: _any(field.annotation) for name, field in fields if not field.is_required()},
    ).map(model.model_validate)


@pytest.mark.parametrize("kind", sorted(MODELS))
@settings(max_examples=30)  # of ten kinds, the large ones out of hundreds of parts
@given(data=st.data())
def test_what_is_encoded_is_what_pydantic_writes(kind, data):
    """Byte for byte: the same record must not be two, by who wrote it."""
    message = data.draw(_messages(MODELS[kind]))
    value = message.encode()
    assert value == message.model_dump_json().encode()
    assert decode(value) == message
    held = {name: getattr(message, name) for name in type(message).model_fields}
    assert type(message).trusted(**held).encode() == value


@pytest.mark.parametrize(
    ("number", "text"),
    [
        ("1E+3", "1000"),
        ("1E-9", "0.000000001"),
        ("-0.0000000", "-0.0000000"),
        ("0E-10", "0.0000000000"),
        ("12.50", "12.50"),
        ("123456789012345678901234567890.1", "123456789012345678901234567890.1"),
    ],
)
def test_money_travels_without_an_exponent(number, text):
    panel = messages.Panel(version="a", deadline_ms=1, elapsed_ms=1, cost_usd=Decimal(number))
    assert orjson.loads(panel.encode())["cost_usd"] == text == format(Decimal(number), "f")


def test_integers_of_any_size_and_text_that_is_none_go_the_way_of_pydantic():
    leg = {"vwap": None, "limit": None, "fee_bps": None, "alive_age_ms": 1, "book_age_ms": 1, "bids": [], "asks": []}
    large = messages.Leg(exchange="kraken", symbol="BTC-USD", levels=10**30, **leg)
    assert orjson.loads(large.encode().replace(b"1" + b"0" * 30, b"7"))["levels"] == 7
    with pytest.raises(ValueError, match="surrogates"):
        messages.Leg.trusted(exchange="\ud800", symbol="BTC-USD", levels=1, **leg).encode()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "empty record"),
        (b"", "empty record"),
        (b"{", "Invalid JSON"),
        (b"[]", "should be an object"),
        (b'{"kind":"gossip"}', "'gossip'"),
        (b'{"kind":"health","v":2}', "v"),
        (b'{"kind":"rate","exchange":"kraken"}', "rate.symbol: Field required"),
        (
            b'{"kind":"book","exchange":"k","symbol":"s","sequence":1,"received_ns":-1,"exchange_ns":null,"bids":[],"asks":[]}',
            "received_ns",
        ),
        (
            b'{"kind":"rate","exchange":"k","symbol":"s","sequence":1,"received_ns":1,"exchange_ns":null,"bid":1e999,"ask":1,"state":"live"}',
            "bid",
        ),
    ],
)
def test_what_is_no_message_is_named(value, words):
    with pytest.raises(UndecodableRecord, match=words):
        decode(value)


def test_floats_keep_the_digits_of_the_wire():
    value = messages.book_value("k", "s", 1, 1, None, [(0.1, 1e-08)], [(63005.0, math.pi)])
    assert decode(value).bids == [(0.1, 1e-08)]


def test_the_committed_schemas_are_what_the_models_say():
    """`make schemas` writes them anew."""
    wanted = documents()
    assert {name: (DOCS / name).read_bytes() for name in wanted} == wanted
    assert {f"schemas/{file.name}" for file in (DOCS / "schemas").iterdir()} == {
        n for n in wanted if n.startswith("schemas/")
    }
