"""Predict the expression of a slide that has only H&E: fit a head on slides with counts, map the new slide, score the map.

    python examples/virtual_spatial_transcriptomics.py runs/toy/pretrain/model runs/toy/data toy_D1 he.png 2 runs/toy/virtual

Arguments: checkpoint, dataset folder, the slide to predict, its image, micrometres per pixel, an output folder. The slide is
predicted from its image alone. If the dataset holds its counts, on which nothing here was fitted, the mean Pearson over the
100 most variable genes of the training slides is printed; predictions are interpolated linearly from the grid to the spots.
Two of these genes are drawn, measured beside predicted: those predicted best on slides left out of the fit.
"""

import sys
from pathlib import Path

import anndata
import numpy as np
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator

from delst_hf.data.study import Study
from delst_hf.evaluation import gene_pearson, log_normalize, most_variable_genes
from delst_hf.prediction import PatchChoice, fit_head, predict_slide
from delst_hf.record import read_training_record
from delst_hf.report.plots import spatial_maps

model, dataset, slide, image, mpp, folder = sys.argv[1:]
train = [name for name in read_training_record(model)["train_slides"] if name != slide]
head = fit_head(model, dataset, Path(folder) / "head", train_slides=train)
print(f"fitted on {', '.join(train)}; left out in turn, mean Pearson {head['pearson_mean']:.3f}")

# Patches overlap by half, so that every spot lies between several.
output = Path(folder) / f"{slide}.h5ad"
choice = PatchChoice(mpp=float(mpp), stride_um=56.0)
predict_slide(str(Path(folder) / "head"), image, output, choice=choice)
predicted = anndata.read_h5ad(output)
print(f"{output}: {predicted.n_obs} patches x {predicted.n_vars} genes")

study = Study.load(dataset)
if slide in study.slide_ids:
    known, spots = log_normalize(study.counts(study.subset(train))), study.subset([slide])
    names = [study.gene_names[i] for i in most_variable_genes(known, min(100, known.shape[1]))]
    names = [name for name in names if name in predicted.var_names]
    columns = [study.gene_names.index(name) for name in names]
    measured = log_normalize(study.counts(spots))[:, columns].toarray()
    places = np.column_stack([spots["x"][:], spots["y"][:]])
    grid, values = predicted.obsm["spatial"], np.asarray(predicted[:, names].X)
    at_spots, nearest = LinearNDInterpolator(grid, values)(places), NearestNDInterpolator(grid, values)(places)
    at_spots = np.where(np.isnan(at_spots), nearest, at_spots)
    score = np.nanmean(gene_pearson(at_spots, measured))
    print(f"held-back counts of {len(places)} spots: mean Pearson {score:.3f} over {len(names)} genes")
    best = predicted.var.loc[names, "pearson"].nlargest(2).index
    maps = {}
    for name in best:
        place = names.index(name)
        maps |= {f"{name}, measured": measured[:, place], f"{name}, predicted": at_spots[:, place]}
    spatial_maps(*places.T, maps, unit="log counts").savefig(Path(folder) / f"{slide}.png")
    print(f"{Path(folder) / f'{slide}.png'}: {' and '.join(best)}, chosen on slides that were left out of the fit")
