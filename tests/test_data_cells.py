"""Outlines and pseudo-spots: areas and centres by hand, sums by plain loops."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from delst_hf.data.cells import outlines, pool_cells
from delst_hf.data.counts import make_genes
from delst_hf.data.samples import check_one_slide
from delst_hf.data.slide import Slide

TRIANGLE = [[0, 0], [6, 0], [0, 3]]  # area 9, centroid (2, 1)


def test_triangle_either_way_closed_or_open_and_far_away():
    far = [[1e7 + x, -1e7 + y] for x, y in TRIANGLE]
    found = outlines([[[TRIANGLE]], [[TRIANGLE[::-1]]], [[[*TRIANGLE, TRIANGLE[0]]]], [[far]]])
    np.testing.assert_allclose(found["area"], 9)
    np.testing.assert_allclose(found["x"] - [0, 0, 0, 1e7], 2)
    np.testing.assert_allclose(found["y"] + [0, 0, 0, 1e7], 1)


def test_holes_are_taken_off_and_parts_are_joined():
    square, hole = [[0, 0], [4, 0], [4, 4], [0, 4]], [[2, 1], [4, 1], [4, 3], [2, 3]]  # 16 - 4, moved left
    two = [[square], [[[10, 0], [12, 0], [12, 2], [10, 2]]]]  # 16 at (2, 2) and 4 at (11, 1)
    found = outlines([[[square, hole]], two])
    np.testing.assert_allclose(found["area"], [12, 20])
    np.testing.assert_allclose(found["x"], [(16 * 2 - 4 * 3) / 12, (16 * 2 + 4 * 11) / 20])
    np.testing.assert_allclose(found["y"], [2, (16 * 2 + 4 * 1) / 20])


def test_regular_polygons_of_any_size_turn_and_place():
    rng = np.random.default_rng(0)
    cells, expected = [], []
    for _ in range(50):
        corners, radius, turn = rng.integers(3, 12), rng.uniform(0.1, 50), rng.uniform(0, 7)
        centre = rng.uniform(-1e4, 1e4, 2)
        angles = turn + np.arange(corners) * 2 * np.pi / corners
        cells.append([[centre + radius * np.column_stack([np.cos(angles), np.sin(angles)])]])
        expected.append([*centre, corners / 2 * radius**2 * np.sin(2 * np.pi / corners)])
    np.testing.assert_allclose(outlines(cells).to_numpy(), expected, rtol=1e-9)


def test_what_has_no_area_and_what_is_not_there():
    found = outlines([[[[[0, 0], [2, 2], [4, 4]]]], [], [[[]]]])
    assert found.iloc[0].tolist() == [2, 2, 0]
    assert found.iloc[1:].isna().all(axis=None)
    assert outlines([[], []]).isna().all(axis=None) and len(outlines([[], []])) == 2


def make_cells(number=200, seed=0):
    rng = np.random.default_rng(seed)
    spots = pd.DataFrame(
        {"x": rng.uniform(0, 100, number), "y": rng.uniform(0, 60, number), "cell_area_um2": 50.0,
         "label": rng.choice(np.array(["a", "b", None], dtype=object), number)},
        index=[f"c{i}" for i in range(number)],
    )  # fmt: skip
    return Slide("S", np.full((60, 100, 3), 120, np.uint8), spots, sp.csr_matrix(rng.poisson(2, (number, 5))),
                 make_genes(list("VWXYZ")), mpp=2.0, patient_id="P")  # fmt: skip


def test_squares_are_sums_of_their_cells():
    cells = make_cells()
    squares = pool_cells(cells, 40)  # 20 px: 3 rows of 5
    squares.validate()
    assert len(squares.spots) == 15 and squares.spot_um == 40 and squares.spots["cell_area_um2"].isna().all()
    for i, (name, spot) in enumerate(squares.spots.iterrows()):
        row, column = spot["array_row"], spot["array_col"]
        assert name == f"{row}x{column}" and (spot["x"], spot["y"]) == (20 * column + 10, 20 * row + 10)
        own = [j for j, (x, y) in enumerate(zip(cells.spots["x"], cells.spots["y"], strict=True))
               if 20 * column <= x < 20 * column + 20 and 20 * row <= y < 20 * row + 20]  # fmt: skip
        assert squares.counts.toarray()[i].tolist() == cells.counts.toarray()[own].sum(0).tolist()
        labels = set(cells.spots["label"].iloc[own].dropna())
        assert spot["label"] == (labels.pop() if len(labels) == 1 else None)


def test_cells_of_a_square_beyond_the_image_are_counted():
    cells = make_cells()
    squares = pool_cells(
        cells, 70
    )  # 35 px: the third column begins at 70, its centre lies at 87.5; the second row's at 52.5
    assert squares.spots["array_col"].max() == 2 and squares.spots["array_row"].max() == 1
    assert squares.notes.spots_left_out == {}
    cells = make_cells()
    narrow = pool_cells(cells, 120)  # 60 px: the second column begins at 60, and its centre lies at 90
    assert narrow.spots["array_col"].max() == 1
    cells = make_cells()
    lost = pool_cells(cells, 130)  # 65 px: the centre of the second column would lie at 97.5, of the only row at 32.5
    assert lost.notes.spots_left_out == {} and len(lost.spots) == 2
    cells = make_cells()
    assert pool_cells(cells, 150).notes.spots_left_out == {
        "beyond the squares of the image": (cells.spots["x"] >= 75).sum()
    }


@pytest.mark.parametrize(
    ("grid_um", "match"),
    [(0, "grid_um is 0"), (float("nan"), "grid_um is nan"), (1e-3, "more than 32768"), (1e4, "none of 200 cells")],
)
def test_sides_that_cannot_be(grid_um, match):
    with pytest.raises(ValueError, match=f"{match}.*--grid-um"):
        pool_cells(make_cells(), grid_um)


def test_cells_of_two_samples_are_not_added_up_unseen():
    """In a square, cells of several samples leave no trace: what tells them apart is looked for before."""
    twice = Slide(
        "S", np.full((100, 100, 3), 200, np.uint8),
        pd.DataFrame({"x": [10.0, 20, 10, 20], "y": 10.0, "sample": list("aabb")}, index=list("pqrs")),
        sp.csr_matrix(np.ones((4, 2), int)), make_genes(["A", "B"]), 1.0, "P",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"several samples.*'sample' names 2, 'a', 'b'"):
        check_one_slide(pool_cells(twice, 50.0))
    one = pool_cells(replace(twice, spots=twice.spots.iloc[:2], counts=twice.counts[:2]), 50.0)
    check_one_slide(one)
    assert one.signs_of_samples == ()
