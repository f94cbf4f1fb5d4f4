"""The page of a slide: each line says what was found, in numbers that are counted here by hand."""

import re

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from PIL import Image

from delst_hf.data.counts import make_genes
from delst_hf.data.dataset import write_dataset
from delst_hf.data.notes import Notes
from delst_hf.data.readers.matrices import Counts
from delst_hf.data.slide import Slide
from delst_hf.data.understood import counts_page, measure, slide_page

ROW = {
    "slide_id": "S1", "patient_id": "P", "source": "visium: a.h5, b.png", "technology": "Visium", "tissue": "",
    "species": "human",
    "image_width": 2000, "image_height": 1800, "mpp": 0.5, "patch_um": 112.0, "patch_px": 224, "spot_um": 55.0,
    "measured_genes": [0, 1, 2], "label_source": "labels.csv",
}  # fmt: skip


def lines_of(notes, **changes):
    page = slide_page({**ROW, "notes": notes and notes.to_json(), **changes}, 10)
    return {line[:9].strip(): line[9:] for line in page.splitlines()}


def test_all_that_is_known():
    notes = Notes(
        scale_from="lattice of 100 um", scale_witnesses={"TIFF tag": 0.51, "diameter": 0.4},
        genes_left_out={"control probes": 3, "antibodies": 2}, genes_summed=1, spots_left_out={"not in_tissue": 4},
        image={"samples": "12 of 16 bits"}, remarks=["Something."], labels={"tumour": 6, "(none)": 4}, median_counts=812.5,
        median_genes=300.0, genes_with_ids=2, on_tissue=0.9,
    )  # fmt: skip
    assert lines_of(notes) == {
        "slide": "S1 (patient P)",
        "source": "visium: a.h5, b.png",
        "about": "Visium, tissue unknown, human",
        "image": "2000 x 1800 px, samples: 12 of 16 bits",
        "scale": "0.5000 um per px, from lattice of 100 um; witnesses: TIFF tag 0.5100 (agrees), "
        "diameter 0.4000 (DIFFERS by -20%)",
        "patch": "112 um = 224 px of the image, stored as 224 px",
        "spots": "10 of 55 um; 4 left out: 4 not in_tissue",
        "genes": "3, 2 with Ensembl ids; 5 left out: 3 control probes, 2 antibodies; "
        "columns added to another of the same gene: 1",
        "counts": "812.5 counts of 300 genes in the median spot",
        "labels": "tumour 6, (none) 4; from labels.csv",
        "tissue": "90% of the spots lie on tissue",
        "remark": "Something.",
    }


def test_a_folder_of_an_older_version_has_a_page_too():
    page = lines_of(None, patch_px=500, spot_um=None)
    assert page["scale"] == "0.5000 um per px; nothing else states one"
    assert page["spots"] == "10; none left out" and page["genes"] == "3; none left out"
    assert page["patch"].endswith("stored as 500 px, enlarged 2.2 times")
    assert not {"labels", "tissue", "counts"} & set(page)


def test_a_line_break_in_a_name_begins_no_line_and_many_labels_are_cut():
    labels = {f"kind\n{i}": 1 for i in range(20)}
    page = lines_of(Notes(labels=labels), label_source="")
    assert page["labels"].startswith("kind 0 1, kind 1 1") and page["labels"].endswith("kind 11 1, and 8 more")


@pytest.fixture
def slide():
    """Tissue in the left half; 6 of 10 spots lie there; of four genes two have ids."""
    image = np.full((100, 200, 3), 245, np.uint8)
    image[:, :100] = (170, 80, 150)
    spots = pd.DataFrame({"x": [10, 20, 30, 40, 50, 60, 150, 160, 170, 180], "y": 50.0,
                          "label": ["a"] * 3 + [None] * 7}, index=[f"s{i}" for i in range(10)])  # fmt: skip
    counts = np.zeros((10, 4), int)
    counts[:, 0] = np.arange(1, 11)
    counts[5:, 1] = 1
    genes = make_genes(list("ABCD"), ["ENSG00000000001", "ENSG00000000002", "", ""])
    return Slide("S", image, spots, sp.csr_matrix(counts), genes, mpp=2.0, patient_id="P")


def test_measured_on_the_slide(slide):
    measure(slide, Image.fromarray(slide.image))
    notes = slide.notes
    assert notes.labels == {"(none)": 7, "a": 3} and notes.on_tissue == 0.6 and notes.genes_with_ids == 2
    assert notes.median_counts == np.median([1, 2, 3, 4, 5, 7, 8, 9, 10, 11]) and notes.median_genes == 1.5


def test_the_card_has_the_page_of_what_was_written(slide, tmp_path):
    from delst_hf.data.quality import QualityFilter

    slide.spots.iloc[0, slide.spots.columns.get_loc("label")] = "```\n# title"
    write_dataset([slide], tmp_path / "d", patch_um=20, patch_px=8, quality_filter=QualityFilter(min_tissue=0.5))
    card = (tmp_path / "d" / "README.md").read_text()
    fence, page = re.search(r"^(`{3,})text\n(.*?)\n\1`*$", card, flags=re.DOTALL | re.MULTILINE).groups()
    assert "spots    6; 4 left out: 4 patch of less than 0.5 tissue" in page
    # The label as it is, on one line, in a fence longer than its own: nothing in the page can close that.
    assert "labels   (none) 3, a 2, ``` # title 1" in page and fence not in page
    assert not re.search(r"^\W*# title", card, flags=re.MULTILINE)
    assert "tissue   100% of the spots lie on tissue" in page


def test_counts_that_were_normalised_and_rounded_are_told(caplog):
    """Raw counts of spots differ in their sum, also where all were drawn alike but few."""
    rng = np.random.default_rng(0)
    raw = rng.poisson(rng.gamma(2, 20, size=(40, 1)) * rng.gamma(1, 1, size=200))
    rounded = np.rint(1e4 * raw / raw.sum(axis=1, keepdims=True))
    told = {}
    for name, counts in (("raw", raw), ("rounded", rounded), ("shallow", rng.poisson(1.0, size=(40, 200)))):
        genes = make_genes([f"G{i}" for i in range(200)])
        spots = pd.DataFrame({"x": 1.0, "y": 1.0}, index=[str(i) for i in range(40)])
        matrix = sp.csr_matrix(counts.astype(np.int32))
        slide = Slide(name, None, spots, matrix, genes, mpp=0.5, patient_id="P")
        measure(slide, None)
        told[name] = slide.notes.remarks
    assert told["raw"] == told["shallow"] == []
    assert len(told["rounded"]) == 1 and "give raw counts" in told["rounded"][0]
    found = Counts(sp.csr_matrix(rounded.astype(np.int32)), pd.Index(range(40)), make_genes(genes["symbol"]), "c.csv")
    assert counts_page(found).splitlines()[-1] == f"remark   {told['rounded'][0]}"
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["rounded"]
