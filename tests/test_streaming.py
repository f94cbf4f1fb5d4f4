"""Training on spots that stay where they are: every spot once, the order from numbers alone, resumed to the bit."""

import itertools
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_client import answer_of
from hub_server import HubServer
from ranks import in_ranks
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from delst_hf import DataArguments, DelstTrainingArguments, ModelArguments, Study
from delst_hf.data.dataset import write_dataset
from delst_hf.data.splits import SplitRequest
from delst_hf.data.spot_files import STRETCH_ROWS, SpotFile, SpotFiles
from delst_hf.data.spot_stream import EpochOrder, Share, SpotStream
from delst_hf.data.streamed import StreamedStudy
from delst_hf.data.toy import make_toy_slide
from delst_hf.pretraining.run import assemble, main, open_study

pytestmark = pytest.mark.usefixtures("without_curves")

VISION = '{"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}'
SIZES = {"toy_A1": 6, "toy_A2": 13, "toy_B1": 11}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three slides of 36, 169 and 121 spots: 5 stretches, of which no number of processes gets as many spots each."""
    path = tmp_path_factory.mktemp("streamed") / "data"
    slides = (make_toy_slide(name, spots_per_side=side, image_px=400) for name, side in SIZES.items())
    write_dataset(slides, path, patch_um=112, patch_px=32)
    return path


@pytest.fixture(scope="module")
def streamed(folder):
    return StreamedStudy.load(folder)


@pytest.fixture(scope="module")
def loaded(folder):
    return Study.load(folder)


def indices(batches) -> list[int]:
    return [index for batch in batches for index in batch["spot_index"].to_pylist()]


def run_of(folder, output, streaming=True, data=None, **training):
    """A trainer as the script puts it together."""
    data = DataArguments(
        str(folder),
        test_slides="toy_B1",
        **{"streaming": streaming, "shuffle_buffer": 64, "num_genes": 20, **(data or {})},
    )
    model = ModelArguments(vision_config=VISION, image_size=32, gene_hidden_size=16, projection_dim=8)
    settings = {"max_steps": 8, "per_device_train_batch_size": 16, "save_strategy": "no", **training}
    arguments = DelstTrainingArguments(
        str(output), report_to="none", disable_tqdm=True, use_cpu=True, logging_steps=4, **settings
    )
    return assemble(open_study(data, arguments), data, model, arguments)


def test_rows_counts_and_subsets_are_those_of_the_study(streamed, loaded):
    assert streamed.spots.num_rows == len(loaded.spots) == 326 and streamed.spots.num_stretches == 5
    for slides in (["toy_A1"], ["toy_B1", "toy_A1"], list(SIZES)):
        here, there = streamed.subset(slides), loaded.subset(slides)
        rows = list(here.tables(batch_size=50))
        assert indices(rows) == there["spot_index"][:] and {len(table) for table in rows[:-1]} <= {50}
        images = [image["bytes"] for table in rows for image in table["image"].to_pylist()]
        assert images == [image["bytes"] for image in there.with_format("arrow")["image"].to_pylist()]
        for one, other in zip(streamed.count_batches(here, 60), loaded.count_batches(there, 60), strict=True):
            assert (one != other).nnz == 0
    with pytest.raises(ValueError, match="No slide .*Did you mean 'toy_A"):
        streamed.subset(["toy_A"])


@pytest.mark.parametrize(
    ("ranks", "drop_last", "workers"), list(itertools.product((1, 2, 3), (True, False), (1, 2, 5))),
)  # fmt: skip
def test_every_spot_comes_once_in_an_epoch(streamed, ranks, drop_last, workers):
    seen, steps = [], set()
    for rank in range(ranks):
        stream = SpotStream(streamed.spots, 16, 48, 3, rank, ranks, drop_last)
        shares = [list(stream._read(stream.share(2, worker, workers), 0)) for worker in range(workers)]
        counts = [len(batches) for batches in shares]
        assert counts == [len(range(worker, len(stream), workers)) for worker in range(workers)]
        # In the turn of the workers all batches are whole but the last.
        turns = [batch for turn in itertools.zip_longest(*shares) for batch in turn if batch is not None]
        assert {len(batch) for batch in turns[:-1]} == {16}
        seen += indices(turns)
        steps.add(len(stream))
    assert len(steps) == 1  # or a process would wait for ever for one that has no more batches
    if drop_last:
        assert len(set(seen)) == len(seen) == steps.pop() * 16 * ranks
    else:
        assert sorted(set(seen)) == list(range(326)) and len(seen) - 326 < ranks


def test_epochs_and_seeds_have_orders_of_their_own_and_mix_slides(streamed):
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        stream = SpotStream(streamed.spots, 16, 320, seed)
        stream.set_epoch(epoch)
        batches = list(stream)
        orders.append(indices(batches))
        assert orders[-1] == indices(stream)
        # A batch of one slide alone, where slides are read one after the other, would be a batch of hard negatives.
        assert np.mean([len(set(batch["slide_id"].to_pylist())) for batch in batches]) > 2
    assert orders[0] != orders[1] != orders[2] and sorted(orders[0]) != orders[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_from_its_state(streamed, workers):
    whole = SpotStream(streamed.spots, 16, 64, 5, rank=1, ranks=2)
    whole.set_epoch(1)
    rest = SpotStream(streamed.spots, 16, 64, 5, rank=1, ranks=2)
    rest.load_state_dict({"epoch": 1, "batches": 7})
    assert rest.state_dict() == {"epoch": 1, "batches": 7}
    tables = [
        list(DataLoader(stream, batch_size=None, collate_fn=_same, num_workers=workers)) for stream in (whole, rest)
    ]
    assert len(tables[0]) == len(tables[1]) == len(whole) == 10
    assert tables[1][:7] == [None] * 7
    assert all(one.equals(other) for one, other in zip(tables[0][7:], tables[1][7:], strict=True))
    rest.set_epoch(2)
    assert rest.state_dict() == {"epoch": 2, "batches": 0}


def _same(table):
    return table


def test_what_was_seen_is_not_read_again(streamed, monkeypatch):
    read = []
    original = SpotFiles.read
    monkeypatch.setattr(SpotFiles, "read", lambda self, some, *rest: read.extend(some) or original(self, some, *rest))
    stream = SpotStream(streamed.spots, 16, 64)
    stream.load_state_dict({"epoch": 0, "batches": 17})
    assert sum(batch is not None for batch in stream) == 3
    assert sum(one.stop - one.start for one in read) == 4 * 16  # the block that was being given: batches 17 to 20


def test_the_order_of_a_large_study_takes_a_fraction_of_a_byte_per_spot():
    rows = 4000
    spots = SpotFiles([SpotFile(f"spots/s{i}.parquet", rows, i * rows) for i in range(5_000)], num_genes=1)
    tracemalloc.start()
    share = Share(0, 0, 3_000_000, 3_000_512)
    order = EpochOrder(spots, 0, share)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / spots.num_rows < 0.3  # a list of positions takes 8
    found = order.stretches(3_000_000, 3_000_512)
    assert sum(one.stop - one.start for one in found) == 512 and len({one.file for one in found}) > 3
    assert max(one.stop - one.start for one in found) == STRETCH_ROWS


def test_a_run_reads_the_genes_and_means_of_the_run_that_keeps_its_spots(folder, tmp_path):
    here, there = (run_of(folder, tmp_path / str(streaming), streaming) for streaming in (True, False))
    vocabularies = [trainer.processor.feature_extractor.vocabulary for trainer in (here, there)]
    assert list(vocabularies[0]) == list(vocabularies[1])
    assert torch.equal(here.model.gene_model.missing_values, there.model.gene_model.missing_values)
    assert here.run_facts["train_slides"] == there.run_facts["train_slides"] == ["toy_A1", "toy_A2"]
    colours = [trainer.run_facts["data"].pop("colours") for trainer in (here, there)]
    np.testing.assert_allclose(colours[0]["mean"], colours[1]["mean"], atol=0.05)
    assert here.run_facts["data"] == there.run_facts["data"]
    assert here.train_dataset.num_rows == len(there.train_dataset) == 36 + 169
    # A batch holds what that of the other run holds of the same spots.
    batch = next(iter(here.get_train_dataloader()))
    collated = there.data_collator([there.train_dataset[i] for i in _places(there.train_dataset, batch["labels"])])
    for name in ("pixel_values", "gene_values", "gene_mask", "level", "slide_ids", "labels"):
        assert torch.equal(torch.as_tensor(batch[name]), torch.as_tensor(collated[name])), name


def _places(spots, labels) -> list[int]:
    place = {index: row for row, index in enumerate(spots["spot_index"][:])}
    return [place[label] for label in labels.tolist()]


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (1, True)])
def test_a_resumed_run_ends_as_the_uninterrupted_one(folder, tmp_path, workers, persistent):
    """205 spots make 12 batches: the run is resumed within its first and within its second epoch."""
    settings = {"dataloader_num_workers": workers, "max_steps": 15, "dataloader_persistent_workers": persistent}
    whole = run_of(folder, tmp_path / "whole", save_strategy="steps", save_steps=7, **settings)
    whole.train()
    for step in (7, 14) if workers == 0 else (7,):
        resumed = run_of(folder, tmp_path / f"resumed-{step}", **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert resumed.state.global_step == 15 and resumed.state.epoch == whole.state.epoch
        for (name, one), other in zip(
            whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
        ):
            assert torch.equal(one, other), name
    if workers:
        other = run_of(
            folder,
            tmp_path / "other",
            **settings | {"dataloader_num_workers": 0, "dataloader_persistent_workers": False},
        )
        with pytest.raises(ValueError, match=f"dataloader_num_workers was {workers} and is 0"):
            other.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7"))


def test_slides_that_are_split_by_spot_train_on_their_training_spots(tmp_path):
    path = tmp_path / "split"
    slides = (make_toy_slide(name, spots_per_side=10, image_px=400) for name in ("toy_A1", "toy_A2"))
    write_dataset(slides, path, patch_um=112, patch_px=32, split=SplitRequest("spot", validation=0.25))
    here, there = StreamedStudy.load(path), Study.load(path)
    for split in ("train", "validation"):
        assert (
            indices(here.subset(here.slide_ids, split).tables())
            == there.subset(there.slide_ids, split)["spot_index"][:]
        )
        kept, resident = there.subset(there.slide_ids, split), here.resident(here.slide_ids, split)
        assert resident["spot_index"][:] == kept["spot_index"][:] and resident["barcode"][:] == kept["barcode"][:]


@pytest.mark.parametrize(
    ("data", "training", "message"),
    [
        (
            {},
            {"batch_sampling": "balanced"},
            "stores no spots, and batch_sampling='balanced' needs the slide of every spot",
        ),
        ({}, {"min_spot_distance_um": 100.0}, "min_spot_distance_um=100 needs the position of every spot"),
        ({}, {"cache_features": True, "freeze_vision": True}, "cache_features needs a place on the disk"),
        ({}, {"train_sampling_strategy": "sequential"}, "='sequential' needs the order of the dataset"),
        ({"level_key": "shuffled"}, {}, "level_key='shuffled' needs the numbers of genes"),
        ({"features": "somewhere"}, {}, "features needs the features of every spot. Leave one of the two out"),
    ],
)
def test_what_needs_all_spots_is_refused(folder, tmp_path, data, training, message):
    with pytest.raises(ValueError, match=message):
        run_of(folder, tmp_path / "run", data=data, **training)


def test_a_study_that_is_kept_is_not_taken_for_one_that_is_streamed(folder, loaded, tmp_path):
    data = DataArguments(str(folder), test_slides="toy_B1", streaming=True, num_genes=20)
    model = ModelArguments(vision_config=VISION, image_size=32, gene_hidden_size=16, projection_dim=8)
    training = DelstTrainingArguments(str(tmp_path), report_to="none", use_cpu=True, max_steps=1)
    with pytest.raises(
        TypeError, match="is a Dataset, and streaming reads SpotFiles: open the dataset by StreamedStudy.load"
    ):
        assemble(loaded, data, model, training)


def test_sizes_that_make_no_batch_are_refused(streamed):
    with pytest.raises(ValueError, match="shuffle_buffer=8 is smaller than a batch of 16 spots"):
        SpotStream(streamed.spots, 16, 8)
    with pytest.raises(ValueError, match="326 training spots make no batch of 200 for each of 2 processes"):
        SpotStream(streamed.spots, 200, 400, ranks=2)


def test_a_file_that_changed_is_an_error_and_no_other_spot(folder):
    spots = StreamedStudy.load(folder).subset(["toy_B1"])
    longer = SpotFiles([SpotFile(spots.files[0].address, 140, 0)], spots.num_genes)
    with pytest.raises(ValueError, match="toy_B1.parquet holds fewer than the 140 spots"):
        list(longer.tables())
    with pytest.raises(ValueError, match="toy_B1.parquet: gene_indices go from 0 to .*there are 3 genes. Make"):
        list(SpotFiles(spots.files, 3).tables())
    gone = SpotFiles([SpotFile(str(folder / "spots" / "toy_C9.parquet"), 140, 0)], spots.num_genes)
    with pytest.raises(ValueError, match="toy_C9.parquet cannot be read .*--resume_from_checkpoint true"):
        list(gone.tables())


FROM_THE_HUB = """
import json, os, sys
from pathlib import Path
from delst_hf.data.streamed import StreamedStudy
from delst_hf.pretraining.run import main
main(["--dataset", "me/toys", "--output_dir", "there", *sys.argv[1:]])
cached = sorted(path.name for path in Path(os.environ["HF_HOME"]).rglob("*.parquet"))
refused = {}
for name in ("me/lost", "me/old", "me/none"):
    try:
        StreamedStudy.load(name)
    except (OSError, ValueError) as error:
        refused[name] = f"{type(error).__name__}: {error}"
print(json.dumps({"cached": cached, "refused": refused}))
"""


def test_a_dataset_of_the_hub_is_streamed_and_not_fetched(folder, tmp_path):
    """The run on `me/toys` is, to the bit, that on the folder; spots of slides that it leaves out are never asked for."""
    options = [
        "--streaming", "true", "--validation_slides", "toy_A1", "--same_patient_slides", "toy_A1", "--test_slides", "toy_B1",
        "--vision_config", VISION, "--image_size", "32", "--gene_hidden_size", "16", "--projection_dim", "8",
        "--max_steps", "3", "--per_device_train_batch_size", "16", "--shuffle_buffer", "64", "--num_genes", "20",
        "--save_strategy", "no", "--eval_strategy", "steps", "--eval_steps", "3", "--report_to", "none",
        "--disable_tqdm", "true", "--use_cpu", "true",
    ]  # fmt: skip
    with HubServer() as hub:
        hub.put("me/toys", folder, "dataset")
        for name, file in (("me/lost", "spots/toy_A2.parquet"), ("me/old", "manifest.json")):
            commit = hub.put(name, folder, "dataset")
            del hub.repositories["dataset", name].commit(commit).tree[file]
        there = answer_of(hub, tmp_path, FROM_THE_HUB, *options)
        asked = [path for _, path in hub.requests if "me/toys" in path]
    main(["--dataset", str(folder), "--output_dir", str(tmp_path / "here"), *options])
    assert there["cached"] == ["genes.parquet", "slides.parquet", "toy_A1.parquet"]
    assert any("toy_A2" in path for path in asked) and not any("toy_B1" in path for path in asked)
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("here", "there"))
    assert set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)
    records = [json.loads((tmp_path / name / "model" / "training.json").read_text()) for name in ("here", "there")]
    assert records[0]["data"] == records[1]["data"] and records[1]["dataset"] == "toys"
    assert (
        "ValueError" in there["refused"]["me/lost"] and "spots/toy_A2.parquet is missing" in there["refused"]["me/lost"]
    )
    assert (
        "has no manifest.json" in there["refused"]["me/old"] and "leave --streaming out" in there["refused"]["me/old"]
    )
    assert "OSError" in there["refused"]["me/none"] and "the Hub does not give" in there["refused"]["me/none"]


def work_of_one_process(rank: int, ranks: int, folder: str, output: str) -> None:
    """Train two epochs in one of several processes, and again from a checkpoint in the middle of the second."""
    settings = {
        "per_device_train_batch_size": 20,
        "max_steps": 10,
        "learning_rate": 1e-3,
        "data": {"shuffle_buffer": 40},
    }
    seen: dict[str, list[int]] = {}
    for name, resume in (("whole", None), ("resumed", f"{output}/whole/checkpoint-7")):
        saving = {"save_strategy": "steps", "save_steps": 7} if resume is None else {}
        trainer = run_of(folder, f"{output}/{name}", **settings, **saving)
        assert torch.distributed.get_world_size() == ranks
        assert trainer.args.device == torch.device("cpu")  # not cpu:0, to which torch restores no optimizer
        genes = list(trainer.processor.feature_extractor.vocabulary), trainer.model.gene_model.missing_values.tolist()
        original, seen[name] = trainer.training_step, []

        def step(model, inputs, *rest, original=original, labels=seen[name]):
            labels += inputs["labels"].tolist()
            return original(model, inputs, *rest)

        trainer.training_step = step
        trainer.train(resume_from_checkpoint=resume)
        if rank == 0:
            torch.save(trainer.trained_model().state_dict(), f"{output}/{name}.pt")
    Path(f"{output}/seen-{rank}.json").write_text(json.dumps({**seen, "genes": genes}))


def test_two_processes_see_each_spot_once_and_resume_to_the_bit(folder, tmp_path):
    """205 spots in 4 stretches of two files: 5 steps of 2 x 20 in an epoch."""
    in_ranks(work_of_one_process, 2, str(folder), str(tmp_path))
    seen = [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in range(2)]
    for epoch in range(2):
        both = [one["whole"][epoch * 100 : epoch * 100 + 100] for one in seen]
        assert [len(part) for part in both] == [100, 100] and len(set(both[0] + both[1])) == 200
    assert all(one["resumed"] == one["whole"][140:] for one in seen)
    # Each process has counted one of the two slides; both choose the genes, and have the means, of one that counted both.
    alone = run_of(folder, tmp_path / "alone")
    assert seen[0]["genes"] == seen[1]["genes"]
    assert seen[0]["genes"][0] == list(alone.processor.feature_extractor.vocabulary)
    np.testing.assert_allclose(seen[0]["genes"][1], alone.model.gene_model.missing_values.tolist(), rtol=1e-5)
    whole, resumed = (torch.load(tmp_path / f"{name}.pt") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
