"""Predict expression from patches: a ridge regression on the backbone's features, fitted on the slides of the pretraining.

    python examples/expression_prediction.py runs/toy/pretrain/model runs/toy/data toy_D1 runs/toy/prediction.png

Prints the mean Pearson correlation over the 50 most variable genes on the slide, beside that of eleven colour statistics of
each patch, and draws the best predicted gene. Genes, penalty and scales are all chosen on the training slides.
"""

import sys

import numpy as np

from delst_hf import DelstCollator, DelstModel, DelstProcessor
from delst_hf.data.study import Study
from delst_hf.evaluation import (
    colour_statistics,
    gene_pearson,
    impute_by_retrieval,
    log_normalize,
    most_variable_genes,
    ridge_prediction,
)
from delst_hf.evaluation.embed import embed
from delst_hf.record import read_training_record
from delst_hf.report.plots import spatial_maps

model_folder, dataset, slide, output = sys.argv[1:]
model, processor = DelstModel.from_pretrained(model_folder), DelstProcessor.from_pretrained(model_folder)
study = Study.load(dataset)
train, test = study.subset(read_training_record(model_folder)["train_slides"]), study.subset([slide])
collator = DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes)

known, measured = (log_normalize(study.counts(spots)) for spots in (train, test))
chosen = most_variable_genes(known, 50)
known, measured = known[:, chosen].toarray(), measured[:, chosen].toarray()
of_train, of_test = embed(model, train, collator), embed(model, test, collator)
colour_of_train, colour_of_test = (colour_statistics(row["image"] for row in spots) for spots in (train, test))
space = {"geometry": model.config.geometry, "curvature": model.curvature.item()}

predictions = {
    "eleven colour statistics": ridge_prediction(
        colour_of_train, known, colour_of_test, train["slide_id"][:]
    ).predicted,
    "features of the backbone": ridge_prediction(
        of_train.features, known, of_test.features, train["slide_id"][:]
    ).predicted,
    "retrieval of 20 training spots": impute_by_retrieval(of_test.image_embeds, of_train.gene_embeds, known, **space),
}
for name, predicted in predictions.items():
    scores = gene_pearson(predicted, measured)
    print(f"{name:32s} mean Pearson of {len(chosen)} genes on {slide}: {np.nanmean(scores):.3f}")

predicted = predictions["features of the backbone"]
best = int(np.nanargmax(gene_pearson(predicted, measured)))
gene = study.gene_names[chosen[best]]
panels = {f"{gene}, measured": measured[:, best], f"{gene}, predicted": predicted[:, best]}
spatial_maps(test["x"], test["y"], panels, unit="log1p of counts per 10,000").savefig(output, dpi=120)
