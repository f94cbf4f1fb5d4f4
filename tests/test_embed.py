"""Embedding by several real processes: the order of the dataset, nothing twice, and the whole on the first one only."""

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from conftest import make_tiny_model, make_tiny_processor
from ranks import in_ranks

from delst_hf import DelstCollator
from delst_hf.data.study import Study
from delst_hf.evaluation.embed import embed
from delst_hf.pretraining.cached_features import cached_features


def prepared(data: str):
    study = Study.load(data)
    processor = make_tiny_processor(study)
    model = make_tiny_model(len(processor.feature_extractor.vocabulary))
    return model, study, DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes)


def work_of_one_rank(rank: int, ranks: int, folder: str, data: str) -> None:
    dist.init_process_group("gloo")
    assert dist.get_world_size() == ranks
    model, study, collator = prepared(data)
    found = {}
    for count in (50, 2, 108):  # uneven, fewer than processes, all
        spots = study.spots.select(range(count))
        found[count] = embed(model, spots, collator, batch_size=7, progress=False)
    features = cached_features(model, spots, collator, folder, batch_size=7, progress=False)
    if rank:
        assert all(len(array) == 0 for each in found.values() for array in vars(each).values())
    else:
        torch.save({count: vars(each) for count, each in found.items()}, f"{folder}/found.pt")
    np.save(f"{folder}/rank{rank}.npy", features)
    dist.destroy_process_group()


def test_three_processes_embed_as_one(toy_folder, tmp_path: Path):
    in_ranks(work_of_one_rank, 3, str(tmp_path), str(toy_folder), ranks=3)
    found = torch.load(tmp_path / "found.pt", weights_only=False)
    model, study, collator = prepared(str(toy_folder))
    expected = embed(model, study.spots, collator, progress=False)
    assert len(np.unique(expected.features[:, 0])) > 100, "rows alike would hide a wrong order"
    for count, arrays in found.items():
        for name, array in arrays.items():
            np.testing.assert_allclose(array, getattr(expected, name)[:count], rtol=1e-4, atol=1e-5)
    for rank in range(3):
        np.testing.assert_array_equal(np.load(tmp_path / f"rank{rank}.npy"), found[108]["features"])
    assert not list(tmp_path.glob("*.partial"))


def test_one_process_embeds_in_batches_of_any_size(toy_study, toy_folder):
    model, study, collator = prepared(str(toy_folder))
    whole = embed(model, study.spots, collator, batch_size=108, progress=False)
    parts = embed(model, study.spots, collator, batch_size=25, progress=False)
    np.testing.assert_allclose(parts.image_embeds, whole.image_embeds, rtol=1e-4, atol=1e-5)
    assert whole.image_embeds.dtype == np.float32 and len(whole.gene_embeds) == 108
