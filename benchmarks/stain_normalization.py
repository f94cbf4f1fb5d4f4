"""Measure what colour normalisation does to the prediction of expression by a frozen backbone, on held-out slides.

    python benchmarks/stain_normalization.py data/her2st --vision BACKBONE --fit-slides C2,C3,C4 --test-slides C5,B4

Per normalisation, a ridge is fitted on the backbone's features, with the penalty chosen on left-out fitting slides. Printed are
the mean Pearson over the 100 most variable genes of the fitting slides, its difference to no normalisation with a bootstrap
interval over spots, and the time to prepare patches, as a ratio to no normalisation in the same run.
"""

import argparse
import time

import numpy as np
import torch

from delst_hf import DelstGeneConfig, DelstGeneFeatureExtractor, DelstModel, DelstProcessor, Study
from delst_hf.data.collator import DelstCollator
from delst_hf.evaluation.embed import embed
from delst_hf.evaluation.expression import gene_pearson, ridge_prediction
from delst_hf.evaluation.predicted_genes import most_variable_genes
from delst_hf.model.feature_extraction_delst import log_normalize
from delst_hf.model.processing_delst import STAIN_NORMALIZATIONS
from delst_hf.model.vision_delst import load_image_processor

NUM_GENES, RESAMPLES = 100, 500


def features_of(method: str, args: argparse.Namespace, study: Study, spots) -> tuple[np.ndarray, float]:
    """Return the features (spots, width) of the backbone on normalised patches, and the seconds to prepare some patches."""
    genes = study.gene_names[:1]  # a gene encoder is required; its output is not used
    config = DelstGeneConfig(num_genes=1, hidden_size=8, encoder="linear")
    model = DelstModel.from_vision_gene_pretrained(args.vision, config).to(args.device).eval()
    processor = DelstProcessor(load_image_processor(args.vision), DelstGeneFeatureExtractor(vocabulary=genes), method)
    collator = DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes, defer_pixels=True)
    rows = [spots[i] for i in range(min(64, len(spots)))]
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        collator.finish({"pixel_values": collator([dict(row) for row in rows])["pixel_values"].to(args.device)})
        if args.device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return embed(model, spots, collator).features, min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--vision", required=True)
    parser.add_argument("--fit-slides", required=True)
    parser.add_argument("--test-slides", required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    fit_slides, test_slides = args.fit_slides.split(","), args.test_slides.split(",")
    study = Study.load(args.dataset)
    spots = study.subset([*fit_slides, *test_slides])
    slides = np.asarray(spots["slide_id"][:])
    fit = np.isin(slides, fit_slides)
    expression = log_normalize(study.counts(spots))
    genes = most_variable_genes(expression[fit], NUM_GENES)
    measured = np.asarray(expression[:, genes].todense(), dtype=np.float64)

    predicted, seconds = {}, {}
    for method in STAIN_NORMALIZATIONS:
        features, seconds[method] = features_of(method, args, study, spots)
        predicted[method] = ridge_prediction(features[fit], measured[fit], features, slides[fit]).predicted
    print(f"{'slide':8} {'stains':10} {'Pearson':>8} {'difference to none':>26} {'time':>6}")
    rng = np.random.default_rng(0)
    for slide in test_slides:
        rows = np.flatnonzero(slides == slide)
        draws = [rng.choice(rows, len(rows)) for _ in range(RESAMPLES)]
        scores = {method: score(predicted[method], measured, rows) for method in predicted}
        for method in predicted:
            told = ""
            if method != "none":
                gains = [
                    score(predicted[method], measured, draw) - score(predicted["none"], measured, draw)
                    for draw in draws
                ]
                low, high = np.percentile(gains, [2.5, 97.5])
                told = f"{scores[method] - scores['none']:+.3f} ({low:+.3f} to {high:+.3f})"
            time_ratio = seconds[method] / seconds["none"]
            print(f"{slide:8} {method:10} {scores[method]:8.3f} {told:>26} {time_ratio:6.2f}")


def score(predicted: np.ndarray, measured: np.ndarray, rows: np.ndarray) -> float:
    """Return the mean Pearson over the genes that vary in these rows."""
    return float(np.nanmean(gene_pearson(predicted[rows], measured[rows])))


if __name__ == "__main__":
    main()
