"""TIFF slides: every way of storing the same pixels gives the same regions, and only the tiles of a region are decoded."""

import pickle

import numpy as np
import pytest
import tifffile
from PIL import Image

from delst_hf.data.counts import make_genes
from delst_hf.data.images import open_image, read_image
from delst_hf.data.scale import image_states
from delst_hf.data.slide import Slide
from delst_hf.data.tiff import TiffImage


@pytest.fixture(scope="module")
def pixels():
    coarse = np.random.default_rng(0).integers(0, 256, (20, 27, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((531, 390), Image.Resampling.BICUBIC))


def write_pyramid(path, pixels, ome=False, **options):
    """Three levels in SubIFDs, as tifffile's documentation writes an (OME-)TIFF pyramid."""
    with tifffile.TiffWriter(path, ome=ome, bigtiff=True) as file:
        options = {"photometric": "rgb", "tile": (128, 128), **options}
        metadata = {"axes": "YXS", "PhysicalSizeX": 0.4, "PhysicalSizeXUnit": "µm"} if ome else None
        file.write(pixels, subifds=2, metadata=metadata, **options)
        for step in (2, 4):
            file.write(pixels[::step, ::step], subfiletype=1, metadata=None, **options)
    return path


def stated_mpp(image):
    """Micrometres per pixel by the most explicit tag that is believed; None without one."""
    return next((one.mpp[0] for one in image_states(image, "a.tif") if not one.placeholder), None)


STORED = {
    "tiled": {"tile": (128, 128)},
    "tiled deflate": {"tile": (64, 128), "compression": "deflate", "predictor": True},
    "tiled lzw big": {"tile": (128, 128), "compression": "lzw", "bigtiff": True},
    "strips": {"rowsperstrip": 50},
    "strips packbits": {"rowsperstrip": 37, "compression": "packbits"},
    "jpeg2000 lossless": {"tile": (128, 128), "compression": "jpeg2000"},
    "big endian": {"tile": (128, 128), "byteorder": ">"},
}


@pytest.mark.parametrize("kind", STORED)
def test_regions_are_exact_however_the_pixels_are_stored(tmp_path, pixels, kind):
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", **STORED[kind])
    image = open_image(tmp_path / "a.tif")
    assert isinstance(image, TiffImage)
    assert (image.shape, image.dtype) == ((390, 531, 3), np.uint8)
    for y0, y1, x0, x1 in [(0, 390, 0, 531), (100, 300, 120, 260), (0, 1, 530, 531), (127, 129, 127, 129)]:
        np.testing.assert_array_equal(image[y0:y1, x0:x1], pixels[y0:y1, x0:x1])
    assert image[5:5, 0:9].shape == (0, 9, 3)
    np.testing.assert_array_equal(image[380:900, -20:], pixels[380:900, -20:])


def test_planes_grey_sixteen_bits_and_alpha(tmp_path, pixels):
    tile = {"tile": (128, 128)}
    tifffile.imwrite(
        tmp_path / "planar.tif", pixels.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", **tile
    )
    np.testing.assert_array_equal(TiffImage(tmp_path / "planar.tif")[90:200, 100:300], pixels[90:200, 100:300])
    tifffile.imwrite(tmp_path / "channels.ome.tif", pixels.transpose(2, 0, 1), metadata={"axes": "CYX"}, **tile)
    np.testing.assert_array_equal(TiffImage(tmp_path / "channels.ome.tif")[90:200, 100:300], pixels[90:200, 100:300])
    tifffile.imwrite(tmp_path / "grey.tif", pixels[..., 0], **tile)
    np.testing.assert_array_equal(TiffImage(tmp_path / "grey.tif")[:, :], np.repeat(pixels[..., :1], 3, 2))
    tifffile.imwrite(tmp_path / "16.tif", pixels.astype(np.uint16) * 257, photometric="rgb", **tile)
    np.testing.assert_array_equal(TiffImage(tmp_path / "16.tif")[:, :], pixels)
    clear = np.concatenate([pixels, np.zeros((390, 531, 1), np.uint8)], axis=2)
    tifffile.imwrite(tmp_path / "rgba.tif", clear, photometric="rgb", extrasamples=["unassalpha"], **tile)
    assert TiffImage(tmp_path / "rgba.tif")[0:9, 0:9].min() == 255


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_every_mode_of_pillow_is_what_pillow_shows(tmp_path, pixels, mode, suffix):
    shown = Image.fromarray(pixels)
    if mode == "I;16":
        stored, shown = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), shown.getchannel(0).convert("RGB")
    else:
        stored = shown.quantize(256) if mode == "P" else shown.convert(mode)
        shown = stored.convert("RGB")
    if suffix == "png" and mode in ("CMYK", "YCbCr"):
        pytest.skip("PNG has no such mode")
    stored.save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(open_image(tmp_path / f"a.{suffix}")[:, :], np.asarray(shown))


def test_white_is_zero_and_a_sample_that_is_no_opacity(tmp_path, pixels):
    grey = np.repeat(pixels[..., :1], 3, 2)
    tifffile.imwrite(tmp_path / "white.tif", 255 - pixels[..., 0], photometric="miniswhite", tile=(128, 128))
    np.testing.assert_array_equal(TiffImage(tmp_path / "white.tif")[:, :], grey)
    mask = np.concatenate([pixels, np.zeros((390, 531, 1), np.uint8)], axis=2)
    tifffile.imwrite(tmp_path / "mask.tif", mask, photometric="rgb", extrasamples=["unspecified"], tile=(128, 128))
    np.testing.assert_array_equal(TiffImage(tmp_path / "mask.tif")[:, :], pixels)


@pytest.mark.parametrize("order", ["<", ">"])
def test_one_uncompressed_strip_is_not_read_whole(tmp_path, pixels, order, monkeypatch):
    tifffile.imwrite(tmp_path / "strip.tif", pixels, photometric="rgb", rowsperstrip=390, byteorder=order)
    tifffile.imwrite(tmp_path / "16.tif", pixels.astype(np.uint16) * 257, photometric="rgb", byteorder=order)
    monkeypatch.setattr("delst_hf.data.tiff._LARGEST_CHUNK", 1000)
    for name in ("strip.tif", "16.tif"):
        image = TiffImage(tmp_path / name)
        monkeypatch.setattr(image, "_decode", None)
        np.testing.assert_array_equal(image[90:200, 100:300], pixels[90:200, 100:300])
    tifffile.imwrite(tmp_path / "lzw.tif", pixels, photometric="rgb", rowsperstrip=390, compression="lzw")
    with pytest.raises(ValueError, match=r"lzw\.tif is not a tiled TIFF.*vips tiffsave"):
        TiffImage(tmp_path / "lzw.tif")


def test_axes_of_one_and_the_largest_of_several_series(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "z.ome.tif", pixels[None], photometric="rgb", metadata={"axes": "ZYXS"})
    tifffile.imwrite(tmp_path / "tz.tif", pixels[None, None], photometric="rgb", metadata={"axes": "TZYXS"})
    tifffile.imwrite(tmp_path / "planes.tif", pixels.transpose(2, 0, 1), photometric="minisblack")
    with tifffile.TiffWriter(tmp_path / "series.tif") as file:
        file.write(pixels[::4, ::4], photometric="rgb", metadata=None)
        file.write(pixels, photometric="rgb", tile=(128, 128), metadata=None)
        file.write(pixels[::8, ::8, 0], photometric="minisblack", metadata=None)
    for name in ("z.ome.tif", "tz.tif", "planes.tif", "series.tif"):
        np.testing.assert_array_equal(TiffImage(tmp_path / name)[:, :], pixels, err_msg=name)


@pytest.mark.parametrize(("size", "unit", "expected"), [(0.4, "µm", 0.4), (400.0, "nm", 0.4), (4e-4, "mm", 0.4),
                                                       (1.0, "pixel", None), (352.8, "µm", None)])  # fmt: skip
def test_the_scale_of_an_ome_tiff_has_a_unit(tmp_path, pixels, size, unit, expected):
    metadata = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeXUnit": unit}
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, photometric="rgb", metadata=metadata)
    assert stated_mpp(TiffImage(tmp_path / "a.ome.tif")) == (None if expected is None else pytest.approx(expected))


def test_the_scale_is_that_of_the_slide_and_not_of_its_label(tmp_path, pixels):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        for step, size in ((4, 9.0), (1, 0.25)):
            file.write(pixels[::step, ::step], photometric="rgb", metadata={"axes": "YXS", "PhysicalSizeX": size})
    assert stated_mpp(TiffImage(tmp_path / "a.ome.tif")) == 0.25


@pytest.mark.parametrize("colour", ["rgb", "ycbcr"])
def test_jpeg_tiles_are_decoded_in_their_own_colours(tmp_path, pixels, colour):
    options = {"compression": "jpeg", "compressionargs": {"level": 98, "subsampling": (1, 1)}, "tile": (128, 128)}
    if colour == "rgb":
        options["compressionargs"]["outcolorspace"] = "rgb"
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", **options)
    error = np.abs(TiffImage(tmp_path / "a.tif")[:, :].astype(int) - pixels)
    assert error.mean() < 2


@pytest.mark.parametrize("tag", ["rgb", "ycbcr"])
@pytest.mark.parametrize("compression", [33003, 33005])
def test_jpeg_2000_of_aperio_is_read_by_its_compression_and_not_by_the_tag(tmp_path, pixels, compression, tag):
    """33003 holds YCbCr, 33005 RGB, whatever the photometric interpretation says; other programs mean what they say."""
    imagecodecs = pytest.importorskip("imagecodecs")
    whole = np.pad(pixels, ((0, 512 - 390), (0, 768 - 531), (0, 0)), constant_values=255)

    def written(name, description, colour):
        tiles = [np.ascontiguousarray(np.asarray(Image.fromarray(whole[y : y + 256, x : x + 256]).convert(colour)))
                 for y in (0, 256) for x in (0, 256, 512)]  # fmt: skip
        encoded = (imagecodecs.jpeg2k_encode(tile, level=0, codecformat="j2k", mct=colour == "RGB") for tile in tiles)
        subsampling = {"subsampling": (1, 1)} if tag == "ycbcr" else {}
        with tifffile.TiffWriter(tmp_path / name) as file:
            file.write(encoded, shape=pixels.shape, dtype=np.uint8, tile=(256, 256), photometric=tag, **subsampling,
                       compression=compression, description=description, metadata=None, software=False)  # fmt: skip
        return np.asarray(open_image(tmp_path / name)[:, :]).astype(int)

    aperio = written(
        "a.svs", "Aperio Image Library v11.2.1 \r\n531x390|MPP = 0.5", "YCbCr" if compression == 33003 else "RGB"
    )
    assert np.abs(aperio - pixels).max() <= 3
    other = written("a.tif", "another program", "YCbCr" if tag == "ycbcr" else "RGB")
    assert np.abs(other - pixels).max() <= 3


@pytest.mark.parametrize("ome", [False, True])
def test_levels_of_a_pyramid(tmp_path, pixels, ome):
    path = write_pyramid(tmp_path / "p.tif", pixels, ome=ome)
    image = TiffImage(path)
    assert image.level_shapes == [(390, 531), (195, 266), (98, 133)]
    np.testing.assert_array_equal(TiffImage(path, level=1)[50:90, 20:200], pixels[::2, ::2][50:90, 20:200])
    np.testing.assert_array_equal(image.overview(150)[:, :], pixels[::2, ::2])
    np.testing.assert_array_equal(image.overview(133)[:, :], pixels[::4, ::4])
    assert image.overview(300) is image
    assert stated_mpp(image) == (0.4 if ome else None)
    with pytest.raises(ValueError, match="no level 3. It has 3"):
        TiffImage(path, level=3)


def test_the_scale_is_read_from_aperio_and_from_the_resolution(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "a.tif", pixels, description="Aperio Image Library |AppMag = 20|MPP = 0.4990")
    assert stated_mpp(TiffImage(tmp_path / "a.tif")) == 0.499
    tifffile.imwrite(tmp_path / "b.tif", pixels, resolution=(20000, 20000), resolutionunit="CENTIMETER")
    assert stated_mpp(TiffImage(tmp_path / "b.tif")) == pytest.approx(0.5)
    tifffile.imwrite(tmp_path / "c.tif", pixels, resolution=(72, 72), resolutionunit="INCH")
    assert stated_mpp(TiffImage(tmp_path / "c.tif")) is None


def test_only_the_tiles_of_the_region_are_decoded_and_few_are_kept(tmp_path, pixels, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(128, 128))
    image = TiffImage(tmp_path / "a.tif", cache_bytes=4 * 128 * 128 * 3)
    decoded = []
    real = TiffImage._decode
    monkeypatch.setattr(
        TiffImage, "_decode", lambda self, page, index: decoded.append(index) or real(self, page, index)
    )
    image[130:140, 130:140]
    assert decoded == [6]
    image[100:140, 100:140]
    assert sorted(decoded[1:]) == [0, 1, 5]
    assert sum(tile.nbytes for tile in image._cache.values()) <= image.cache_bytes
    image[:, :]
    assert sum(tile.nbytes for tile in image._cache.values()) <= image.cache_bytes


def test_an_image_travels_to_another_process(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(128, 128))
    again = pickle.loads(pickle.dumps(TiffImage(tmp_path / "a.tif")))  # noqa: S301
    np.testing.assert_array_equal(again[3:99, 5:300], pixels[3:99, 5:300])


def test_patches_of_a_tiled_slide_are_those_of_the_array(tmp_path, pixels):
    import pandas as pd
    import scipy.sparse as sp

    write_pyramid(tmp_path / "a.tif", pixels)
    spots = pd.DataFrame({"x": [100.3, 5.0, 520.0, 250.0], "y": [90.0, 380.5, 3.0, 130.7]}, index=list("abcd"))
    patches = []
    for image in (pixels, open_image(tmp_path / "a.tif")):
        slide = Slide("S", image, spots, sp.csr_matrix(np.ones((4, 1), int)), make_genes(["G"]), 0.5, "P")
        slide.validate()
        patches.append([np.asarray(patch) for patch in slide.patches(40, 32)])
    np.testing.assert_array_equal(*patches)


@pytest.mark.parametrize("keep", [0.5, 0.99])
@pytest.mark.parametrize("kind", ["tiled", "strips"])
def test_a_truncated_file_is_refused(tmp_path, pixels, keep, kind):
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", **STORED[kind])
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(ValueError, match=r"a\.tif.* truncated.*Download or|a\.tif.*damaged or incomplete: download"):
        open_image(tmp_path / "a.tif")


def test_a_damaged_tile_is_named(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(128, 128), compression="deflate")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        start = file.pages[0].dataoffsets[7]
    with (tmp_path / "a.tif").open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * 64)
    image = open_image(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"cannot decode tile 7 of .*a\.tif.*download or export it again"):
        image[:, :]


def test_what_is_no_histology_image_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "stack.ome.tif", np.zeros((5, 64, 64), np.uint16), metadata={"axes": "CYX"})
    with pytest.raises(ValueError, match="5 channels in separate planes. Allowed: 1 or 3"):
        open_image(tmp_path / "stack.ome.tif")
    tifffile.imwrite(tmp_path / "float.tif", np.full((64, 64), 1e5, np.float32))
    with pytest.raises(ValueError, match="float32 values from 100000 to 100000. Allowed: uint8"):
        open_image(tmp_path / "float.tif")


def test_the_first_bytes_tell_what_a_file_is(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "tiff.png", pixels, photometric="rgb", tile=(128, 128))
    np.testing.assert_array_equal(open_image(tmp_path / "tiff.png")[:, :], pixels)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_image(tmp_path / "a.png"), pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)


def test_an_unreadable_file_is_named(tmp_path, pixels, monkeypatch):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # the tests may run as root, who may read anything
    with pytest.raises(PermissionError, match=r"image .*a\.png may not be read.*chmod u\+r"):
        open_image(tmp_path / "a.png")


def test_a_scanners_format_needs_openslide(tmp_path, pixels, monkeypatch):
    (tmp_path / "a.mrxs").write_bytes(b"no slide")
    monkeypatch.setitem(__import__("sys").modules, "openslide", None)
    with pytest.raises(ImportError, match=r"needs openslide: pip install 'delst-hf\[openslide\]'"):
        open_image(tmp_path / "a.mrxs")


def test_openslide_regions_are_exact(tmp_path, pixels):
    pytest.importorskip("openslide", reason="the optional extra openslide is not installed")
    from delst_hf.data.openslide_image import OpenSlideImage

    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(128, 128))  # openslide's "generic-tiff"
    image = OpenSlideImage(tmp_path / "a.tif")
    assert image.shape == (390, 531, 3)
    np.testing.assert_array_equal(image[100:300, 120:260], pixels[100:300, 120:260])
    np.testing.assert_array_equal(image.overview(200)[:, :], pixels)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(image))[0:9, 0:7], pixels[0:9, 0:7])  # noqa: S301
    (tmp_path / "b.mrxs").write_bytes(b"no slide")
    with pytest.raises(ValueError, match=r"openslide cannot read .*b\.mrxs"):
        open_image(tmp_path / "b.mrxs")
