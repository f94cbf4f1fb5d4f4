"""Kills at every file-system event, full disks and second runs, while dataset folders are made; counted per group.

`make torture` takes every kill point; the ordinary tests take every seventh.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from faults import FaultServer, in_session, tally

from delst_hf.data.dataset import merge_datasets, write_dataset
from delst_hf.data.folder import open_folder
from delst_hf.data.toy import make_toy_slide
from delst_hf.pretraining.checkpoints import damaged_files, last_complete_checkpoint

STEP = 1 if os.environ.get("DELST_TORTURE") else 7
SIZE = {"patch_um": 40, "patch_px": 20}
SLIDES = ("toy_A1", "toy_B1")


@pytest.fixture(scope="module")
def server():
    with FaultServer("torture_work") as server:
        yield server


def rows(folder):
    """All spots, by slide and barcode, without where they lie."""
    opened = open_folder(folder, verify=True)
    tables = [pq.read_table(file, partitioning=None) for files in opened.spot_files.values() for file in files]
    found = [row for table in tables for row in table.to_pylist()]
    return sorted(found, key=lambda row: (row["slide_id"], row["barcode"]))


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected") / "data"
    write_dataset(
        [make_toy_slide(name, spots_per_side=3, num_genes=20, image_px=90) for name in SLIDES], folder, **SIZE
    )
    return rows(folder)


def left_over(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize(("fault", "several_files"), [("kill", False), ("full disk", False), ("kill", True)])
def test_prepare_is_finished_by_the_same_command(server, expected, tmp_path, fault, several_files):
    """Killed, or out of room, at any event, the same command then makes the right dataset, or finds it finished."""
    number, ended, options = 0, False, {"several_files": several_files}
    while not ended:
        folder = tmp_path / f"{fault}-{number}"
        folder.mkdir()
        output = folder / "data"
        at = {"kill_at" if fault == "kill" else "full_at": number}
        ended = server.run("prepare", str(output), **at, **options) == 0
        if output.exists():
            assert rows(output) == expected, f"half a dataset after event {number}"
        status = server.run("prepare", str(output), **options)
        assert status in (0, 3), f"the rerun ended with {status} after event {number}"  # 3: it is there already
        held = rows(output) == expected and left_over(folder) == []
        tally(f"prepare, {fault}", held, f"event {number}: {left_over(folder)}")
        assert len(list((output / "spots").glob("*.parquet"))) == (6 if several_files else 2)
        shutil.rmtree(folder)
        number += 2 * STEP if several_files else STEP
    assert number > 3 * STEP


@pytest.mark.parametrize("work", ["prepare_over", "merge_over"])
def test_a_dataset_that_is_replaced_is_there_at_every_kill(server, expected, tmp_path, work):
    for name in ("old", "part"):
        write_dataset([make_toy_slide("toy_C1", spots_per_side=2, num_genes=20, image_px=90)], tmp_path / name, **SIZE)
    write_dataset(
        [make_toy_slide(name, spots_per_side=3, num_genes=20, image_px=90) for name in SLIDES], tmp_path / "new", **SIZE
    )
    old, number, ended = rows(tmp_path / "old"), 0, False
    while not ended:
        output = tmp_path / "out" / "data"
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copytree(tmp_path / "old", output)
        ended = server.run(work, str(output), str(tmp_path / "new"), kill_at=number) == 0
        assert output.exists(), f"nothing stands under the name after event {number}"
        assert rows(output) in (old, expected)
        assert server.run(work, str(output), str(tmp_path / "new")) == 0
        tally(f"{work}, kill", rows(output) == expected and left_over(output.parent) == [], f"event {number}")
        number += STEP


def test_a_part_that_was_damaged_is_made_again(server, expected, tmp_path):
    output = tmp_path / "data"
    assert server.run("prepare", str(output), kill_at=10_000_000, stop_before_join=True) != 0
    files = sorted((tmp_path / ".data.parts").rglob("*.parquet"))
    assert len(files) == 6
    for file in files[::2]:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    assert server.run("prepare", str(output)) == 0
    tally("parts with flipped bits", rows(output) == expected)


def test_two_runs_into_one_output(tmp_path):
    """One is refused by name; what the other makes is whole."""
    code = (
        "import sys; from torture_work import prepare\n"
        "try: prepare(sys.argv[1], pause=1.5)\nexcept FileExistsError as error: print(error); sys.exit(3)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}"}
    command = [sys.executable, "-c", code, str(tmp_path / "data")]
    runs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    texts = [run.communicate()[0] for run in runs]
    assert 0 in [run.returncode for run in runs] and {run.returncode for run in runs} <= {0, 3}
    refused = [text for run, text in zip(runs, texts) if run.returncode]
    assert all(
        "another run is writing to this dataset" in text or "already holds a dataset" in text for text in refused
    )
    open_folder(tmp_path / "data", verify=True)
    tally("two prepares", left_over(tmp_path) == [])


def test_what_appears_during_a_merge_is_not_replaced(tmp_path, monkeypatch):
    write_dataset([make_toy_slide("toy_A1", spots_per_side=2, num_genes=20, image_px=90)], tmp_path / "a", **SIZE)
    from delst_hf.data import merge

    joined = merge.join_parts

    def join(*arguments, **options):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("years")
        return joined(*arguments, **options)

    monkeypatch.setattr(merge, "join_parts", join)
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="left as it is|never replaced"):
            merge_datasets([tmp_path / "a"], tmp_path / "out", overwrite=overwrite)
        tally("strangers at the output", (tmp_path / "out" / "thesis.tex").read_text() == "years")
        shutil.rmtree(tmp_path / "out")
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_run(tmp_path, how):
    code = "import sys; from torture_work import prepare_in_processes; prepare_in_processes(sys.argv[1])"
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}"}
    command = [sys.executable, "-c", f"if __name__ == '__main__':\n    {code}", str(tmp_path / "data")]
    run = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 180
    while len(list(tmp_path.glob("toy_*"))) < 2 and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.2)
    assert len(in_session(run.pid)) >= 3, "no workers came"
    run.send_signal(how)
    run.wait()
    deadline = time.monotonic() + 20
    while in_session(run.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    tally("orphans", not in_session(run.pid), f"alive after {how.name}: {in_session(run.pid)}")


@pytest.mark.skipif(not os.environ.get("DELST_TORTURE"), reason="takes a minute: make torture")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_training_of_two_processes_ends_with_its_launcher(toy_folder, tmp_path, how):
    root = Path(__file__).parents[1]
    vision = (
        '{"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}'
    )
    options = {"dataset": toy_folder, "output_dir": tmp_path / "run", "vision_config": vision, "image_size": 32,
               "projection_dim": 8, "max_steps": 10**6, "per_device_train_batch_size": 8, "save_steps": 5, "use_cpu": True,
               "report_to": "none", "save_total_limit": 2}  # fmt: skip
    words = [f"--{name}={value}" for name, value in options.items()]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = subprocess.Popen(
        [*launch, str(root / "training" / "pretrain.py"), *words],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 180
    while not (tmp_path / "run" / "checkpoint-5" / "complete").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    family = psutil.Process(run.pid).children(recursive=True)
    assert len(family) >= 2, "no processes came"
    run.send_signal(how)
    run.wait()
    alive = psutil.wait_procs(family, timeout=60)[1]
    for process in alive:
        process.kill()
    tally("orphans", not alive, f"alive after {how.name} of the launcher: {alive}")
    last = last_complete_checkpoint(tmp_path / "run")
    tally("orphans", last is not None and not damaged_files(Path(last)), f"{last} is not whole")
