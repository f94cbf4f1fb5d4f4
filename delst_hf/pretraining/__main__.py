"""Pretrain DELST on the spots of a dataset folder.

    accelerate launch -q -m delst_hf.pretraining toy
    accelerate launch -q -m delst_hf.pretraining her2st --geometry cosine --seed 1
    torchrun --nproc_per_node 2 -m delst_hf.pretraining my-run.yaml

The first argument is a YAML file, or the name of one that comes with the package; options on the command line override it.
A killed run resumes from its last complete checkpoint with --resume_from_checkpoint true. The result is OUTPUT_DIR/model:
load it with DelstModel.from_pretrained.
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
    sys.exit(run_script(main, "pretraining", check=lambda: check_words(sys.argv[1:], PRETRAINING)))
