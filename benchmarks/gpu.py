"""Run everything that needs a GPU in one command (`make gpu`): each piece writes its log to a folder; a summary comes last.

    python benchmarks/gpu.py --output runs/gpu                     # about five minutes on one H100
    python benchmarks/gpu.py --output runs/gpu --only loss step    # the two benchmarks alone
    python benchmarks/gpu.py --output runs/gpu --small             # the same commands on any machine, at tiny sizes

It needs torch with CUDA, the package's dependencies and pytest; the package itself need not be installed.

    loss       benchmarks/contrastive.py: the contrastive loss against the forms that it replaces, N = 256 to 16,384
    step       benchmarks/step.py: the training step against its bare backbone
    predict    benchmarks/predict.py: `delst predict` of a ViT-S against its backbone alone, and reading alone
    tests      tests that use the device, and those whose results once depended on such a machine
    training   pretraining on toy slides in bf16, and an evaluation
"""

import argparse
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = [
    "tests/test_gpu.py", "tests/test_contrastive.py", "tests/test_contrastive_fused.py", "tests/test_docs_models.py",
    "tests/test_precision.py", "tests/test_processing.py", "tests/test_remote_code.py", "tests/test_pipelines.py",
]  # fmt: skip
LIMITS = {"loss": 150, "step": 200, "predict": 100, "tests": 400, "training": 200}


def commands(piece: str, output: Path, small: bool) -> list[list[str]]:
    python = [sys.executable]
    if piece == "loss":
        sizes = ["--quick"] if small else ["--gpu-only", "--kernels"]
        return [[*python, "benchmarks/contrastive.py", *sizes]]
    if piece == "step":
        return [[*python, "benchmarks/step.py", *(["--small"] if small else [])]]
    if piece == "predict":
        sizes = ["tiny", "--tiles", "32", "--turns", "1"] if small else [
            "small", "--tiles", "4096", "--turns", "5", "--batch-size", "256", "--num-workers", str(os.cpu_count() or 2)
        ]  # fmt: skip
        return [[*python, "benchmarks/predict.py", *sizes]]
    if piece == "tests":
        files = TESTS[:1] if small else TESTS
        spread = ["--numprocesses", "6", "--dist", "loadfile"] if find_spec("xdist") and not small else []
        return [[*python, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *spread, *files]]
    data, run = str(output / "work" / "data"), str(output / "work" / "run")
    precision = ["--use_cpu", "true", "--max_steps", "2"] if small else ["--bf16", "true"]
    return [
        [*python, "-m", "delst_hf.cli", "prepare", "toy", "--output", data, "--overwrite"],
        [*python, "training/pretrain.py", "training/configs/toy.yaml", "--dataset", data, "--output_dir", run, *precision],
        [*python, "training/evaluate.py", "--model", f"{run}/model", "--dataset", data, "--test_slides", "toy_D1",
         "--output", str(output / "results.json")],
    ]  # fmt: skip


def run(piece: str, output: Path, small: bool) -> str:
    """Run one piece and print how it ended; its output is in its log."""
    environment = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **environment, "PYTHONPATH": path}
    start, code = time.perf_counter(), 0
    with open(output / f"{piece}.log", "w", encoding="utf-8") as log:
        for command in commands(piece, output, small):
            print("$", *command, file=log, flush=True)
            left = LIMITS[piece] - (time.perf_counter() - start)
            try:
                code = subprocess.run(
                    command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=max(left, 1)
                ).returncode
            except subprocess.TimeoutExpired:
                code = -1
            if code:
                break
    ending = {0: "done", -1: "TIME IS UP"}.get(code, f"FAILED ({code})")
    return f"{piece}: {ending} after {time.perf_counter() - start:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the logs")
    parser.add_argument("--only", nargs="+", choices=LIMITS, default=list(LIMITS), help="pieces to run")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to test that the commands run")
    options = parser.parse_args()
    options.output = options.output.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    endings, bars = [], []
    for piece in options.only:
        endings.append(run(piece, options.output, options.small))
        text = (options.output / f"{piece}.log").read_text(encoding="utf-8", errors="replace")
        bars += [
            f"{piece}: {line.strip()}" for line in text.splitlines() if line.strip().startswith(("pass  ", "MISS  "))
        ]
        print(f"== {piece}\n{text if piece in ('loss', 'step') else text[-2500:]}", flush=True)
    missed = [bar for bar in bars if ": MISS  " in bar]
    print("\n".join(["== summary", *endings, f"{len(bars) - len(missed)} of {len(bars)} bars reached", *missed]))
    sys.exit(any("done" not in ending for ending in endings))


if __name__ == "__main__":
    main()
