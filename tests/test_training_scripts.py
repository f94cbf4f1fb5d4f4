"""The scripts as a user runs them: by launchers in processes of their own, and by themselves in this one."""

import contextlib
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import psutil
import pytest
import torch
from ranks import in_ranks
from safetensors.torch import load_file

from delst_hf import DelstModel, DelstProcessor

pytestmark = pytest.mark.usefixtures("without_curves")

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "training/configs/toy.yaml")
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
SMALL = [
    "--validation_slides", "toy_A2", "--same_patient_slides", "toy_A2", "--test_slides", "toy_B1",
    "--image_size", "32", "--max_steps", "4", "--save_steps", "2",
    "--per_device_train_batch_size", "8", "--contrastive_micro_batch_size", "3", "--batch_sampling", "balanced",
    "--save_strategy", "steps", "--disable_tqdm", "true", "--use_cpu", "true",
]  # fmt: skip


def launch(*command: str) -> str:
    """What a script prints that torchrun starts twice, on a machine without a GPU."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, *LAUNCHER, *command]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def run_in_ranks(said: Path, script: str, *words: str) -> str:
    """What a script prints in two processes: like `launch`, and quicker, where the launcher is not what is tested."""
    in_ranks(script_of_one_rank, str(said), script, words)
    return "".join(path.read_text() for path in said.parent.glob(f"{said.name}-*"))


def script_of_one_rank(rank: int, said: str, script: str, words: tuple[str, ...]) -> None:
    Path(f"{said}-{rank}").write_text(run(script, *words))


def run(script: str, *words: str, status: int = 0) -> str:
    """What a script prints that is started by itself; in this process, as another takes ten seconds to start."""
    said = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [script, *words]),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        pytest.raises(SystemExit) as end,
    ):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert end.value.code == status, said.getvalue()[-3000:]
    return said.getvalue()


def numbers(tree, path: str = "") -> dict[str, float]:
    """Every number of a JSON tree, by its path."""
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {key: value for name, part in items for key, value in numbers(part, f"{path}/{name}").items()}
    return {path: float(tree)} if isinstance(tree, int | float) else {}


@pytest.fixture(scope="module")
def pretrained(toy_folder, tmp_path_factory) -> Path:
    """OUTPUT_DIR of a run of two processes under torchrun."""
    output = tmp_path_factory.mktemp("run") / "out"
    arguments = [CONFIG, "--dataset", str(toy_folder), "--output_dir", str(output), *SMALL[:-2]]  # without --use_cpu
    text = launch("training/pretrain.py", *arguments)
    assert text.count(f"Checkpoint: {output / 'model'}") == 1, "each process trained alone"
    return output


def test_two_processes_train_one_model(pretrained):
    state = json.loads((pretrained / "checkpoint-4" / "trainer_state.json").read_text())
    # 36 training spots, 2 processes of 8 rows, last batch dropped: 2 steps an epoch. One process would make 4.
    assert state["epoch"] == 2.0
    assert (pretrained / "checkpoint-4" / "rng_state_1.pth").exists()
    record = json.loads((pretrained / "model" / "training.json").read_text())
    assert record["train_slides"] == ["toy_A1"] and record["validation_slides"] == ["toy_A2"]
    model = DelstModel.from_pretrained(pretrained / "model")
    processor = DelstProcessor.from_pretrained(pretrained / "model")
    assert model.config.gene_config.num_genes == len(processor.feature_extractor.vocabulary)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_killed_and_resumed_run_ends_as_the_uninterrupted_one(pretrained, toy_folder, tmp_path):
    output = tmp_path / "killed"
    command = ["training/pretrain.py", CONFIG, "--dataset", str(toy_folder)]
    command += ["--output_dir", str(output), *SMALL, "--save_steps", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, *LAUNCHER, *command], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 300
    while not (output / "checkpoint-2").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.001)
    # The launcher and both processes, which are sessions of their own, in the middle of writing the second checkpoint.
    launcher = psutil.Process(process.pid)
    family = [launcher, *launcher.children(recursive=True)]
    for member in family:
        member.kill()
    process.wait()
    assert len(family) >= 3 and not psutil.wait_procs(family, timeout=60)[1]
    assert (output / "checkpoint-1" / "complete").exists() and not (output / "checkpoint-4").exists()

    run_in_ranks(tmp_path / "resumed", *command, "--resume_from_checkpoint", "true")
    states = [
        json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text()) for folder in (pretrained, output)
    ]
    assert states[0]["global_step"] == states[1]["global_step"] == 4
    whole, resumed = (load_file(folder / "model" / "model.safetensors") for folder in (pretrained, output))
    early = load_file(output / "checkpoint-1" / "model.safetensors") if (output / "checkpoint-1").exists() else None
    assert set(whole) == set(resumed)
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    assert early is None or not torch.equal(early["visual_projection.weight"], whole["visual_projection.weight"])


def test_processes_that_checkpoint_activations_train_a_backbone_with_weights_that_are_not_read(toy_folder, tmp_path):
    """DDP waited for the gradients of a mask token, or of a pooler, and ended the run at its second step."""
    command = ["training/pretrain.py", CONFIG, "--dataset", str(toy_folder), "--vision_pooling", "mean", *SMALL]
    for name, more in (("plain", ()), ("saved", ("--gradient_checkpointing", "true"))):
        run_in_ranks(tmp_path / f"log of {name}", *command, "--output_dir", str(tmp_path / name), *more)
    plain, saved = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "saved"))
    assert all(torch.equal(tensor, saved[name]) for name, tensor in plain.items())


def test_a_run_resumed_within_its_second_epoch_ends_as_the_uninterrupted_one(pretrained, toy_folder, tmp_path):
    """Of several processes the loader that skips batches told the sampler no epoch: the spots were those of the first."""
    output = tmp_path / "out"
    command = ["training/pretrain.py", CONFIG, "--dataset", str(toy_folder), "--output_dir", str(output)]
    command += [*SMALL, "--save_steps", "3"]
    run_in_ranks(tmp_path / "whole", *command)
    shutil.rmtree(output / "model")
    shutil.rmtree(output / "checkpoint-4")
    run_in_ranks(tmp_path / "resumed", *command, "--resume_from_checkpoint", "true")
    whole, resumed = (load_file(folder / "model" / "model.safetensors") for folder in (pretrained, output))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_a_vocabulary_file_decides_which_genes_are_read(toy_folder, tmp_path):
    (tmp_path / "genes.txt").write_text("TOY005\nNONE\nTOY001\n")
    options = [*SMALL, "--max_steps", "1", "--output_dir", str(tmp_path / "out")]
    options += ["--vocabulary", str(tmp_path / "genes.txt")]
    run("training/pretrain.py", CONFIG, "--dataset", str(toy_folder), *options)
    processor = DelstProcessor.from_pretrained(tmp_path / "out" / "model")
    assert list(processor.feature_extractor.vocabulary) == ["TOY005", "TOY001"]


def test_a_finished_run_is_not_written_over(pretrained, toy_folder):
    arguments = [CONFIG, "--dataset", str(toy_folder), "--output_dir", str(pretrained), *SMALL]
    assert "holds a run already" in run("training/pretrain.py", *arguments, status=2)


def test_evaluate_prints_the_table_and_guards_seen_slides(pretrained, toy_folder, tmp_path):
    command = ["training/evaluate.py", "--model", str(pretrained / "model"), "--dataset", str(toy_folder)]
    options = ["--num-genes", "20", "--num-seeds", "1", "--resamples", "20", "--protocols", "arms,retrieval,hierarchy"]
    text = run(*command, "--test-slides", "toy_B1", "--output", str(tmp_path / "results.json"), *options)
    assert "DELST embedding" in text and "recall@10" in text
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["train_slides"] == ["toy_A1"] and results["test_slides"] == ["toy_B1"]
    # Two processes embed a share each: the same spots in the same order, none twice, and one table.
    more = ["--test-slides", "toy_B1", "--output", str(tmp_path / "two.json"), *options]
    shared = run_in_ranks(tmp_path / "two", *command, *more)
    assert shared.count("DELST embedding") == text.count("DELST embedding")
    # Sums in another order move embeddings by a last digit, which may turn a vote of a probe but no mean.
    one, two = (
        {key: value for key, value in numbers(found["protocols"]).items() if "pearson" in key or "radius" in key}
        for found in (results, json.loads((tmp_path / "two.json").read_text()))
    )
    assert len(one) > 10 and two == pytest.approx(one, rel=1e-3, abs=1e-4)
    refused = run(*command, "--test-slides", "toy_A1", *options, status=2)
    assert "trained on ['toy_A1']" in refused


def test_the_quickstart_of_the_readme_runs_as_pasted(pretrained, toy_folder):
    readme = (ROOT / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    for written, here in (
        ("runs/toy/pretrain/model", pretrained / "model"),
        ("runs/toy/data", toy_folder),
        ("toy_D1", "toy_B1"),
    ):
        assert written in code
        code = code.replace(written, str(here))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert "torch.Size([36, 64])" in said.getvalue()
