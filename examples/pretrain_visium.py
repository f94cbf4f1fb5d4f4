"""Pretrain on your own Visium slides, and score the model on one that it has not seen.

    python examples/pretrain_visium.py facebook/dinov2-small runs/visium S1/outs S2/outs S3/outs

Takes a backbone (Hub id or local folder), a folder to write to and the folders `outs` of Space Ranger; the last slide is the
test. Writes RUN/data (a dataset folder for load_dataset) and RUN/model (for from_pretrained). The same from the shell, with all
options and on several GPUs: `delst prepare visium`, training/pretrain.py, training/evaluate.py.
"""

import sys
from functools import partial

from delst_hf import (
    DelstCollator,
    DelstGeneFeatureExtractor,
    DelstModel,
    DelstProcessor,
    DelstTrainer,
    DelstTrainingArguments,
    write_dataset,
)
from delst_hf.data.readers.visium import read_visium
from delst_hf.data.study import Study
from delst_hf.data.vocabulary import select_vocabulary
from delst_hf.evaluation.result_tables import format_results
from delst_hf.evaluation.run import evaluate_checkpoint
from delst_hf.hub.checkpoint_folder import save_checkpoint_folder
from delst_hf.hub.facts import data_facts
from delst_hf.model.vision_delst import load_image_processor

backbone, run, *folders = sys.argv[1:]
# For sharp patches name the full-resolution image too: read_visium(outs, image=...); without it the reduced one is used.
write_dataset([partial(read_visium, outs) for outs in folders], f"{run}/data", patch_um=112, patch_px=224)
study = Study.load(f"{run}/data")
*train_slides, test_slide = study.slide_ids
train = study.subset(train_slides)

vocabulary = select_vocabulary(study.counts(train), study.gene_names, num_genes=1000)
processor = DelstProcessor(load_image_processor(backbone), DelstGeneFeatureExtractor(vocabulary))
model = DelstModel.from_vision_gene_pretrained(backbone, gene_config={"num_genes": len(vocabulary)})
collator = DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes, defer_pixels=True)

arguments = DelstTrainingArguments(
    f"{run}/checkpoints",
    num_train_epochs=10,
    per_device_train_batch_size=min(128, len(train)),  # negatives are the other spots of the batch: large is good
    vision_learning_rate=5e-5,
    save_strategy="no",
    report_to="none",
)
facts = {"train_slides": train_slides, "vision": backbone, "data": data_facts(f"{run}/data", study, train_slides)}
trainer = DelstTrainer(
    model, arguments, train_dataset=train, data_collator=collator, processing_class=processor, run_facts=facts
)
trainer.train()
save_checkpoint_folder(f"{run}/model", model, processor, trainer.record())
results = evaluate_checkpoint(model, processor, study, train_slides, [test_slide], frozen_backbone=backbone)
print(format_results(results))
