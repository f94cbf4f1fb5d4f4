"""What tests/test_torture_*.py run and kill: commands of a user, small."""

import time
from functools import partial
from pathlib import Path

from delst_hf.data.dataset import merge_datasets, write_dataset
from delst_hf.data.toy import make_toy_slide

SIZE = {"patch_um": 40, "patch_px": 20}
_JOBS = [partial(make_toy_slide, name, spots_per_side=3, num_genes=20, image_px=90) for name in ("toy_A1", "toy_B1")]


def prepare(output, pause=0.0, stop_before_join=False, several_files=False, **options):
    """`delst prepare` of two slides, which keeps finished ones; of several files each, as --shard-mb makes of large ones."""
    from delst_hf.data import dataset, part

    if several_files:
        shards, part._ROWS_PER_GROUP = part._Shards, 4
        part._Shards = lambda folder, slide_id, limit: shards(folder, slide_id, 1)

    joined = dataset.join_parts

    def join(*arguments, **facts):
        if stop_before_join:
            raise KeyboardInterrupt
        time.sleep(pause)
        return joined(*arguments, **facts)

    dataset.join_parts = join
    write_dataset(_JOBS, output, resume=True, **SIZE, **options)


def prepare_over(output, _):
    """The same over a dataset that is there."""
    prepare(output, overwrite=True)


def merge_over(output, folder):
    """`delst merge --overwrite`."""
    merge_datasets([folder], output, overwrite=True)


def save_over(folder, number):
    """A checkpoint folder with weights of their own in the place of another."""
    import torch
    from conftest import make_tiny_model
    from transformers import ViTImageProcessorPil

    from delst_hf import DelstGeneFeatureExtractor, DelstProcessor
    from delst_hf.hub.checkpoint_folder import save_checkpoint_folder

    names = [f"TOY{i}" for i in range(4)]
    processor = DelstProcessor(ViTImageProcessorPil(size={"height": 32, "width": 32}), DelstGeneFeatureExtractor(names))
    model = make_tiny_model(4)
    with torch.no_grad():
        model.logit_scale.fill_(float(number))
    save_checkpoint_folder(folder, model, processor, {"number": number})


def small_slide(name, seed=0):
    """A slide of `delst prepare toy`, small."""
    return make_toy_slide(name, spots_per_side=3, num_genes=20, image_px=90, seed=seed)


def slow_slide(name, started):
    """A slide that takes minutes to read."""
    Path(started, name).touch()
    time.sleep(300)
    return make_toy_slide(name, spots_per_side=3, num_genes=20, image_px=90)


def prepare_in_processes(output):
    """Two slow slides, a process each."""
    jobs = [partial(slow_slide, name, str(Path(output).parent)) for name in ("toy_A1", "toy_B1")]
    write_dataset(jobs, output, resume=True, num_proc=2, **SIZE)
