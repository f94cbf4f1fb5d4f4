"""How a dataset stores its patches is read from the patches."""

import io

import numpy as np
import pytest
from PIL import Image

from delst_hf.data.appearance import PatchEncoding, encode


def patch(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)


def by_pillow(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("quality", [1, 40, 75, 95, 100])
def test_the_quality_is_that_of_the_stored_jpeg(quality):
    cells = [{"bytes": encode(patch(seed), "jpeg", quality)} for seed in range(3)]
    found = PatchEncoding.of(cells)
    assert found == PatchEncoding("jpeg", quality) and PatchEncoding.named(str(found)) == found
    expected = np.asarray(Image.open(io.BytesIO(by_pillow(patch(), format="JPEG", quality=quality, subsampling=0))))
    np.testing.assert_array_equal(found.restored(patch()), expected)


def test_png_is_left_as_it_is():
    found = PatchEncoding.of([{"bytes": encode(patch(), "png", 95)}])
    assert found == PatchEncoding("png") == PatchEncoding.named("png")
    np.testing.assert_array_equal(found.restored(patch()), patch())


def test_what_is_not_stored_alike_has_no_encoding():
    jpeg, other = encode(patch(), "jpeg", 95), encode(patch(), "jpeg", 80)
    halved = by_pillow(patch(), format="JPEG", quality=95, subsampling=2)
    for cells in (
        [{"bytes": jpeg}, {"bytes": other}],
        [{"bytes": halved}],
        [{"bytes": None, "path": "x.jpg"}],
        [None],
        [],
    ):
        assert PatchEncoding.of(cells) is None
    assert [PatchEncoding.named(name) for name in ("unknown", "jpeg", "jpeg 0", "jpeg 101", "")] == [None] * 5
