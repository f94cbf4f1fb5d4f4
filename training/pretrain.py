"""Pretrain DELST on the spots of a dataset folder.

    accelerate launch -q training/pretrain.py training/configs/toy.yaml
    accelerate launch -q training/pretrain.py training/configs/her2st.yaml --geometry cosine --seed 1
    torchrun --nproc_per_node 2 training/pretrain.py training/configs/toy.yaml
    accelerate launch -q -m delst_hf.pretraining toy     # the same with the installed package, without a clone

Options on the command line override the file. A killed run resumes from its last complete checkpoint with
--resume_from_checkpoint true. The result is OUTPUT_DIR/model: load it with DelstModel.from_pretrained.
Negatives come from all processes. Gradient accumulation does not add negatives; --contrastive_micro_batch_size lets a batch
of any size fit into memory with all of its negatives.
"""

import sys

from delst_hf.errors import run_script
from delst_hf.pretraining.help_groups import PRETRAINING
from delst_hf.pretraining.known_options import check_words


def main() -> None:
    # Imported here, so that Ctrl-C during the seconds of importing ends in one line too.
    import delst_hf.registration  # noqa: F401
    from delst_hf.pretraining.run import main as run

    run(description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(run_script(main, "pretrain.py", check=lambda: check_words(sys.argv[1:], PRETRAINING)))
