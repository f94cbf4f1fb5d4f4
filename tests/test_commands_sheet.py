"""A sample sheet: slides of several formats in one command."""

import pandas as pd
import pyarrow.parquet as pq
import pytest
from layouts import make_source, write_10x_h5, write_outs
from PIL import Image

from delst_hf.cli import main
from delst_hf.commands.sheet import named_sheet


def write_sheet(folder, rows, name="sheet.csv"):
    pd.DataFrame(rows).to_csv(folder / name, index=False)
    return folder / name


@pytest.fixture
def study(tmp_path):
    """A Visium run and a table, with a sheet of both."""
    first, second = make_source(0), make_source(1)
    write_outs(tmp_path / "V1" / "outs", first)
    Image.fromarray(second.pixels).save(tmp_path / "he.png")
    write_10x_h5(tmp_path / "t.h5", second)
    second.spots.assign(region=["1.0", "NA"] + ["tumour "] * 10).to_csv(tmp_path / "t.csv", index_label="barcode")
    rows = [
        {"path": "V1/outs", "format": "visium", "image": "", "patient": "007", "slide": "", "labels": "", "coordinates": "",
         "mpp": ""},
        {"path": "t.h5", "format": "table", "image": "he.png", "patient": "1e5", "slide": "T", "labels": "region",
         "coordinates": "t.csv", "mpp": "5"},
    ]  # fmt: skip
    return tmp_path, rows, (first, second)


def test_a_sheet_makes_one_dataset_of_many_slides(study, capsys):
    folder, rows, sources = study
    sheet = write_sheet(folder, rows)
    assert (
        main(
            ["prepare", str(sheet), "--output", str(folder / "out"), "--patch-um", "60", "--patch-px", "32", "--quiet"]
        )
        == 0
    )
    slides = pq.read_table(folder / "out/slides/slides.parquet").to_pylist()
    assert [(row["slide_id"], row["patient_id"]) for row in slides] == [("V1", "007"), ("T", "1e5")]
    spots = pq.read_table(folder / "out/spots/T.parquet")
    assert spots["label"].to_pylist() == ["1", None, *["tumour"] * 10]
    for name, source in zip(("V1", "T"), sources, strict=True):
        table = pq.read_table(folder / f"out/spots/{name}.parquet")
        assert sum(table["total_counts"].to_pylist()) == source.counts.sum()
    lines = capsys.readouterr().out.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("slide  ")) :]
    assert table[1].split()[:4] == ["V1", "12", "of", "14"] and "2 not in_tissue" in table[1]
    assert table[2].split()[:4] == ["T", "12", "of", "12"] and "2, 1 spots without" in table[2]


@pytest.mark.parametrize(("change", "match"), [
    ({"format": "visum"}, "sheet.csv, line 3: format is 'visum'. Allowed: visium"),
    ({"pacient": "P1"}, "line 3: .*no option for the column 'pacient'. Did you mean 'patient'"),
    ({"colour": "red"}, "line 3: the format table has no option for the column 'colour'. It has: .*--barcode-column"),
    ({"mpp": "wide"}, "line 3: argument --mpp: invalid float value: 'wide'"),
    ({"image": ""}, "line 3: the following arguments are required: --image"),
    ({"coordinates": "nope.csv"}, "line 3: no file at nope.csv"),
    ({"path": "S2.ZIP"}, r"line 3: .*S2.ZIP is packed. Unpack it \(unzip .*\), and give what it holds."),
    ({"slide": "v1"}, "'v1' of .* and 'V1' of .*differ only in case"),
])  # fmt: skip
def test_a_wrong_row_is_named_before_anything_is_read(study, capsys, change, match):
    folder, rows, _ = study
    rows[0] |= dict.fromkeys(set(change) - set(rows[0]), "")
    (folder / "S2.ZIP").touch()
    sheet = write_sheet(folder, [rows[0], rows[1] | change])
    assert main(["prepare", str(sheet), "--output", str(folder / "out")]) == 2
    error = capsys.readouterr().err
    import re

    assert re.search(match, error), error
    assert not (folder / "out").exists()


def test_a_path_from_home_is_that_of_home(study, monkeypatch, capsys):
    folder, rows, _ = study
    monkeypatch.setenv("HOME", str(folder))
    (folder / "sheets").mkdir()
    sheet = write_sheet(folder / "sheets", [rows[0] | {"path": "~/V1/outs", "format": "Visium"}])
    assert main(["prepare", str(sheet), "--output", str(folder / "out"), "--patch-px", "32", "--quiet"]) == 0


def test_a_sheet_without_its_columns_says_which(tmp_path, capsys):
    sheet = write_sheet(tmp_path, [{"file": "x"}])
    assert main(["prepare", str(sheet), "--output", str(tmp_path / "out")]) == 2
    assert "has no column format and path; its columns are ['file']" in capsys.readouterr().err


def test_only_a_table_in_the_place_of_a_format_is_a_sheet():
    assert named_sheet(["--debug", "prepare", "S.csv", "--output", "o"]) == [
        "--debug",
        "prepare",
        "sheet",
        "S.csv",
        "--output",
        "o",
    ]
    for argv in (["prepare", "visium", "x"], ["evaluate", "prepare", "S.csv"], ["prepare", "--help"], ["prepare"]):
        assert named_sheet(argv) == argv
