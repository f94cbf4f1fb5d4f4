import io

import numpy as np
import PIL.Image
import pytest
import torch

from delst_hf import DelstCollator
from delst_hf.data.study import SpotRows


@pytest.fixture
def collator(tiny_processor, toy_study):
    return DelstCollator(tiny_processor, toy_study.gene_names, toy_study.slide_ids, toy_study.measured_genes)


def test_batch_equals_the_processor(collator, tiny_processor, toy_study):
    rows = [toy_study.spots[i] for i in (0, 40, 80)]
    batch = collator(rows)
    counts = toy_study.counts(toy_study.spots)[[0, 40, 80]]
    expected = tiny_processor(
        images=[row["image"] for row in rows], counts=counts, gene_names=toy_study.gene_names, return_tensors="pt"
    )
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)
    torch.testing.assert_close(batch["gene_values"], expected["gene_values"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(batch["gene_mask"], expected["gene_mask"])
    torch.testing.assert_close(batch["level"], expected["level"])
    assert batch["labels"].tolist() == [0, 40, 80]
    assert batch["slide_ids"].tolist() == [0, 1, 2]
    assert batch["return_loss"] is True


def test_undecoded_images_give_the_same_batch(collator, toy_study):
    from datasets import Image

    undecoded = toy_study.spots.cast_column("image", Image(decode=False))
    assert isinstance(undecoded[0]["image"], dict)
    torch.testing.assert_close(
        collator([undecoded[0]])["pixel_values"], collator([toy_study.spots[0]])["pixel_values"], rtol=0, atol=0
    )


def encoded(pixels: np.ndarray, mode: str = "RGB", **options) -> dict:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(file, **({"format": "JPEG"} | options))
    return {"bytes": file.getvalue(), "path": None}


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 95, "subsampling": 0},
        {"quality": 40, "subsampling": 2},
        {"quality": 75, "subsampling": 1, "progressive": True},
        {"mode": "L"},
        {"mode": "CMYK"},
        {"format": "PNG"},
        {"format": "PNG", "mode": "P"},
        {"format": "WEBP", "lossless": True},
    ],
    ids=str,
)
def test_pixels_are_those_of_pillow(tiny_processor, toy_study, options):
    noise = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    patches = [np.asarray(PIL.Image.fromarray(each).resize((32, 32), PIL.Image.Resampling.BICUBIC)) for each in noise]
    cells = [encoded(patch, **options) for patch in patches]
    collator = DelstCollator(tiny_processor, toy_study.gene_names, toy_study.slide_ids, defer_pixels=True)
    found = collator.pixel_values(cells)
    assert found.dtype == torch.uint8 and found.float().std() > 20
    for pixels, cell in zip(found, cells, strict=True):
        expected = np.asarray(PIL.Image.open(io.BytesIO(cell["bytes"])).convert("RGB"))
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


def test_one_patch_of_another_size_sends_the_batch_to_the_processor(collator, tiny_processor):
    cells = [encoded(np.full((side, side, 3), 60 * i, dtype=np.uint8)) for i, side in enumerate((32, 48, 32))]
    images = [PIL.Image.open(io.BytesIO(cell["bytes"])) for cell in cells]
    expected = tiny_processor.image_processor(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(collator.pixel_values(cells), expected)


def test_broken_patches_are_refused(collator):
    """libjpeg itself would fill up a patch that was cut off with grey and say nothing."""
    whole = encoded(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))["bytes"]
    for data, message in (
        (whole[:-200], "truncated"),
        (b"no image at all", "cannot identify"),
        (b"\xff\xd8\xff\xd9", "cannot identify"),
    ):
        with pytest.raises(OSError, match=message):
            collator.pixel_values([{"bytes": whole}, {"bytes": data}])


def test_patches_of_another_size_are_resized(tiny_processor, toy_study):
    tiny_processor.image_processor.size = {"height": 16, "width": 16}
    collator = DelstCollator(tiny_processor, toy_study.gene_names, toy_study.slide_ids)
    row = toy_study.spots[0]
    expected = tiny_processor.image_processor([row["image"]], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(collator([row])["pixel_values"], expected)


@pytest.mark.parametrize("switch", ["do_normalize", "do_rescale"])
def test_fused_pass_obeys_the_image_processor(tiny_processor, toy_study, switch):
    setattr(tiny_processor.image_processor, switch, False)
    collator = DelstCollator(tiny_processor, toy_study.gene_names, toy_study.slide_ids)
    row = toy_study.spots[5]
    expected = tiny_processor.image_processor([row["image"]], return_tensors="pt")["pixel_values"].float()
    torch.testing.assert_close(collator([row])["pixel_values"], expected, rtol=1e-6, atol=1e-6)


def test_level_column_wins_over_the_number_of_genes(collator, toy_study):
    row = toy_study.spots[0]
    assert collator([row])["level"].item() == row["n_genes"]
    assert collator([{**row, "level": 7.0}])["level"].item() == 7.0


def test_genes_outside_a_panel_are_masked(tiny_processor, toy_study):
    panels = dict(toy_study.measured_genes)
    panels["toy_A2"] = np.arange(10)
    collator = DelstCollator(tiny_processor, toy_study.gene_names, toy_study.slide_ids, panels)
    mask = collator([toy_study.spots[0], toy_study.spots[40]])["gene_mask"]
    # The vocabulary is every second gene, so the first ten genes hold five of it.
    assert mask[0].all() and mask[1].tolist() == [True] * 5 + [False] * (mask.shape[1] - 5)


def test_genes_of_one_name_are_summed(tiny_processor, toy_study):
    names = toy_study.gene_names
    collator = DelstCollator(tiny_processor, [*names, names[0]], ["s"])
    row = {"gene_indices": [0, 1, len(names)], "gene_counts": [1, 10, 4], "total_counts": 15}
    assert collator.gene_values([row])[0, 0] == pytest.approx(np.log1p(5 * 1e4 / 15))


@pytest.mark.parametrize("level", [False, True])
def test_an_arrow_table_gives_the_batch_of_its_rows(collator, toy_study, level):
    spots = toy_study.spots.add_column("level", np.arange(108.0)) if level else toy_study.spots
    chosen = [80, 3, 41, 3]
    expected = collator([spots[i] for i in chosen])
    for spots_in_order in (spots, spots.select(range(108))):  # with and without an indices mapping
        found = collator(SpotRows(spots_in_order).__getitems__(chosen))
        assert set(found) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    assert found["level"].tolist() == (chosen if level else [toy_study.spots[i]["n_genes"] for i in chosen])
    assert len(SpotRows(spots)) == 108 and SpotRows(spots)[7]["spot_index"].to_pylist() == [7]


def test_deferred_patches_are_bytes_until_finished(tiny_processor, toy_study):
    names, slides = toy_study.gene_names, toy_study.slide_ids
    rows = [toy_study.spots[i] for i in (0, 50)]
    deferred = DelstCollator(tiny_processor, names, slides, defer_pixels=True)
    batch = deferred(rows)
    assert batch["pixel_values"].dtype == torch.uint8
    assert torch.equal(batch["pixel_values"][1], torch.from_numpy(np.array(rows[1]["image"])).permute(2, 0, 1))
    expected = DelstCollator(tiny_processor, names, slides)(rows)
    finished = deferred.finish(batch)
    assert set(finished) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(finished[name], value, rtol=0, atol=0)
    # What needs no finishing passes through: a finished batch, and patches that had to be resized.
    assert torch.equal(deferred.finish(finished)["pixel_values"], finished["pixel_values"])
    # Patches that are turned as well, and those that stay upright.
    choices = torch.tensor([[1, 0], [1, 0], [0, 0]]).bool().view(3, 2, 1, 1, 1)
    for given in (batch, finished):
        turned = deferred.finish(given, choices)["pixel_values"]
        assert torch.equal(turned[0], expected["pixel_values"][0].transpose(-2, -1).flip(-1))
        assert torch.equal(turned[1], expected["pixel_values"][1])
    tiny_processor.image_processor.size = {"height": 16, "width": 16}
    resized = DelstCollator(tiny_processor, names, slides, defer_pixels=True)(rows)["pixel_values"]
    assert resized.dtype == torch.float32 and resized.shape[-1] == 16
