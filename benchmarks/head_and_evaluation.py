"""Measure what each choice of `delst fit` and `delst predict` contributes to the Pearson correlation on held-out slides.

    python benchmarks/head_and_evaluation.py MODEL DATASET --train-slides C2,C3,C4 --image C5=C5.jpg --image B4=B4.jpg

The choices are those of `delst evaluate`: features unchanged, the penalty chosen by the 100 genes of highest variance, patches
that were stored as JPEG. One is changed at a time: patches directly from the image, the penalty chosen by all genes of the
vocabulary, features standardised patch by patch.
"""

import argparse

import numpy as np
import scipy.sparse as sp
import torch

from delst_hf.data.readers.image import read_slide_image
from delst_hf.data.study import Study
from delst_hf.evaluation import gene_pearson, log_normalize, most_variable_genes
from delst_hf.evaluation.expression import ridge_prediction
from delst_hf.prediction import load_predictor
from delst_hf.prediction.source import PatchSource, dataset_source, slide_source


def standardised(features: np.ndarray) -> np.ndarray:
    return torch.nn.functional.layer_norm(torch.from_numpy(features), features.shape[-1:]).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--train-slides", required=True)
    parser.add_argument("--image", action="append", required=True, metavar="SLIDE=FILE")
    given = parser.parse_args()
    train, images = given.train_slides.split(","), dict(each.split("=", 1) for each in given.image)
    predictor, study = load_predictor(given.model), Study.load(given.dataset)

    @torch.no_grad()
    def features(source: PatchSource) -> np.ndarray:
        starts = range(0, len(source), 32)
        parts = [predictor.pixel_values(source.read(list(range(i, min(i + 32, len(source)))))) for i in starts]
        return np.concatenate([predictor.features(part).float().numpy() for part in parts])

    stored = {name: features(dataset_source(given.dataset, study, [name])) for name in [*train, *images]}
    cut = {}
    for name, path in images.items():
        facts = study.slides.set_index("slide_id").loc[name]
        places = dataset_source(given.dataset, study, [name]).rows[["x", "y"]]
        slide = read_slide_image(path, mpp=float(facts["mpp"]), positions=places)
        cut[name] = features(slide_source(slide, float(facts["patch_um"]), predictor.patch_px))

    counts = {name: log_normalize(study.counts(study.subset([name]))) for name in stored}
    known = sp.vstack([counts[name] for name in train]).tocsr()
    scored = list(most_variable_genes(known, 100))
    place = {name: i for i, name in enumerate(study.gene_names)}
    every = [place[name] for name in predictor.processor.feature_extractor.vocabulary if name in place]
    groups = np.concatenate([[name] * len(stored[name]) for name in train])
    steps = (
        ("as delst fit and delst predict do it", stored, lambda x: x, scored),
        ("patches of the image that are not stored as JPEG once more", cut, lambda x: x, scored),
        ("penalty by all genes of the vocabulary", stored, lambda x: x, every),
        ("features standardised patch by patch", stored, standardised, scored),
    )
    for title, test, prepared, genes in steps:
        inputs = np.concatenate([prepared(stored[name]) for name in train])
        values = {}
        for name in images:
            fitted = ridge_prediction(inputs, known[:, genes].toarray(), prepared(test[name]), groups)
            predicted = dict(zip(genes, fitted.predicted.T, strict=True))
            columns = [gene for gene in scored if gene in predicted]
            found = np.stack([predicted[gene] for gene in columns], axis=1)
            values[name] = float(np.nanmean(gene_pearson(found, counts[name][:, columns].toarray())))
        print(f"{title:72}", "  ".join(f"{name} {value:.4f}" for name, value in values.items()), flush=True)


if __name__ == "__main__":
    main()
