"""What the examples of docstrings find in their folder: a small `make pretrain`, and slides of each format."""

from pathlib import Path

import numpy as np
from conftest import make_tiny_model, make_tiny_processor
from layouts import make_source, write_outs
from PIL import Image
from test_readers_anndata import make_adata
from test_readers_collections import write_hest, write_stimage, write_xenium
from test_readers_her2st import write_section
from test_readers_tables import on_legacy_array, write_counts, write_legacy
from test_readers_visium import make_hd


def write_example_files(folder: Path) -> None:
    """Fill an empty folder."""
    _write_run(folder / "runs/toy")
    _write_slides(folder)


def _write_run(run: Path) -> None:
    from delst_hf.data.dataset import write_dataset
    from delst_hf.data.study import Study
    from delst_hf.data.toy import make_toy_slides
    from delst_hf.evaluation.evidence import Evaluation
    from delst_hf.evaluation.results import results_record, write_results
    from delst_hf.evaluation.run import evaluate_checkpoint
    from delst_hf.hub.checkpoint_folder import save_checkpoint_folder
    from delst_hf.prediction import build_reference, fit_head
    from delst_hf.record import data_facts, training_record

    write_dataset(make_toy_slides(spots_per_side=6, num_genes=40, image_px=400), run / "data", patch_px=32)
    study = Study.load(str(run / "data"))
    slides = ["toy_A1", "toy_A2", "toy_B1"]
    processor = make_tiny_processor(study)
    model = make_tiny_model(len(processor.feature_extractor.vocabulary)).eval()
    facts = data_facts(run / "data", study, slides)
    record = training_record(train_slides=slides, validation_slides=["toy_C1"], vision=None, data=facts)
    folder = save_checkpoint_folder(run / "pretrain/model", model, processor, record)
    evaluation = Evaluation(protocols=("retrieval",), baselines=False, resamples=20, progress=False)
    results = evaluate_checkpoint(model, processor, study, slides, ["toy_D1"], evaluation)
    results = {name: value for name, value in results.items() if name not in ("gallery", "traversals")}
    results = results_record(
        results, study.subset(["toy_D1"]), model="runs/toy/pretrain/model"
    )  # few pictures are quick
    write_results(run / "results.json", results)
    fit_head(str(folder), str(run / "data"), run / "expression", num_workers=0, progress=False)
    build_reference(str(run / "expression"), str(run / "data"), progress=False)


def _write_slides(folder: Path) -> None:
    write_outs(folder / "visium/outs", make_source())
    make_hd(folder / "visium_hd/outs", make_source())
    write_section(folder / "her2st")
    (folder / "st").mkdir()
    write_legacy(folder / "st", on_legacy_array(make_source()))
    write_hest(folder / "hest", make_source())
    write_stimage(folder / "stimage", make_source())
    write_xenium(folder / "xenium")
    source = make_source()
    write_counts(folder, source, "csv")
    source.spots.reset_index(names="barcode").to_csv(folder / "xy.csv", index=False)
    picture = Image.fromarray(source.pixels)
    picture.save(folder / "S1.png")
    picture.resize((640, 480)).save(folder / "xenium/he.png")
    make_adata().write_h5ad(folder / "slide.h5ad")
    image = np.full((400, 600, 3), (242, 240, 244), dtype=np.uint8)
    image[:, :300] = (200, 120, 170)
    Image.fromarray(image).save(folder / "he.png")
