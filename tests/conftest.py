"""What every test shares: no network, caches in a temporary folder, the way to real tissue."""

import gc
import os
import tempfile
from pathlib import Path

import pytest
import torch

# The models of the tests are tiny: threads cost more than they save.
torch.set_num_threads(1)

# Before anything imports datasets or huggingface_hub: both read the environment once.
_CACHE = tempfile.TemporaryDirectory(prefix="delst-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = str(Path(_CACHE.name) / "datasets")
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"


# Faults that were injected by all processes of the tests: group -> how many were tried, and how many held.
_FAULTS: dict[str, list[int]] = {}


def pytest_configure(config):
    config.addinivalue_line("markers", "fault(group): a test that injects a fault, counted in this group")


def pytest_collection_finish(session):
    """Keep what is imported out of garbage collection: every training collects, and looks at a million objects of libraries."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session):
    """Let the end of Python collect it, or bindings of C++ report all of it as leaked."""
    gc.unfreeze()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A test marked as a fault is one of its group; one that counts its own by `faults.tally` is as many as it says."""
    from faults import TALLY

    report = (yield).get_result()
    if report.when != "call":
        return
    counted, marked = dict(TALLY), item.get_closest_marker("fault")
    TALLY.clear()
    if marked is not None and not counted and not report.skipped:
        counted = {marked.args[0]: [1, int(report.passed)]}
    report.user_properties += [("fault", group, *numbers) for group, numbers in counted.items()]


def pytest_runtest_logreport(report):
    if report.when == "call":
        for name, *found in report.user_properties:
            if name == "fault":
                group, tried, held = found
                before = _FAULTS.setdefault(group, [0, 0])
                before[0], before[1] = before[0] + tried, before[1] + held


def pytest_terminal_summary(terminalreporter):
    """Faults that were injected, and how many of them held, by group."""
    for group, (tried, held) in sorted(_FAULTS.items()):
        terminalreporter.write_line(f"{group:<40} {tried:4d} tried {held:4d} held")
    if _FAULTS:
        tried, held = (sum(numbers) for numbers in zip(*_FAULTS.values()))
        terminalreporter.write_line(f"{'all faults':<40} {tried:4d} tried {held:4d} held")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder ../shared of real tissue; the test is skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("no real tissue: ../shared/data is absent")
    return folder


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory) -> Path:
    """A dataset folder of three toy slides of two patients, 36 spots each, patches of 32 px."""
    from delst_hf.data.dataset import write_dataset
    from delst_hf.data.toy import make_toy_slide

    slides = (make_toy_slide(name, spots_per_side=6, image_px=400) for name in ("toy_A1", "toy_A2", "toy_B1"))
    folder = tmp_path_factory.mktemp("toy") / "data"
    write_dataset(slides, folder, patch_um=112, patch_px=32)
    return folder


@pytest.fixture(scope="session")
def toy_study(toy_folder):
    from delst_hf.data.study import Study

    return Study.load(str(toy_folder))


def make_tiny_processor(study):
    """A processor of 32-px patches whose vocabulary is every second gene of the study."""
    from transformers import ViTImageProcessorPil

    from delst_hf import DelstGeneFeatureExtractor, DelstProcessor

    image_processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    return DelstProcessor(image_processor, DelstGeneFeatureExtractor(vocabulary=study.gene_names[::2]))


def as_stored(patch):
    """Return a patch as it comes out of a dataset folder: a JPEG of quality 95 with colour at full resolution, by Pillow."""
    import io

    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.asarray(patch)).save(buffer, "JPEG", quality=95, subsampling=0)
    return np.asarray(Image.open(buffer))


def make_tiny_model(num_genes: int):
    """A ViT of two thin layers with a gene encoder, the same weights every time."""
    from transformers import ViTConfig

    from delst_hf import DelstConfig, DelstModel

    torch.manual_seed(0)
    vision = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    return DelstModel(
        DelstConfig(vision_config=vision, gene_config={"num_genes": num_genes, "hidden_size": 16}, projection_dim=8)
    )


@pytest.fixture
def tiny_processor(toy_study):
    return make_tiny_processor(toy_study)


@pytest.fixture
def tiny_model(tiny_processor):
    return make_tiny_model(len(tiny_processor.feature_extractor.vocabulary))


@pytest.fixture
def without_curves(monkeypatch):
    """Runs do not draw curves.png, which takes a second at each checkpoint; tests/test_pretraining_log.py draws it."""
    monkeypatch.setattr("delst_hf.report.run_log.write_curves", lambda log, folder: None)


@pytest.fixture(scope="session")
def toy_checkpoint(toy_folder, toy_study, tmp_path_factory) -> Path:
    """A checkpoint folder of an untrained tiny model, whose record says that it was trained on toy_A1 and toy_A2."""
    from delst_hf.hub.checkpoint_folder import save_checkpoint_folder
    from delst_hf.record import data_facts, training_record

    processor = make_tiny_processor(toy_study)
    model = make_tiny_model(len(processor.feature_extractor.vocabulary))
    slides = ["toy_A1", "toy_A2"]
    record = training_record(
        train_slides=slides,
        validation_slides=[],
        vision=None,
        data=data_facts(toy_folder, toy_study, slides),
        hyperparameters={"learning_rate": 1e-3},
        hardware="two cores",
        log_history=[{"train_runtime": 60.0}],
    )
    return save_checkpoint_folder(tmp_path_factory.mktemp("checkpoint") / "model", model, processor, record)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory) -> Path:
    """A vision backbone with its image processor, as a folder that `from_pretrained` loads."""
    from transformers import ViTImageProcessorPil, ViTModel

    folder = tmp_path_factory.mktemp("backbone") / "vit"
    torch.manual_seed(0)
    ViTModel(make_tiny_model(4).config.vision_config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def toy_heads(toy_checkpoint, toy_folder, tmp_path_factory) -> Path:
    """A folder with the heads expression/ and labels/, fitted on toy_A1 and toy_A2."""
    from delst_hf.prediction import fit_head

    folder = tmp_path_factory.mktemp("heads")
    for target in ("expression", "labels"):
        fit_head(str(toy_checkpoint), str(toy_folder), folder / target, target=target, progress=False, num_workers=1)
    return folder


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory):
    """Return the image of a toy slide that no model has seen, without its counts, and its mpp."""
    import numpy as np
    from PIL import Image

    from delst_hf.data.toy import make_toy_slide

    slide = make_toy_slide("toy_C1", spots_per_side=6, image_px=400)
    path = tmp_path_factory.mktemp("slide") / "toy_C1.png"
    Image.fromarray(np.asarray(slide.image)).save(path)
    return path, slide.mpp
