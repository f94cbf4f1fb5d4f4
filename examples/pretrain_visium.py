"""Pretrain on your own Visium slides, and score the model on one that it has not seen.

    python examples/pretrain_visium.py facebook/dinov2-small runs/visium S1/outs S2/outs S3/outs

Takes a backbone (Hub id or local folder), a folder RUN to write to and the `outs` folders of Space Ranger; the last slide is
the test slide. Writes RUN/data (a dataset folder for load_dataset) and RUN/model (for from_pretrained). The same from the
shell, with all options and several GPUs: `delst prepare visium`, `accelerate launch -m delst_hf.pretraining`, `delst evaluate`.
"""

import sys
from functools import partial

import torch

from delst_hf import (
    DataArguments,
    DelstTrainingArguments,
    ModelArguments,
    Study,
    assemble,
    evaluate_checkpoint,
    save_run,
)
from delst_hf.data.dataset import write_dataset
from delst_hf.data.readers.visium import read_visium
from delst_hf.evaluation.result_tables import format_results

backbone, run, *folders = sys.argv[1:]
# For sharp patches give the full-resolution image too, read_visium(outs, image=...); without it the reduced one is used.
write_dataset([partial(read_visium, outs) for outs in folders], f"{run}/data", patch_um=112, patch_px=224)
study = Study.load(f"{run}/data")
*train_slides, test_slide = study.slide_ids

data = DataArguments(f"{run}/data", test_slides=test_slide, num_genes=1000)
# Without a GPU the backbone stays frozen and encodes each patch once: minutes instead of hours.
frozen = not torch.cuda.is_available()
training = DelstTrainingArguments(
    run,
    freeze_vision=frozen,
    cache_features=frozen,
    num_train_epochs=10,
    per_device_train_batch_size=min(
        128, len(study.subset(train_slides))
    ),  # the other spots are the negatives: the larger, the better
    vision_learning_rate=5e-5,
    save_strategy="no",
    report_to="none",
)
trainer = assemble(study, data, ModelArguments(vision=backbone), training)
trainer.train()
save_run(trainer)
results = evaluate_checkpoint(
    trainer.model, trainer.processor, study, train_slides, [test_slide], frozen_backbone=backbone
)
print(format_results(results))
