"""Pretrain DELST on the spots of a dataset folder.

    accelerate launch training/pretrain.py training/configs/toy.yaml
    accelerate launch training/pretrain.py training/configs/her2st.yaml --geometry cosine --seed 1
    torchrun --nproc_per_node 2 training/pretrain.py training/configs/toy.yaml

Options on the command line win over the file. A run that was killed goes on from its last whole checkpoint with
--resume_from_checkpoint true. The result is OUTPUT_DIR/model: load it with DelstModel.from_pretrained.
Negatives come from all processes. Gradient accumulation does not add negatives; --contrastive_micro_batch_size lets a batch
of any size fit into memory with all of its negatives.

An installed package runs the same without this file: accelerate launch -m delst_hf.pretraining toy
"""

import sys
from functools import partial

from delst_hf.errors import run_script
from delst_hf.pretraining.run import GOING_ON, main

if __name__ == "__main__":
    sys.exit(run_script(partial(main, description=__doc__ or ""), "pretrain.py", GOING_ON))
