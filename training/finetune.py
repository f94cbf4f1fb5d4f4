"""Fine-tune a head, and as much of the backbone as you like, on the expression or the labels of spots.

    python training/finetune.py --model runs/toy/pretrain/model --dataset runs/toy/data --output_dir runs/toy/tuned
    accelerate launch -q training/finetune.py --model DIR --dataset DIR --target labels --lora true --output_dir RUN
    torchrun --nproc_per_node 2 training/finetune.py config.yaml --learning_rate 1e-4
    accelerate launch -q -m delst_hf.pretraining.finetune config.yaml     # with the installed package, without a clone

Options are those of transformers' TrainingArguments and the ones below; options on the command line override a YAML file.
Validation is on patients who are not trained on. A killed run resumes from its last complete checkpoint with
--resume_from_checkpoint true. The result is OUTPUT_DIR/model, with the score on the validation slides in its card.
"""

import sys

from delst_hf.errors import run_script


def main() -> None:
    # Imported here, so that Ctrl-C during the seconds of importing ends in one line too.
    from delst_hf.pretraining.finetune import main as run

    run(description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(run_script(main, "finetune.py"))
