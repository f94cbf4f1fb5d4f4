"""What the commands of tests/test_torture_*.py are given, their words, and what they make, to be compared."""

import json
import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from conftest import make_tiny_model, make_tiny_processor
from layouts import make_source, write_outs
from PIL import Image

from delst_hf.data.dataset import write_dataset
from delst_hf.data.folder import open_folder
from delst_hf.data.study import Study
from delst_hf.data.toy import make_toy_slide
from delst_hf.hub.checkpoint_folder import save_checkpoint_folder
from delst_hf.hub.checksums import check_checksums
from delst_hf.prediction.reference import build_reference
from delst_hf.record import data_facts, training_record

SLIDES = ("toy_A1", "toy_A2", "toy_B1")
SCORED = ["--protocols", "retrieval", "--no-baselines", "--resamples", "5", "--test-slides", "toy_B1"]
SMALL_VIT = (
    '{"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 16}'
)
TRAINED = ["--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "true", "--per_device_train_batch_size", "16",
           "--save_steps", "1", "--max_steps", "2", "--validation_slides", "toy_B1"]  # fmt: skip
TINY = ["--vision_config", SMALL_VIT, "--image_size", "16", "--projection_dim", "4"]
TRIALS = ["--geometries", "cosine,euclidean", "--trials", "1"]
OUTPUTS = {
    "fit": "head", "predict": "slide.parquet", "predict h5ad": "slide.h5ad", "embed": "mine.h5ad",
    "embed a dataset": "embedded", "reference": "model/reference", "retrieve": "like.parquet", "evaluate": "results.json",
    "report": "report.html", "vocabulary": "genes.txt", "card": "card.md", "check": "seen.png", "prepare image": "data",
    "prepare visium": "data", "prepare in processes": "data", "merge": "data", "pretrain": "run/model",
    "finetune": "run/model", "search": "run/search.json", "demo": "space",
}  # fmt: skip


def make_given(given: Path) -> Path:
    """Make data, other (a dataset), model, known (the model with a reference), mine.h5ad, he.png, outs of Space Ranger;
    results.json comes once it was evaluated."""
    slides = [make_toy_slide(name, spots_per_side=4, num_genes=20, image_px=120) for name in SLIDES]
    Image.fromarray(np.asarray(slides[0].image)).save(given / "he.png")
    write_outs(given / "outs", make_source())
    write_dataset(slides, given / "data", patch_um=56, patch_px=16)
    other = make_toy_slide("toy_C1", spots_per_side=3, num_genes=25, image_px=90)
    write_dataset([other], given / "other", patch_um=56, patch_px=16)
    study = Study.load(given / "data")
    processor = make_tiny_processor(study)
    facts = data_facts(given / "data", study, SLIDES[:2])
    record = training_record(
        train_slides=list(SLIDES[:2]), validation_slides=[], vision=None, data=facts, hyperparameters={}, hardware="two cores",
        log_history=[],
    )  # fmt: skip
    save_checkpoint_folder(
        given / "model", make_tiny_model(len(processor.feature_extractor.vocabulary)), processor, record
    )
    shutil.copytree(given / "model", given / "known")
    build_reference(str(given / "known"), str(given / "data"), progress=False)
    counts = study.counts(study.subset(["toy_B1"]))
    spots = pd.DataFrame(index=[f"spot{number}" for number in range(counts.shape[0])])
    anndata.AnnData(counts, obs=spots, var=pd.DataFrame(index=study.gene_names)).write_h5ad(given / "mine.h5ad")
    return given


def words_of(name: str, given: Path, folder: Path) -> list[str]:
    """Return the command, which writes below a folder."""
    model, data, quiet = str(given / "model"), str(given / "data"), ["--quiet", "--num-workers", "0"]
    picture, run = [str(given / "he.png"), "--mpp", "2"], ["--output_dir", str(folder / "run")]
    output, small = ["--output", str(folder / OUTPUTS[name])], ["--patch-um", "40", "--patch-px", "20"]
    return {
        "fit": ["fit", model, data, *output, *quiet],
        "predict": ["predict", model, data, "--slides", "toy_B1", *output, *quiet],
        "predict h5ad": ["predict", model, data, "--slides", "toy_B1", *output, *quiet],
        "embed": ["embed", model, str(given / "mine.h5ad"), "--modality", "genes", *output, "--quiet"],
        "embed a dataset": ["embed", model, data, *output, *quiet],
        "reference": ["reference", str(folder / "model"), data, "--quiet"],
        "retrieve": ["retrieve", str(given / "known"), data, "--slides", "toy_B1", *output, *quiet],
        "evaluate": ["evaluate", model, data, *output, *SCORED],
        "report": ["report", str(given / "results.json"), *output],
        "vocabulary": ["vocabulary", data, *output, "--num-genes", "10"],
        "card": ["card", model, "me/toy", *output],
        "check": ["check", *picture, "--preview", str(folder / "seen.png")],
        "prepare image": ["prepare", "image", *picture, *small, *output],
        "prepare visium": ["prepare", "visium", str(given / "outs"), "--patch-um", "100", "--patch-px", "20", *output],
        "prepare in processes": ["prepare", "toy", "--num-proc", "2", "--slides", "2", *small, *output],
        "merge": ["merge", data, str(given / "other"), *output],
        "pretrain": ["pretrain", "--dataset", data, *run, *TRAINED, *TINY],
        "finetune": ["finetune", "--dataset", data, "--model", model, *run, *TRAINED],
        "search": ["search", "--dataset", data, *run, *TRAINED, *TINY, *TRIALS],
        "demo": ["demo", "me/toy", "--space", str(folder / "space")],
    }[name]


def again(name: str, words: list[str]) -> list[str]:
    """Return the command that goes on."""
    return [*words, "--resume_from_checkpoint", "true"] if name in ("pretrain", "finetune") else words


def is_finished(status: int, said: str) -> bool:
    """Tell whether a rerun made the output, or found it made."""
    there = ("exists", "holds something already", "already holds a dataset", "is not empty")
    return status == 0 or (status == 3 and any(words in said for words in there))


def begin(name: str, given: Path, folder: Path) -> list[str]:
    """Make the folder, and return the command that writes below it."""
    folder.mkdir()
    if name == "reference":
        shutil.copytree(given / "model", folder / "model")
    return words_of(name, given, folder)


def expectation(server, given: Path, new_folder):
    """Return a function of a name: what the command makes when nothing is in its way, and the CPU seconds that it takes."""
    made: dict[str, tuple[object, float]] = {}

    def expected(name):
        if name not in made:
            folder = new_folder("expected") / "run"
            said, words = folder.parent / "said", begin(name, given, folder)
            assert server.run("command", str(said), *words) == 0, said.read_text()
            made[name] = content(folder / OUTPUTS[name]), server.cpu
            if name == "evaluate":  # what a report is made of
                shutil.copy(folder / OUTPUTS[name], given / "results.json")
        return made[name]

    return expected


def content(path: Path) -> object:
    """Return what stands at an output, whole, to be compared; fails where it is not."""
    if path.suffix == ".parquet":
        return pq.read_table(path, partitioning=None).to_pydict()
    if path.suffix == ".h5ad":
        read = anndata.read_h5ad(path)
        return read.obs.to_dict(), {name: read.obsm[name].tolist() for name in read.obsm}
    if path.name == "search.json":
        return json.loads(path.read_text())
    if path.suffix == ".json":
        return json.loads(path.read_text())["protocols"]
    if path.suffix == ".html":
        return path.read_text().rstrip()[-7:]
    if path.suffix == ".png":
        return np.asarray(Image.open(path)).tobytes()
    if path.suffix in (".txt", ".md"):
        return path.read_text()
    if path.name in ("head", "model"):
        check_checksums(path)
        return (path / "model.safetensors").read_bytes()
    if path.name == "data":
        files = [file for files in open_folder(path, verify=True).spot_files.values() for file in files]
        return [pq.read_table(file, partitioning=None).to_pydict() for file in files]
    if path.name == "embedded":
        assert (path / "training.json").is_file()
        return pq.read_table(path / "embeddings-00000-of-00001.parquet", partitioning=None).to_pydict()
    return {one.name: one.read_bytes() for one in path.iterdir() if one.suffix != ".json"}


def is_part(output: Path, expected: object) -> bool:
    """Tell whether what stands there is a whole first part of it: geometries of a search that were finished."""
    found = content(output)
    return output.name == "search.json" and all(expected[name] == one for name, one in found.items())


def is_there(output: Path) -> bool:
    """Whether there is something that a reader would take for the output."""
    return bool(list(output.glob("embeddings-*"))) if output.name == "embedded" else output.exists()


def left_over(folder: Path) -> list[str]:
    """Name what is hidden, as everything is that a run has not finished."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(".*"))
