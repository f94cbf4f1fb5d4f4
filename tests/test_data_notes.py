"""Notes of a slide: counted by reason, carried by every copy of the slide, and kept in the slides table."""

import json
import re

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from delst_hf.data.dataset import merge_datasets, write_dataset
from delst_hf.data.notes import Notes
from delst_hf.data.quality import QualityFilter
from delst_hf.data.study import Study
from delst_hf.data.toy import make_toy_slide


def test_numbers_of_one_reason_add_up_and_zero_leaves_no_trace():
    notes = Notes(scale_from="--mpp")
    notes.leave_out_genes("control probes", 3)
    notes.leave_out_genes("control probes", np.int64(4))
    notes.leave_out_spots("not in_tissue", 0)
    notes.leave_out_spots("without counts", 5)
    assert notes == Notes("--mpp", genes_left_out={"control probes": 7}, spots_left_out={"without counts": 5})


def test_text_and_back():
    notes = Notes(scale_from="Gitter", spots_left_out={"außerhalb": 1}, image={"file": "he.tif"})
    assert Notes.from_json(notes.to_json()) == notes
    assert Notes.from_json(None) == Notes.from_json("") == Notes()
    assert Notes.from_json('{"scale_from": "x", "of_a_later_version": 1}') == Notes(scale_from="x")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A toy slide with one spot outside and sizes of cells for the others but the last."""
    slide = make_toy_slide("toy_A1", spots_per_side=4, image_px=300)
    slide.spots.iloc[0, slide.spots.columns.get_loc("x")] = -5.0
    slide.spots["cell_area_um2"] = [*(10.5 + np.arange(15)), np.nan]
    slide.notes.leave_out_genes("antibodies", 2)
    folder = tmp_path_factory.mktemp("notes") / "data"
    write_dataset([slide], folder, patch_px=16, outside="drop", quality_filter=QualityFilter(min_genes=1))
    return folder


def test_the_slides_table_keeps_them(folder):
    row = load_dataset(str(folder), "slides")["train"][0]
    assert json.loads(row["notes"])["genes_left_out"] == {"antibodies": 2}
    assert Notes.from_json(row["notes"]).spots_left_out == {"outside the image": 1}
    assert Notes.from_json(Study.load(str(folder)).slides["notes"][0]).genes_left_out == {"antibodies": 2}


def test_the_area_of_a_cell_is_a_column_and_survives_a_merge_with_a_folder_that_has_none(folder, tmp_path):
    expected = [*(11.5 + np.arange(14)), None]
    assert load_dataset(str(folder))["train"]["cell_area_um2"][:] == expected
    write_dataset([make_toy_slide("toy_B1", spots_per_side=4, image_px=300)], tmp_path / "b", patch_px=16)
    path = tmp_path / "b" / "spots" / "toy_B1.parquet"
    older = pq.read_table(path).drop_columns(["cell_area_um2"])
    pq.write_table(older.replace_schema_metadata(None), path)  # as a version without the column wrote it,
    (tmp_path / "b" / "manifest.json").unlink()  # which knew no manifest and no fingerprint
    card = tmp_path / "b" / "README.md"
    card.write_text(re.sub(r"description: content \w+", "description: of old", card.read_text()))
    merge_datasets([folder, tmp_path / "b"], tmp_path / "both")
    table = load_dataset(str(tmp_path / "both"))["train"].to_pandas()
    assert [None if pd.isna(area) else area for area in table["cell_area_um2"][:15]] == expected
    assert table["cell_area_um2"][15:].isna().all() and len(table) == 31
