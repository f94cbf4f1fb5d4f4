"""What is white, in every format: 12 bits in 16, floats, opacity, fluorescence; images that lie on their side."""

import logging
import pickle

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from delst_hf.data.images import open_image
from delst_hf.data.pixels import check_channels, to_rgb, white_level


@pytest.fixture
def pixels():
    rng = np.random.default_rng(0)
    coarse = rng.integers(20, 250, (20, 30, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((260, 190), Image.Resampling.BICUBIC))


def near(image, pixels):
    found = np.asarray(image[:, :], int)
    assert found.shape == pixels.shape and np.abs(found - pixels).max() <= 1


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("form", ["strips", "tiles", "planes", "pyramid", "png", "array"])
def test_significant_bits_are_told_by_the_data(tmp_path, pixels, bits, form, caplog):
    wide = np.rint(pixels.astype(float) * ((2**bits - 1) / 255)).astype(np.uint16)
    path = tmp_path / ("a.png" if form == "png" else "a.tif")
    with caplog.at_level(logging.INFO, "delst_hf"):
        if form == "png":
            path.write_bytes(imagecodecs.png_encode(wide))
        elif form == "strips":
            tifffile.imwrite(path, wide, photometric="rgb")
        elif form == "tiles":
            tifffile.imwrite(path, wide, photometric="rgb", tile=(64, 64), compression="deflate")
        elif form == "planes":
            tifffile.imwrite(path, np.moveaxis(wide, -1, 0), photometric="rgb", planarconfig="separate", tile=(64, 64))
        elif form == "pyramid":
            with tifffile.TiffWriter(path) as file:
                file.write(wide, photometric="rgb", tile=(64, 64), subifds=1)
                file.write(wide[::2, ::2], photometric="rgb", tile=(64, 64), subfiletype=1)
        image = to_rgb(wide) if form == "array" else open_image(path)
    near(image, pixels)
    assert f"samples of {bits} significant bits of 16 (its largest value is" in caplog.text
    if form in ("strips", "tiles", "planes"):
        assert image.depth == f"{bits} of 16 bits"
    if form == "pyramid":
        near(image.overview(130), np.asarray(pixels[::2, ::2]))
        near(pickle.loads(pickle.dumps(image)), pixels)  # noqa: S301


def test_bits_that_a_file_states(tmp_path, pixels, caplog):
    dark = pixels.astype(np.uint16) * 4  # 10 bits would hold it; 12 are stated
    meta = {"axes": "YXS", "SignificantBits": 12}
    tifffile.imwrite(tmp_path / "a.ome.tif", dark, photometric="rgb", ome=True, metadata=meta)
    near(open_image(tmp_path / "a.ome.tif"), np.rint(dark * (255 / 4095)).astype(int))
    tifffile.imwrite(tmp_path / "max.tif", dark, photometric="rgb", extratags=[(281, "H", 3, (4095,) * 3, True)])
    near(open_image(tmp_path / "max.tif"), np.rint(dark * (255 / 4095)).astype(int))
    # 16 of 16 is what writers state who do not know; fewer than the data need are contradicted.
    for stated in (16, 8):
        meta = {"axes": "YXS", "SignificantBits": stated}
        tifffile.imwrite(
            tmp_path / "b.ome.tif", pixels.astype(np.uint16) * 16, photometric="rgb", ome=True, metadata=meta
        )
        near(open_image(tmp_path / "b.ome.tif"), np.rint(pixels.astype(int) * 16 * (255 / 4095)).astype(int))
    assert "states 8 significant bits, but holds values up to" in caplog.text


def test_a_region_that_is_brighter_than_the_sample_is_refused_not_clipped(tmp_path, monkeypatch):
    monkeypatch.setattr("delst_hf.data.tiff._SAMPLED_TILES", 2)
    image = np.full((256, 256, 3), 4000, np.uint16)
    image[64:128, 64:128] = 60_000
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", tile=(64, 64))
    opened = open_image(tmp_path / "a.tif")
    assert (opened[:64, :64] == 249).all()
    with pytest.raises(ValueError, match="white was taken to be 4095, but a region holds values up to 60000"):
        opened[64:128, 64:128]


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_floats_are_a_share_of_one_or_of_255(tmp_path, pixels, scale):
    for dtype in (np.float32, np.float64):
        values = (pixels / 255 * scale).astype(dtype)
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", tile=(64, 64))
        near(open_image(tmp_path / "a.tif"), pixels)
        near(to_rgb(values), pixels)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_what_is_transparent_is_white_at_every_depth(tmp_path, pixels, bits):
    alpha = np.full(pixels.shape[:2], 2**16 - 1 if bits > 8 else 255)
    alpha[:50] = 0
    kind = np.uint8 if bits == 8 else np.uint16
    wide = np.dstack([np.rint(pixels * ((2**bits - 1) / 255)), alpha]).astype(kind)
    shown = pixels.copy()
    shown[:50] = 255
    near(to_rgb(wide), shown)
    tifffile.imwrite(tmp_path / "a.tif", wide, photometric="rgb", extrasamples=["unassalpha"], tile=(64, 64))
    near(open_image(tmp_path / "a.tif"), shown)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(wide))
    near(open_image(tmp_path / "a.png"), shown)
    wide[:50] = 0  # colours that were multiplied by their opacity
    tifffile.imwrite(tmp_path / "b.tif", wide, photometric="rgb", extrasamples=["assocalpha"], tile=(64, 64))
    near(open_image(tmp_path / "b.tif"), shown)


def test_fluorescence_is_refused(tmp_path, pixels):
    with pytest.raises(ValueError, match="4 channels, of which the last is not opacity"):
        to_rgb(np.dstack([pixels, pixels[..., 0]]))
    for names in (["DAPI", "FITC", "Cy3"], ["Channel 1", "Alexa Fluor 488", "C3"]):
        meta = {"axes": "CYX", "Channel": {"Name": names}}
        tifffile.imwrite(
            tmp_path / "f.ome.tif", np.moveaxis(pixels, -1, 0), ome=True, photometric="minisblack", metadata=meta
        )
        with pytest.raises(ValueError, match=r"f\.ome\.tif is a fluorescence image: its channels are called"):
            open_image(tmp_path / "f.ome.tif")
    check_channels(["r", "g", "b", "a"], "he")
    check_channels([0, 1, 2], "he")


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("suffix", ["tif", "jpg", "png"])
def test_an_image_that_lies_on_its_side_is_refused(tmp_path, pixels, suffix, orientation):
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(path, pixels, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    else:
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(pixels).save(path, exif=exif)
    with pytest.raises(ValueError, match=rf"a\.{suffix} says that it is stored .*orientation {orientation}.*upright"):
        open_image(path)


def test_upright_is_what_1_and_nonsense_say(tmp_path, pixels):
    for orientation in (0, 1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
        near(open_image(tmp_path / "a.png"), pixels)
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
        near(open_image(tmp_path / "a.tif"), pixels)


def test_types_without_samples_are_named():
    with pytest.raises(ValueError, match="he.tif has values of type complex128"):
        white_level(np.zeros(3, complex), "he.tif")
    with pytest.raises(ValueError, match="values from 0 to 70000"):
        white_level(np.array([0, 70_000]))


def test_dead_pixels_do_not_tell_the_depth(tmp_path, pixels, caplog):
    """Twelve bits in sixteen, with some pixels of a camera stuck at the end of the range."""
    caplog.set_level(logging.INFO)
    deep = (pixels.astype(np.uint32) * 4095 // 255).astype(np.uint16)
    deep[5, 7] = deep[40, 3] = 65535
    for name, write in (("he.tif", tifffile.imwrite), ("he.png", lambda path, array: path.write_bytes(
        imagecodecs.png_encode(array)
    ))):  # fmt: skip
        write(tmp_path / name, deep)
        image = np.asarray(open_image(tmp_path / name)[:, :]).astype(int)
        away = np.abs(image - pixels).max(axis=2)
        assert (away > 1).sum() == 2 and (image[5, 7] == 255).all()
    assert "brighter than its white" in caplog.text


def test_the_sixteenth_bit_of_a_signed_number_is_its_sign(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "he.tif", (pixels.astype(np.int32) * 32767 // 255).astype(np.int16), photometric="rgb")
    np.testing.assert_allclose(open_image(tmp_path / "he.tif")[:, :].astype(int), pixels, atol=1)
