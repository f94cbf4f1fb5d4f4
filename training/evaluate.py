"""Evaluate a checkpoint on slides that it has not seen, with its baselines in the same table.

    accelerate launch -q training/evaluate.py --model runs/toy/pretrain/model --dataset runs/toy/data --test_slides toy_D1
    accelerate launch -q training/evaluate.py --model DIR --dataset DIR --test_slides C5,B4 --output results.json

It does what `delst evaluate` does, with several processes; options have underscores, as those of transformers. The model is
scored by every protocol of docs/evaluation.md (--protocols), with intervals and baselines, into one JSON for `delst report`.
Probes are fitted on the slides that the checkpoint was trained on unless --train_slides says otherwise.
"""

import sys

from delst_hf.atomic.processes import end_like_interrupted
from delst_hf.commands.evaluate import EVALUATION
from delst_hf.errors import run_script
from delst_hf.pretraining.known_options import check_words


def main() -> None:
    end_like_interrupted()
    # Imported here, so that Ctrl-C during the seconds of importing ends in one line too.
    import delst_hf.registration  # noqa: F401
    from delst_hf.commands.evaluate import EvaluationArguments, run_evaluation
    from delst_hf.pretraining.options import parse_arguments

    run_evaluation(parse_arguments((EvaluationArguments,), description=__doc__ or "", groups=EVALUATION)[0])


if __name__ == "__main__":
    sys.exit(run_script(main, "evaluate.py", check=lambda: check_words(sys.argv[1:], EVALUATION, False)))
