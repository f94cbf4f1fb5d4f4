"""What an evaluation holds does not grow with the bytes of its images: they are read batch by batch."""

import dataclasses
import gc
import tracemalloc

import numpy as np
import pyarrow as pa
from conftest import make_tiny_model, make_tiny_processor

from delst_hf.data.dataset import write_dataset
from delst_hf.data.study import Study
from delst_hf.data.toy import make_toy_slide
from delst_hf.evaluation import results
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
    return sum(path.stat().st_size for path in (folder / "spots").glob("*.parquet"))


def held_by_an_evaluation(folder, monkeypatch):
    """Return the most bytes that Python and numpy hold while a study is opened, evaluated and recorded, and what Arrow held at
    most since the process began."""
    monkeypatch.setattr(results, "_FINGERPRINT_BATCH", 8)
    gc.collect()
    tracemalloc.start()
    try:
        study = Study.load(folder)
        processor = make_tiny_processor(study)
        model = make_tiny_model(len(processor.feature_extractor.vocabulary))
        found = evaluate_checkpoint(model, processor, study, [TRAIN], [TEST], HOW)
        results.results_record(found, study.subset([TRAIN, TEST]))
        return np.array([tracemalloc.get_traced_memory()[1], pa.default_memory_pool().max_memory() or 0])
    finally:
        tracemalloc.stop()


def test_an_evaluation_holds_no_more_where_images_are_larger(tmp_path, monkeypatch):
    small, large = (write_study(tmp_path / name, noise) for name, noise in (("flat", False), ("noise", True)))
    held_by_an_evaluation(tmp_path / "flat", monkeypatch)  # modules, caches
    flat, noise = (held_by_an_evaluation(tmp_path / name, monkeypatch) for name in ("flat", "noise"))
    assert large - small > 2_000_000
    assert (noise - flat < (large - small) / 4).all(), f"{large - small} bytes of images more, {noise - flat} held more"
