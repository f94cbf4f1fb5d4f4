"""The lattice of spots: found at any angle and pitch, with spots missing and jittering, and not where there is none."""

import numpy as np
import pandas as pd
import pytest

from delst_hf.data.lattice import (
    LEGACY,
    LEGACY_2K,
    VISIUM,
    arrays_named,
    bins,
    index_steps,
    matching_array,
    measure_lattice,
    median_pitch,
)

SQUARE = np.array([(row, column) for row in range(14) for column in range(16)])
EVERY_SECOND = np.array([(row, column) for row in range(20) for column in range(24) if (row + column) % 2 == 0])
# Array positions, places in units of the distance of nearest neighbours, kind.
KINDS = {
    "legacy": (SQUARE, SQUARE * 1.0, "square"),
    "visium": (EVERY_SECOND, EVERY_SECOND * (np.sqrt(3) / 2, 0.5), "hexagonal"),
    "2k as printed": (EVERY_SECOND, EVERY_SECOND * (111.29, 100.0) / np.hypot(111.29, 100.0), "checkerboard"),
    "2k of equal steps": (EVERY_SECOND, EVERY_SECOND / np.sqrt(2), "checkerboard"),
}


def turned(places, degrees, mirrored=False):
    angle = np.radians(degrees)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (places @ matrix.T) * ((1, -1) if mirrored else (1, 1))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("by_index", [True, False])
def test_any_angle_pitch_mirroring_jitter_and_missing_spots(name, by_index):
    """Drawn at random: the pitch is right within 2 % although spots jitter by 4 % of it and half are missing."""
    index, places, kind = KINDS[name]
    if name == "2k of equal steps" and not by_index:
        kind = "square"  # without array positions it is squares turned by 45 degrees
    rng = np.random.default_rng(0)
    for _ in range(120 if by_index else 30):
        pitch, degrees, jitter = np.exp(rng.uniform(1, 7)), rng.uniform(0, 360), rng.choice([0, 0.04])
        pixels = turned(places * pitch, degrees, rng.random() < 0.5) + rng.uniform(0, 1e4, 2)
        pixels = pixels + rng.normal(0, jitter * pitch, pixels.shape)
        keep = rng.random(len(pixels)) > rng.choice([0, 0.5])
        found = measure_lattice(pixels[keep], index[keep] if by_index else None)
        assert found is not None and found.kind == kind, (pitch, degrees, jitter)
        assert found.pitch_px == pytest.approx(pitch, rel=0.02)


def test_what_is_no_lattice_is_none():
    rng = np.random.default_rng(0)
    for number in (50, 500, 5000):
        assert measure_lattice(rng.uniform(0, 1000, (number, 2))) is None
    places = SQUARE[:100] * 50.0
    assert measure_lattice(places[:5]) is None  # few spots say nothing without array positions
    assert measure_lattice(places[:16]) is None  # one line
    assert measure_lattice(places[:16], SQUARE[:16]) is None
    assert measure_lattice(np.zeros((40, 2))) is None
    assert measure_lattice(np.full((40, 2), np.nan)) is None


def test_four_spots_are_enough_where_array_positions_are_known():
    index = np.array([(4, 6), (4, 7), (4, 8), (5, 6)])
    found = measure_lattice(turned(index * 80.0, 20), index)
    assert (found.kind, found.pitch_px) == ("square", pytest.approx(80))
    assert measure_lattice(index[:3] * 80.0, index[:3]) is None


def test_array_positions_that_are_not_those_of_the_spots_do_not_count():
    pixels = turned(KINDS["visium"][1] * 100, 10)
    wrong = np.random.default_rng(0).permutation(EVERY_SECOND)
    for array in (wrong, np.full_like(EVERY_SECOND, -1)):
        found = measure_lattice(pixels, array)
        assert found.kind == "hexagonal"
    # Columns that are not doubled, of which every second row is shifted by half a step.
    offset = np.column_stack([EVERY_SECOND[:, 0], EVERY_SECOND[:, 1] // 2])
    found = measure_lattice(pixels, offset)
    assert (found.kind, found.pitch_px) == ("hexagonal", pytest.approx(100))


def test_a_stretched_lattice_is_of_an_unknown_kind():
    found = measure_lattice(SQUARE * (50.0, 60.0), SQUARE)
    assert (found.kind, str(found)) == ("unknown", "steps of 50.0 and 60.0 px at 90 degrees")
    assert matching_array(found, (LEGACY, LEGACY_2K, VISIUM)) is None
    assert measure_lattice(SQUARE * (50.0, 51.0), SQUARE).kind == "square"


def test_misplaced_spots_do_not_move_the_pitch():
    pixels = turned(SQUARE * 80.0, 30) + 900
    pixels[[3, 50, 99, 150]] = 0
    found = measure_lattice(pixels, SQUARE)
    assert found.kind == "square"
    assert median_pitch(SQUARE, pixels, found) == pytest.approx((80, 80, 80), rel=1e-3)
    assert index_steps(SQUARE, np.random.default_rng(0).permutation(pixels)) is None


def test_arrays_by_name():
    assert arrays_named("10x Visium") == arrays_named("visium cytassist") == (VISIUM,)
    assert arrays_named("ST") == arrays_named("legacy Spatial Transcriptomics") == (LEGACY, LEGACY_2K)
    assert arrays_named("Visium HD", 16.0) == arrays_named("VisiumHD", 16.0) == (bins(16.0),)
    assert arrays_named("Visium HD") == arrays_named("Xenium") == arrays_named("Slide-seq") == ()
    assert (VISIUM.stated_um, VISIUM.spot_um, LEGACY.pitch_um, LEGACY_2K.pitch_um) == ((65.0, 55.0), 55.0, 200.0, 150.0)


def test_a_million_bins_take_no_more_than_a_sample_of_them():
    index = np.mgrid[:1000, :1000].reshape(2, -1).T
    for array in (index, None):
        found = measure_lattice(turned(index * 7.25, 3.0), array)
        assert (found.kind, found.pitch_px) == ("square", pytest.approx(7.25, rel=1e-6))


@pytest.mark.parametrize("section", ["MOB1", "MOB2"])
def test_the_real_array_of_2000_spots(shared_dir, section):
    """6.5 x 6.9 mm, by both axes: 65 steps of 100 um, 62 of 111 um; the diagonal is then 150 um."""
    table = pd.read_csv(shared_dir / f"data/mob/alignment_table_{section}.tsv", sep="\t")
    index, pixels = table[["y", "x"]].to_numpy(float), table[["pixel_y", "pixel_x"]].to_numpy(float)
    along_x, along_y, diagonal = median_pitch(index, pixels, measure_lattice(pixels, index))
    assert 150 / diagonal == pytest.approx(6500 / 65 / along_x, rel=0.01)
    assert 150 / diagonal == pytest.approx(6900 / 62 / along_y, rel=0.01)
    for selected in (table["selected"] == 1, table["selected"] == 0):
        for array in (index[selected], None):
            found = measure_lattice(pixels[selected], array)
            assert (found.kind, found.pitch_px) == ("checkerboard", pytest.approx(diagonal, rel=0.005))


@pytest.mark.parametrize("degrees", [0, 33])
def test_a_chip_larger_than_the_legacy_array_is_none(degrees):
    """Fifty channels that cross fifty: squares, and often named 1x1 to 50x50, but no array of 31 x 33 spots 200 um apart."""
    index = np.mgrid[1:51, 1:51].reshape(2, -1).T
    for array in (index, None):
        found = measure_lattice(turned(index * 12.5, degrees), array)
        assert (found.kind, matching_array(found, (LEGACY, LEGACY_2K))) == ("square", None)
        assert "50 x 50 positions" in str(found).replace("49", "50")
        assert matching_array(found, (bins(10.0),)) == bins(10.0)
    assert (
        matching_array(measure_lattice(turned(np.mgrid[:33, :35].reshape(2, -1).T * 9.0, degrees)), (LEGACY,)) == LEGACY
    )
