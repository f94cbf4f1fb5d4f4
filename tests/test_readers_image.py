"""Slides without counts: read, laid with a grid, written as a dataset folder."""

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from delst_hf.cli import main
from delst_hf.data.readers.image import read_slide_image
from delst_hf.data.study import Study

PINK, GLASS = (200, 120, 170), (242, 240, 244)


@pytest.fixture(scope="module")
def he_file(tmp_path_factory):
    """An H&E of 400 x 600 px whose left half is tissue."""
    image = np.full((400, 600, 3), GLASS, dtype=np.uint8)
    image[:, :300] = PINK
    path = tmp_path_factory.mktemp("he") / "my slide.png"
    Image.fromarray(image).save(path)
    return path


def test_patches_lie_on_tissue_at_their_physical_size(he_file):
    slide = read_slide_image(he_file, mpp=2.0, patch_um=100, min_tissue=0.6)
    assert slide.slide_id == "my_slide" and not slide.has_counts and slide.counts.shape == (len(slide.spots), 0)
    assert len(slide.spots) == 8 * 6  # 50 px each; six columns of twelve
    assert slide.spots["x"].max() < 300 and slide.spots["tissue_fraction"].min() > 0.6
    slide.validate()
    half = read_slide_image(he_file, mpp=2.0, patch_um=100, stride_um=50, min_tissue=0.6)
    assert len(half.spots) == 15 * 11
    first = next(slide.patches(100, 25))
    assert first.size == (25, 25) and np.ptp(np.asarray(first)) == PINK[0] - PINK[1]


def test_positions_take_the_place_of_the_grid(he_file):
    places = pd.DataFrame({"x": [10.0, 590.0], "y": [20.0, 30.0]}, index=["a", "b"])
    slide = read_slide_image(he_file, mpp=2.0, positions=places)
    assert slide.spots.index.tolist() == ["a", "b"] and slide.spots["x"].tolist() == [10.0, 590.0]


def test_the_scale_is_asked_for_and_compared(he_file, tmp_path):
    with pytest.raises(ValueError, match=r"mpp is unknown: .* does not state it.*--mpp"):
        read_slide_image(he_file)
    with pytest.raises(ValueError, match="a patch is 1120 px wide, but the slide has only"):
        read_slide_image(he_file, mpp=0.1)
    tiff = tmp_path / "he.tif"
    tifffile.imwrite(tiff, np.asarray(Image.open(he_file)), photometric="rgb", tile=(64, 64), resolution=(5000, 5000),
                     resolutionunit="CENTIMETER")  # fmt: skip
    assert read_slide_image(tiff).mpp == pytest.approx(2.0)
    with pytest.raises(ValueError, match=r"--mpp is 0.5, but he.tif states 2.0000"):
        read_slide_image(tiff, mpp=0.5)


def test_a_dataset_folder_without_counts(he_file, tmp_path, capsys):
    command = ["prepare", "image", str(he_file), "--mpp", "2", "--patch-px", "32", "--patch-um", "100", "--quiet"]
    assert main([*command, "--min-tissue", "0.6", "--output", str(tmp_path / "data")]) == 0
    assert "my_slide 48" in capsys.readouterr().out
    study = Study.load(str(tmp_path / "data"))
    assert len(study.spots) == 48 and study.gene_names == [] and study.counts(study.spots).shape == (48, 0)
    assert set(study.spots["n_genes"]) == {0} and study.slides["mpp"].tolist() == [2.0]
    assert main([*command[:3], *command[5:], "--output", str(tmp_path / "other")]) == 2
    assert "--mpp" in capsys.readouterr().err and not (tmp_path / "other").exists()
    twice = [*command[:3], *command[2:], "--mask", str(he_file), "--output", str(tmp_path / "other")]
    assert main(twice) == 2
    assert "--mask belongs to one slide" in capsys.readouterr().err
