"""Why a head of `delst fit` and `delst evaluate` print different Pearson correlations for one model: step by step.

    python benchmarks/head_and_evaluation.py MODEL DATASET --train-slides C2,C3,C4 --image C5=C5.jpg --image B4=B4.jpg

Both fit a ridge on frozen features. The evaluation reads the features as they are and chooses the penalty by the 100 genes that
it scores; a head reads features standardised patch by patch, and chooses it by all genes of its vocabulary. A prediction cuts
its patches from the image, the evaluation reads those that the dataset stored as JPEG. One step is changed at a time.
"""

import argparse

import numpy as np
import scipy.sparse as sp
import torch

from delst_hf.data.readers.image import read_slide_image
from delst_hf.data.study import Study
from delst_hf.evaluation import gene_pearson, log_normalize, most_variable_genes
from delst_hf.evaluation.expression import RidgeReadout
from delst_hf.model.modeling_delst_heads import standardise
from delst_hf.prediction import load_predictor
from delst_hf.prediction.source import PatchSource, dataset_source, slide_source


def standardised(features: np.ndarray) -> np.ndarray:
    return standardise(torch.from_numpy(features)).numpy()


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
        ("as the evaluation: features as they are, penalty by the genes scored", stored, lambda x: x, scored),
        ("penalty by all genes of the vocabulary", stored, lambda x: x, every),
        ("features standardised patch by patch", stored, standardised, every),
        ("as a prediction: patches cut from the image", cut, standardised, every),
    )
    for title, test, prepared, genes in steps:
        inputs = np.concatenate([prepared(stored[name]) for name in train])
        values = {}
        for name in images:
            readout = RidgeReadout(inputs, prepared(test[name]), groups)
            predicted = dict(zip(genes, readout.predict(known[:, genes].toarray()).predicted.T, strict=True))
            columns = [gene for gene in scored if gene in predicted]
            found = np.stack([predicted[gene] for gene in columns], axis=1)
            values[name] = float(np.nanmean(gene_pearson(found, counts[name][:, columns].toarray())))
        print(f"{title:72}", "  ".join(f"{name} {value:.4f}" for name, value in values.items()), flush=True)


if __name__ == "__main__":
    main()
