"""Fine-tune a classifier of spots from a pretrained checkpoint with transformers' own Trainer, and use it as a pipeline.

    python examples/finetune_classifier.py runs/toy/pretrain/model runs/toy/data toy_D1 runs/toy/classifier

Trains on the labels of all other slides and prints macro-F1 on this one, beside that of predicting the most common class.
Writes the model and map.png, the pathologist's labels beside the predicted ones.
"""

import sys

import numpy as np
import torch
from transformers import Trainer, TrainingArguments, pipeline

from delst_hf import DelstForSpotClassification, DelstProcessor
from delst_hf.data.study import Study
from delst_hf.evaluation import macro_f1
from delst_hf.report.plots import spatial_maps

model_folder, dataset, slide, output = sys.argv[1:]
study = Study.load(dataset)
labelled = study.spots.filter(lambda label: label not in (None, "", "undetermined"), input_columns="label")
train = labelled.filter(lambda name: name != slide, input_columns="slide_id")
test = labelled.filter(lambda name: name == slide, input_columns="slide_id")
names = sorted(set(train["label"][:]))

processor = DelstProcessor.from_pretrained(model_folder)
model = DelstForSpotClassification.from_pretrained(
    model_folder, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}
)


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    inputs = processor(images=[row["image"] for row in rows], return_tensors="pt")
    return {**inputs, "labels": torch.tensor([names.index(row["label"]) for row in rows])}


arguments = TrainingArguments(
    f"{output}/checkpoints",
    num_train_epochs=5,
    per_device_train_batch_size=32,
    learning_rate=1e-4,
    remove_unused_columns=False,  # `collate` reads the columns of the dataset
    save_strategy="no",
    report_to="none",
)
Trainer(model, arguments, train_dataset=train, data_collator=collate).train()
model.save_pretrained(output)
processor.save_pretrained(output)

classify = pipeline("image-classification", model=output, top_k=1)
predicted = [answer[0]["label"] for answer in classify(test["image"][:])]
commonest = [max(names, key=train["label"][:].count)] * len(test)
for name, answers in (("fine-tuned", predicted), ("commonest class", commonest)):
    print(
        f"{name}: macro-F1 {macro_f1(np.array(test['label'][:]), np.array(answers)):.2f} on {len(test)} spots of {slide}"
    )
figure = spatial_maps(test["x"], test["y"], {"labels": test["label"][:], "predicted": predicted})
figure.savefig(f"{output}/map.png", dpi=120)
