"""Measure the CPU seconds of `import delst_hf` and of the help of `delst`, against their bars.

    python benchmarks/startup.py

Bars: `import delst_hf` at most 1.15 times `from transformers import AutoModel, AutoProcessor` plus 0.1 s; the help of `delst`
and `delst prepare` at most 1.5 times `import numpy, PIL.Image` plus 0.3 s. The least of several runs counts, as other
programs only add to it.
"""

import argparse
import resource
import subprocess
import sys


def cpu_seconds(words: list[str]) -> float:
    """Return the CPU seconds, user and system, of a Python process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="runs of each (default 3)")
    runs = parser.parse_args().runs
    pairs = [
        ("import delst_hf", ["-c", "import delst_hf"],
         ["-c", "from transformers import AutoModel, AutoProcessor"], 1.15, 0.1),
        ("delst --help", ["-m", "delst_hf.cli", "--help"], ["-c", "import numpy, PIL.Image"], 1.5, 0.3),
        ("delst prepare --help", ["-m", "delst_hf.cli", "prepare", "--help"], ["-c", "import numpy, PIL.Image"], 1.5, 0.3),
    ]  # fmt: skip
    for name, ours, theirs, factor, plus in pairs:
        own, base = (min(cpu_seconds(words) for _ in range(runs)) for words in (ours, theirs))
        bar = factor * base + plus
        print(f"{name:22s} {own:.2f} s, beside {base:.2f} s; bar {bar:.2f} s: {'kept' if own <= bar else 'NOT KEPT'}")


if __name__ == "__main__":
    main()
