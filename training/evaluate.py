"""Evaluate a checkpoint on slides that it has not seen, with its baselines in the same table.

    accelerate launch training/evaluate.py --model runs/toy/pretrain/model --dataset runs/toy/data --test-slides toy_D1
    accelerate launch training/evaluate.py --model DIR --dataset DIR --test-slides C5,B4 --output results.json

Image embeddings are scored by expression prediction (ridge, alpha chosen on training slides, mean gene-wise Pearson over the
most variable genes), a linear probe on the slides' labels (macro-F1), and retrieval in both directions over the whole pool;
then by every protocol of docs/evaluation.md (--protocols), with intervals, into one JSON for `delst report`.
The probes are fitted on the slides that the checkpoint was trained on unless --train-slides says otherwise.
"""

import sys

from delst_hf.commands.evaluate import EvaluationArguments, run_evaluation
from delst_hf.errors import run_script
from delst_hf.pretraining.options import parse_arguments


def main() -> None:
    run_evaluation(parse_arguments((EvaluationArguments,), description=__doc__ or "")[0])


if __name__ == "__main__":
    sys.exit(run_script(main, "evaluate.py"))
