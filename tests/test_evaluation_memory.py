"""What an evaluation holds does not grow with the bytes of its images: they are read batch by batch.

`tracemalloc` counts what numpy and Python hold, and a file that Arrow reads by Python's `open` is bytes of Python.
"""

import dataclasses
import gc
import tracemalloc

import numpy as np
import pytest
from conftest import make_tiny_model, make_tiny_processor

from delst_hf.data import part
from delst_hf.data.dataset import write_dataset
from delst_hf.data.folder import open_folder
from delst_hf.data.study import Study, load_spots
from delst_hf.data.toy import make_toy_slide
from delst_hf.evaluation import results
from delst_hf.evaluation.evidence import Space
from delst_hf.evaluation.protocols.domains import spatial_domains
from delst_hf.evaluation.protocols.reliability import distance_to_reference, retrieval_certainty
from delst_hf.evaluation.run import Evaluation, evaluate_checkpoint

SIDE, PATCH = 10, 96
TRAIN, TEST = "toy_A1", "toy_B1"
HOW = Evaluation(protocols=("retrieval",), seeds=(0,), num_genes=5, resamples=5, batch_size=8, progress=False)


def write_study(folder, noise):
    """Write two slides whose patches are noise, 20 kB each, or of one colour."""
    slides = []
    for number, name in enumerate((TRAIN, TEST)):
        slide = make_toy_slide(name, spots_per_side=SIDE, image_px=25 * SIDE, num_genes=20)
        shape = (25 * SIDE, 25 * SIDE, 3)
        image = np.random.default_rng(number).integers(0, 256, shape) if noise else np.full(shape, (200, 120, 180))
        slides.append(dataclasses.replace(slide, image=image.astype(np.uint8)))
    write_dataset(slides, folder, patch_px=PATCH, patch_um=192, off_tissue="allow")
    return [path.stat().st_size for path in (folder / "spots").glob("*.parquet")]


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Folders of both kinds, in groups of five rows, and the bytes of their files."""
    folder = tmp_path_factory.mktemp("memory")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(part, "_ROWS_PER_GROUP", 5)
        return {name: (folder / name, write_study(folder / name, name == "noise")) for name in ("flat", "noise")}


def held_by_an_evaluation(folder, monkeypatch):
    """Return the most bytes held while a study is opened, evaluated and recorded."""
    monkeypatch.setattr(results, "_FINGERPRINT_BATCH", 8)
    gc.collect()
    tracemalloc.start()
    try:
        study = Study.load(folder)
        processor = make_tiny_processor(study)
        model = make_tiny_model(len(processor.feature_extractor.vocabulary))
        found = evaluate_checkpoint(model, processor, study, [TRAIN], [TEST], HOW)
        results.results_record(found, study.subset([TRAIN, TEST]))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_evaluation_holds_no_more_where_images_are_larger(studies, monkeypatch):
    (flat_folder, small), (noise_folder, large) = studies["flat"], studies["noise"]
    held_by_an_evaluation(flat_folder, monkeypatch)  # modules, caches
    flat, noise = (held_by_an_evaluation(folder, monkeypatch) for folder in (flat_folder, noise_folder))
    more = sum(large) - sum(small)
    assert more > 2_000_000
    assert noise - flat < more / 4, f"{more} bytes of images more, {noise - flat} held more"


def test_no_file_is_read_ahead_when_a_study_is_first_opened(studies, tmp_path):
    folder, sizes = studies["noise"]
    found = open_folder(folder)
    load_spots(found, cache_dir=str(tmp_path / "modules"))
    gc.collect()
    tracemalloc.start()
    try:
        load_spots(found, cache_dir=str(tmp_path / "cache"))
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert min(sizes) > 1_000_000
    assert held < min(sizes) / 4, f"files of {sizes} bytes, {held} held"


SPOTS = 3500
SQUARE = 8 * SPOTS**2  # bytes of one matrix of all pairs


def _labels():
    return np.array(["a", "b"])[np.arange(SPOTS) % 2]


@pytest.mark.parametrize(
    "score",
    [
        lambda points: distance_to_reference(points, points),
        lambda points: retrieval_certainty(Space(points, points, "lorentz", 1.0), np.arange(SPOTS), np.arange(SPOTS)),
        lambda points: spatial_domains(points, points[:, :2], _labels(), _labels(), num_domains=2),
    ],
    ids=["distance to the reference", "certainty of retrieval", "domains"],
)
def test_scores_of_all_pairs_of_spots_are_never_held_at_once(score):
    points = np.random.default_rng(0).normal(size=(SPOTS, 4))
    gc.collect()
    tracemalloc.start()
    try:
        score(points)
        assert tracemalloc.get_traced_memory()[1] < 0.85 * SQUARE
    finally:
        tracemalloc.stop()
