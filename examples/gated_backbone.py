"""Train on a backbone that is gated or must not be republished, and save the heads without it.

    python examples/gated_backbone.py bioptimus/H-optimus-0 runs/toy/data runs/heads      # after `hf auth login`
    python examples/gated_backbone.py ../models/h-optimus-0 runs/toy/data runs/heads      # a copy on this machine

The backbone is not trained; the checkpoint stores its id, revision and fingerprint. Users of the checkpoint fetch the backbone
from the Hub with their own access, or give a folder with vision_path=; weights that differ are an error.
"""

import sys
from pathlib import Path

import torch

from delst_hf import DataArguments, DelstModel, DelstTrainingArguments, ModelArguments, Study, assemble, save_run

backbone, dataset, run = sys.argv[1:]
study = Study.load(dataset)
data = DataArguments(dataset, test_slides=study.slide_ids[-1])
training = DelstTrainingArguments(
    run,
    freeze_vision=True,  # --lora trains a little more
    cache_features=True,  # the backbone sees each patch once
    num_train_epochs=5,
    per_device_train_batch_size=min(128, len(study.subset(study.slide_ids[:-1]))),
    save_strategy="no",
    report_to="none",
)
trainer = assemble(study, data, ModelArguments(vision=backbone, save_backbone=False), training)
trainer.train()
folder, model, processor = save_run(trainer), trainer.model, trainer.processor

saved, whole = (Path(folder) / "model.safetensors").stat().st_size, sum(p.nbytes for p in model.parameters())
print(f"{folder}: {saved / 1e6:.1f} MB of heads; with the backbone it would be {whole / 1e6:.1f} MB")
loaded = DelstModel.from_pretrained(folder, vision_path=backbone)  # a Hub id needs no vision_path
pixels = processor(images=study.spots[0]["image"], return_tensors="pt")["pixel_values"].to(model.device)
with torch.no_grad():
    before, after = (each.to(model.device).eval().get_image_features(pixels).pooler_output for each in (model, loaded))
print(f"the same embedding after loading: {torch.allclose(before, after)}")
