import json
from pathlib import Path

import pytest

from lighttoken import LighttokenError, load_table
from lighttoken.artifact.description import MAX_JSON, MAX_ROWS, check_description, check_version, read_json, refusing
from lighttoken.artifact.forms import make_form

SAMPLES = Path(__file__).parents[1] / "samples" / "format_4"


@pytest.fixture
def description():
    return load_table(SAMPLES / "trellis").describe()


@pytest.mark.parametrize("version", [None, True, 5.0, "5", [5]])
def test_a_version_that_is_no_integer_is_refused(version):
    with pytest.raises(ValueError, match="format_version is .* instead of an integer"):
        check_version("it", version)


def test_a_version_that_is_not_read_names_the_cure():
    with pytest.raises(
        LighttokenError, match="it has format version 8, this lighttoken reads 4 to 7; update lighttoken"
    ):
        check_version("it", 8)
    with pytest.raises(LighttokenError, match="version -1.*; compress the table again"):
        check_version("it", -1)


@pytest.mark.parametrize(
    "shape",
    [None, [], {}, [600], [600, 16, 1], [0, 16], [-1, 16], [True, 16], [600.0, 16], ["600", 16], [MAX_ROWS + 1, 1]],
)
def test_a_shape_that_no_table_has_is_refused(description, shape):
    with pytest.raises(ValueError, match="shape is .* instead of rows and columns, each from 1 to 4194304"):
        check_description("it", description | {"shape": shape}, ())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("codec", None),
        ("codec", 1),
        ("form", []),
        ("source_sha256", {}),
        ("settings", None),
        ("summary", []),
        ("versions", {"torch": 2}),
        ("settings", {"importance": 3}),
        ("settings", {"rank": float("nan")}),
        ("settings", {"deep": [{"rank": float("inf")}]}),
        ("settings", {"seed": 10**30}),
        ("settings", {"name": "\ud800"}),
        ("summary", {"nmse": "small"}),
        ("summary", {"nmse": True}),
        ("summary", {"tier_rows": 3, "tier_bits": [1]}),
        ("summary", {"tier_rows": [600], "tier_bits": []}),
        ("summary", {"tier_rows": [1.5], "tier_bits": [2]}),
    ],
)
def test_a_value_that_no_description_has_is_refused(description, key, value):
    check_description("it", description, ())
    with pytest.raises(ValueError, match="instead of|surrogates not allowed"):
        check_description("it", description | {key: value}, ())
    with pytest.raises(ValueError, match=key):
        check_description("it", {name: old for name, old in description.items() if name != key}, ())


@pytest.mark.parametrize(
    "form",
    [{}, {"name": []}, {"name": "zip"}, {"name": "bits", "state_bits": 1}, {"name": "trellis"}]
    + [{"name": "trellis", "state_bits": bits} for bits in (True, 6.0, None, "6")],
)
def test_a_form_that_is_none_is_refused(form):
    with pytest.raises(ValueError, match="form"):
        make_form(form)


def test_a_json_that_is_too_large_or_no_object_is_not_read(tmp_path):
    path = tmp_path / "it.json"
    path.write_text(json.dumps({"a": 1}))
    assert read_json(path) == {"a": 1}
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"it holds \[1\] instead of an object"):
        read_json(path)
    path.write_text(" " * (MAX_JSON + 1))
    with pytest.raises(ValueError, match="it has 3000001 bytes instead of at most 3000000"):
        read_json(path)


@pytest.mark.parametrize(
    "error", [KeyError("a\nb"), TypeError("x" * 999), IndexError(), OverflowError("1"), RecursionError("deep")]
)
def test_whatever_reading_raises_becomes_one_line(error):
    with pytest.raises(LighttokenError, match="it is damaged .*; make it again") as caught, refusing("it is damaged"):
        raise error
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 200
    assert type(error).__name__ in str(caught.value)
