"""`delst check`: what it prints, that it writes nothing but the picture it was asked for, and its refusals."""

import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from layouts import make_source, write_outs
from PIL import Image

from delst_hf.cli import main


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def run(capsys, *argv):
    code = main(["check", *map(str, argv)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def line(page, name):
    return [one[9:] for one in page.splitlines() if one.startswith(f"{name:<9}")]


def test_a_slide_is_told_and_nothing_is_written(here, capsys):
    write_outs(here / "S1" / "outs", make_source())
    before = files(here)
    code, page, _ = run(capsys, "S1")
    assert code == 0 and files(here) == before
    assert line(page, "command") == ["delst prepare visium S1 --output DIR"]
    assert line(page, "slide") == ["S1 (patient S1)"]
    assert line(page, "image")[0].startswith("200 x 150 px")
    assert line(page, "scale")[0].startswith("10.0000 um per px")
    assert line(page, "spots")[0].startswith("12 of 55 um")
    assert line(page, "labels") == ["(none) 12"]
    assert "1 slide, 0 refused; nothing was prepared" in page


def test_options_of_the_format_wherever_they_stand(here, capsys):
    source = make_source()
    write_outs(here / "S1" / "outs", source)
    Image.fromarray(source.pixels).save("he.png")
    for argv in (
        ["S1", "--image", "he.png"],
        ["--image", "he.png", "S1"],
        ["--format", "visium", "S1", "--image", "he.png"],
    ):
        code, page, _ = run(capsys, *argv, "--tissue", "breast", "--patch-px", "32")
        assert code == 0 and line(page, "image")[0].startswith("400 x 300 px")
        assert line(page, "about")[0].startswith("Visium, breast") and "stored as 32 px" in line(page, "patch")[0]


def test_the_prefix_chooses_a_sample_of_a_deposit(here, capsys):
    for seed, sample in enumerate(("GSM1_A", "GSM2_B")):
        outs = write_outs(here / "outs", make_source(seed))
        (here / "deposit").mkdir(exist_ok=True)
        for path in [one for one in outs.rglob("*") if one.is_file()]:
            path.rename(here / "deposit" / f"{sample}_{path.name}")
        shutil.rmtree(outs)
    code, page, _ = run(capsys, "deposit", "--prefix", "GSM2_B_")
    assert code == 0 and line(page, "source")[0].startswith("visium: filtered_feature_bc_matrix.h5")
    assert line(page, "command") == ["delst prepare visium deposit --prefix GSM2_B_ --output DIR"]
    code, page, error = run(capsys, "deposit", "--prefix", "GSM3")
    assert code == 2 and page.count("could be sample") == 2 and "Choose one of the commands above" in error


def test_what_insists_on_a_slide_in_prepare_does_so_here(here, capsys):
    write_outs(here / "S1" / "outs", make_source())
    wrong = ["S1", "--mpp", "9"]
    code, page, _ = run(capsys, *wrong)
    assert code == 1 and "sources of its scale disagree" in line(page, "REFUSED")[0]
    code, page, _ = run(capsys, *wrong, "--allow-scale")
    assert code == 0 and "DIFFERS" in line(page, "scale")[0]


def test_pictures_of_several_slides(here, capsys):
    for name in ("S1", "S2"):
        write_outs(here / "runs" / name / "outs", make_source())
    code, page, _ = run(capsys, "runs", "--preview", "look.png")
    assert code == 0 and line(page, "slide") == ["S1 (patient S1)", "S2 (patient S2)"]
    assert sorted(path.name for path in here.glob("*.png")) == ["look.S1.png", "look.S2.png"]
    assert Image.open("look.S1.png").size[0] > 1200


def test_a_slide_that_is_refused_has_its_page_and_its_picture(here, capsys):
    outs = write_outs(here / "S1" / "outs", make_source())
    table = pd.read_csv(outs / "spatial" / "tissue_positions.csv")
    table["pxl_col_in_fullres"] *= 5
    table["pxl_row_in_fullres"] *= 5
    table.to_csv(outs / "spatial" / "tissue_positions.csv", index=False)
    code, page, _ = run(capsys, "S1", "--preview", "S1.png")
    assert code == 1 and "lie outside the image" in line(page, "REFUSED")[0]
    assert line(page, "slide") == ["S1 (patient S1)"] and Path("S1.png").is_file()
    assert not list(here.glob("*refused*"))
    (outs / "filtered_feature_bc_matrix.h5").write_bytes(b"no matrix")
    code, page, _ = run(capsys, "S1")
    assert code == 1 and "cannot read" in line(page, "REFUSED")[0] and line(page, "slide") == []


def test_a_dataset_folder_is_counted_anew(toy_folder, here, capsys):
    code, page, _ = run(capsys, toy_folder)
    assert code == 0 and len(line(page, "slide")) == 3 and "3 slides" in page
    assert all(one.startswith("36;") for one in line(page, "spots"))
    assert sum(int(part.rsplit(" ", 1)[1]) for part in line(page, "labels")[0].split(";")[0].split(", ")) == 36
    code, _, error = run(capsys, toy_folder, "--preview", "a.png")
    assert code == 2 and "delst prepare --preview" in error and not Path("a.png").exists()
    shutil.copytree(toy_folder, "copy")
    next(Path("copy/spots").glob("toy_A2*")).unlink()
    code, _, error = run(capsys, "copy")
    assert code == 2 and "spots/toy_A2.parquet" in error and "is damaged or was changed" in error
    shutil.copytree(toy_folder, "flipped")
    path = next(Path("flipped/spots").glob("toy_B1*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    code, _, error = run(capsys, "flipped")
    assert code == 2 and "spots/toy_B1.parquet" in error


def write_table(folder, source):
    Image.fromarray(source.pixels).save(folder / "he.png")
    names = [*np.unique(source.symbols).tolist(), "X"]
    pd.DataFrame(source.counts, index=source.spots.index, columns=names).to_csv(folder / "counts.csv")
    source.spots.rename_axis("barcode").to_csv(folder / "spots.csv")


def test_a_sample_sheet_has_a_page_per_slide(here, capsys):
    write_outs(here / "S1" / "outs", make_source())
    write_table(here, make_source(1))
    Path("sheet.csv").write_text(
        "path,format,image,coordinates,mpp,patient\nS1,visium,,,,007\ncounts.csv,table,he.png,spots.csv,5,P2\n"
    )
    before = files(here)
    code, page, _ = run(capsys, "sheet.csv", "--patch-px", "32", "--preview", "look.png")
    assert code == 0 and line(page, "slide") == ["S1 (patient 007)", "counts (patient P2)"]
    assert line(page, "command") == ["delst prepare sheet.csv --patch-px 32 --output DIR"]
    assert len(line(page, "scale")) == 2 and "2 slides, 0 refused" in page
    assert files(here) == sorted([*before, "look.S1.png", "look.counts.png"])
    Path("sheet.csv").write_text(
        "path,format,image,coordinates,mpp\nS1,visium,,,\ncounts.csv,table,he.png,spots.csv,5000\n"
    )
    code, page, _ = run(capsys, "sheet.csv")
    assert code == 1 and len(line(page, "REFUSED")) == 1 and "2 slides, 1 refused" in page
    Path("sheet.csv").write_text("path\nS1\n")
    code, _, error = run(capsys, "sheet.csv")
    assert code == 2 and "has no column format" in error


@pytest.mark.parametrize("form", ["csv", "transposed", "h5", "mtx folder", "alone in a folder"])
def test_counts_without_anything_beside_them(here, capsys, form):
    source = make_source()
    if form in ("csv", "transposed"):
        write_table(here, source)
        given = Path("counts.csv")
        if form == "transposed":
            pd.read_csv(given, index_col=0).T.to_csv(given)
    else:
        outs = write_outs(here / "S1" / "outs", source, counts="mtx" if form == "mtx folder" else "h5")
        given = next(outs.glob("filtered*"))
        if form == "alone in a folder":
            Path("one").mkdir()
            given = given.rename("one/counts.h5").parent
    before = files(here)
    code, page, _ = run(capsys, given, *(["--orientation", "genes"] if form == "transposed" else []))
    assert code == 0 and files(here) == before
    assert line(page, "spots")[0].startswith("12, named BARCODE00-1, BARCODE01-1")
    assert line(page, "genes")[0].startswith("6, ") and "1 table of counts; nothing was prepared" in page
    assert ("1 left out: 1 antibodies" in page) == (form in ("h5", "alone in a folder"))
    counts = given / "counts.h5" if form == "alone in a folder" else given
    assert line(page, "command") == [
        f"delst prepare table --counts {counts} --coordinates FILE --image FILE --output DIR"
    ]


def test_counts_by_place_and_counts_that_are_none(here, capsys):
    table = pd.DataFrame([[1, 2], [0, 0]], index=["10x21", "11x21"], columns=["ACTB", "CD3E"])
    table.to_csv("st.tsv", sep="\t")
    code, page, _ = run(capsys, "st.tsv")
    assert code == 0 and line(page, "command")[0].startswith("delst prepare st --counts st.tsv --spots FILE")
    assert line(page, "median") == ["1.5 counts of 1 genes in the median spot; spots without counts: 1"]
    (table + 0.5).to_csv("log.csv")
    code, page, _ = run(capsys, "log.csv")
    assert code == 1 and "these are not counts" in line(page, "REFUSED")[0]
    code, _, error = run(capsys, "log.csv", "--preview", "a.png")
    assert code == 2 and "holds counts and no slide to draw" in error


def test_what_is_not_counts_is_not_taken_for_them(here, capsys):
    Path("clusters.csv").write_text("barcode,cluster\na,1\nb,2\n")
    Path("notes.txt").write_text("these are my notes\nabout a slide\n")
    for name in ("clusters.csv", "notes.txt"):
        code, _, error = run(capsys, name)
        assert code == 2 and f"the format of {name} is not recognised" in error
    with h5py.File("features.h5", "w") as file:
        file["features"], file["coords"] = np.ones((3, 4)), np.ones((3, 2))
    code, page, _ = run(capsys, "features.h5")
    assert code == 1 and "has no group 'matrix'; it holds coords, features" in line(page, "REFUSED")[0]


def test_counts_with_their_positions_are_a_slide(here, capsys):
    write_table(here, make_source())
    rest = ["--coordinates", "spots.csv", "--image", "he.png", "--mpp", "5"]
    for given in (["counts.csv", *rest], [*rest, "counts.csv"], [*rest, "--counts", "counts.csv"]):
        code, page, _ = run(capsys, *given)
        assert code == 0 and line(page, "slide") == ["counts (patient counts)"]
    code, _, error = run(capsys, "spots.csv")
    assert code == 2 and "holds positions of spots alone" in error and "--coordinates spots.csv" in error
    Path("tissue_positions_list.csv").write_text("AAAC-1,1,0,16,521,521\nAAAG-1,0,1,17,530,540\n")
    code, _, error = run(capsys, "tissue_positions_list.csv")
    assert code == 2 and "holds positions of spots alone" in error


def test_an_archive_that_no_reader_opens_is_to_be_unpacked(here, capsys):
    """The bins of Visium HD, as 10x offers them beside the other files of a run."""
    bins = write_outs(here / "binned_outputs" / "square_008um", make_source(), positions="parquet")
    shutil.make_archive("HD_binned_outputs", "gztar", here, bins.parent.name)
    code, _, error = run(capsys, "HD_binned_outputs.tar.gz")
    assert code == 2 and "Unpack it (tar -xf HD_binned_outputs.tar.gz), and give what it holds. Or name" in error


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["nowhere"], r"nothing to check: \['nowhere'\] is not there"),
        ([], "nothing to check: no file or folder is not there"),
        (["empty"], r"the format of empty is not recognised from its files \(a.txt\).*--format"),
        (["two"], r"could be .*delst check --format visium(.|\n)*delst check --format anndata(.|\n)*could be 2 things"),
        (["xenium"], "looks like xenium .*, and needs --image FILE"),
    ],
)
def test_what_cannot_be_told(here, capsys, argv, match):
    for name in ("empty/a.txt", "two/a.h5ad", "xenium/transcripts.parquet"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).touch()
    write_outs(here / "two" / "S1", make_source())
    code, page, error = run(capsys, *argv)
    assert code == 2 and re.search(match, page + error)


def test_unknown_options_are_refused(here, capsys):
    with pytest.raises(SystemExit):
        main(["check", "--format", "toy", "--slides", "1", "--no-such-option"])
    with pytest.raises(SystemExit):
        main(["prepare", "toy", "--output", "d", "--no-such-option"])
    assert "unrecognized arguments: --no-such-option" in capsys.readouterr().err


def test_formats_without_a_place(here, capsys):
    write_table(here, make_source())
    given = ["--image", "he.png", "--counts", "counts.csv", "--coordinates", "spots.csv", "--mpp", "5"]
    code, page, _ = run(capsys, "--format", "table", *given)
    assert code == 0 and line(page, "spots")[0].startswith("12;")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("S1.rds", "R reads it: write the counts there (DropletUtils::write10xCounts"),
        ("S1.cloupe", "Only Loupe Browser reads it: give the folder outs of Space Ranger"),
        ("S1.gef", "stereopy reads it"),
        ("S1.loom", "anndata.io.read_loom(FILE).write_h5ad("),
        ("S1.h5mu", "mudata.read_h5mu(FILE)['rna'].write_h5ad("),
        ("S1.xlsx", "save each sheet as CSV"),
    ],
)
def test_files_that_other_programs_read_are_to_be_exported(here, capsys, name, said):
    (here / name).write_bytes(b"PK\x03\x04" * 9)
    code, _, error = run(capsys, name)
    assert code == 2 and said in error


def test_an_id_of_the_hub_is_to_be_downloaded(here, capsys):
    code, _, error = run(capsys, "me/toys")
    assert code == 2 and "hf download USER/NAME --repo-type dataset --local-dir DIR" in error
