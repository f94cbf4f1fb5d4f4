"""Values of files as plain Python, whoever wrote them."""

import random

import numpy as np
import pandas as pd
import pytest

from delst_hf.data import values


@pytest.mark.parametrize("wrap", [
    float, str, np.float32, lambda v: np.array([v]), lambda v: np.array([[v]]), lambda v: [v], np.array,
    lambda v: str(v).encode(), lambda v: np.bytes_(str(v)), lambda v: np.array([str(v).encode()], dtype="S9"),
    lambda v: np.array([str(v)], dtype=object), lambda v: f" {v} ",
])  # fmt: skip
def test_a_number_is_read_from_whatever_holds_it(wrap):
    assert values.number(wrap(0.25)) == 0.25
    assert values.positive(wrap(0.25), "factor", "Correct it.") == 0.25


@pytest.mark.parametrize("value", [None, "", "wide", np.nan, np.inf, "inf", [1, 2], {}, np.array([]), pd.NA])
def test_no_number_is_none_and_refused_where_one_is_needed(value):
    assert values.number(value) is None
    with pytest.raises(ValueError, match=r"a.json: factor is .* Allowed: a positive number. Correct it."):
        values.positive(value, "a.json: factor", "Correct it.")


def test_whole_numbers_of_r_are_whole_numbers():
    for kind in (np.float64, np.float32, np.int32, np.uint8, str, object):
        found = values.whole_numbers(np.array([3, 0, 12]).astype(kind), "indptr")
        assert found.dtype == np.int64 and found.tolist() == [3, 0, 12]
    for bad in ([1.5], [np.nan], ["a"], [np.inf]):
        with pytest.raises(ValueError, match="indptr holds .* Allowed: whole numbers"):
            values.whole_numbers(np.array(bad), "indptr")


# Each class in the spellings that integers, floats, booleans, R, pandas and spreadsheets give it.
SPELLINGS = {
    "1": [1, 1.0, np.int8(1), np.float32(1), "1", "1.0", " 1", "1.", "1.00 ", b"1", np.array([1])],
    "100000": [100000, 1e5, "100000", "1e+05", "100000.0"],
    "2.5": [2.5, np.float32(2.5), "2.5", " 2.5 "],
    "True": [True, np.True_, "TRUE", "true", "True "],
    "False": [False, np.False_, "FALSE", "false"],
    "invasive cancer": ["invasive cancer", "invasive  cancer", "invasive cancer ", "\tinvasive\u00a0cancer\n"],
    "Übergang": ["Übergang", "U\u0308bergang "],
    "tumour": ["tumour", "b'tumour'", 'b"tumour"', "'tumour'", '"tumour "', b"tumour"],
    "007": ["007", " 007"],
    "1e5": ["1e5"],
    None: [None, np.nan, pd.NA, pd.NaT, "", "  ", "NA", "nan", "NaN", "None", "none", "<NA>", "null", "N/A", "#N/A", b"NA"],
}  # fmt: skip


@pytest.mark.parametrize("clean", SPELLINGS, ids=str)
def test_every_spelling_of_a_label_is_one_class(clean):
    assert [values.label(spelling) for spelling in SPELLINGS[clean]] == [clean] * len(SPELLINGS[clean])


def test_columns_of_random_spellings_have_the_classes_that_were_meant():
    """Random columns, of random types, over many seeds: the classes are those drawn, in order."""
    for seed in range(200):
        rng = random.Random(seed)
        drawn = [rng.choice(list(SPELLINGS)) for _ in range(rng.randint(1, 40))]
        written = [rng.choice(SPELLINGS[clean]) for clean in drawn]
        assert values.labels(written) == drawn
        # A label that was cleaned once stays: merging datasets changes nothing.
        assert values.labels(values.labels(written)) == drawn


@pytest.mark.parametrize("kind", ["int", "float", "category", "Int64", "string", "object"])
def test_a_column_of_numbers_has_the_same_classes_in_every_type(kind):
    column = pd.Series([0, 1, 2, 1]).astype({"string": "int"}.get(kind, kind))
    assert values.labels(column.astype("string") if kind == "string" else column) == ["0", "1", "2", "1"]


def test_booleans_of_any_type_are_two_classes():
    for column in (
        pd.Series([True, False]),
        pd.array([True, False], "boolean"),
        ["TRUE", "FALSE"],
        np.array([True, False]),
    ):
        assert values.labels(column) == ["True", "False"]
    assert values.labels([True, 1, "True", "1"]) == ["True", "1", "True", "1"]


def test_what_can_be_no_label_is_refused():
    with pytest.raises(ValueError, match=r"label \[1, 2\] is not text. Allowed: text, numbers, booleans"):
        values.labels([[1, 2]])


def test_identifiers_are_text():
    assert values.identifiers(["007", "1e5", "0x1F", "NA", " A-1 "]) == ["007", "1e5", "0x1F", "NA", "A-1"]
    assert (
        values.identifiers([7, 8]) == values.identifiers([7.0, 8.0]) == values.identifiers(["7.0", "8.0"]) == ["7", "8"]
    )
    # Versions are names: only a column of nothing but whole numbers was one of numbers.
    assert values.identifiers(["1.0", "1.1"]) == ["1.0", "1.1"]
    assert values.identifier(np.array([b"P1"])) == "P1" and values.identifier(None) == ""


def test_missing_whole_numbers_have_a_default():
    assert values.whole_or([1.0, None, "3", np.nan, b"4"], -1).tolist() == [1, -1, 3, -1, 4]
