"""Train on a backbone that is gated or must not be republished, and save the heads without it.

    python examples/gated_backbone.py bioptimus/H-optimus-0 runs/toy/data runs/heads      # after `hf auth login`
    python examples/gated_backbone.py ../models/h-optimus-0 runs/toy/data runs/heads      # a copy on this machine

The backbone stays as it is; the checkpoint names its id, revision and fingerprint. Who loads it fetches the backbone from the
Hub with access of their own, or gives a folder by vision_path=, and gets an error where the weights are not the same.
"""

import sys
from pathlib import Path

import torch

from delst_hf import (
    DelstCollator,
    DelstGeneFeatureExtractor,
    DelstModel,
    DelstProcessor,
    DelstTrainer,
    DelstTrainingArguments,
)
from delst_hf.data.study import Study
from delst_hf.data.vocabulary import select_vocabulary
from delst_hf.hub.checkpoint_folder import save_checkpoint_folder
from delst_hf.model.vision_delst import load_image_processor

backbone, dataset, run = sys.argv[1:]
study = Study.load(dataset)
train = study.subset(study.slide_ids[:-1])
vocabulary = select_vocabulary(study.counts(train), study.gene_names, num_genes=1000)
processor = DelstProcessor(load_image_processor(backbone), DelstGeneFeatureExtractor(vocabulary))
model = DelstModel.from_vision_gene_pretrained(
    backbone, gene_config={"num_genes": len(vocabulary)}, save_backbone=False
)
collator = DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes, defer_pixels=True)
arguments = DelstTrainingArguments(
    f"{run}/checkpoints",
    freeze_vision=True,  # training/pretrain.py has --cache_features beside it, and --lora, which trains a little more
    num_train_epochs=5,
    per_device_train_batch_size=min(128, len(train)),
    save_strategy="no",
    report_to="none",
)
facts = {"train_slides": study.slide_ids[:-1], "vision": backbone}
trainer = DelstTrainer(
    model, arguments, train_dataset=train, data_collator=collator, processing_class=processor, run_facts=facts
)
trainer.train()
folder = save_checkpoint_folder(f"{run}/model", model, processor, trainer.record())

saved, whole = (Path(folder) / "model.safetensors").stat().st_size, sum(p.nbytes for p in model.parameters())
print(f"{folder}: {saved / 1e6:.1f} MB of heads; with the backbone it would be {whole / 1e6:.1f} MB")
loaded = DelstModel.from_pretrained(folder, vision_path=backbone)  # a Hub id needs no vision_path
pixels = processor(images=train[0]["image"], return_tensors="pt")["pixel_values"].to(model.device)
with torch.no_grad():
    before, after = (each.to(model.device).eval().get_image_features(pixels).pooler_output for each in (model, loaded))
print(f"the same embedding after loading: {torch.allclose(before, after)}")
