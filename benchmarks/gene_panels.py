r"""Measure retrieval when a slide has only a part of the vocabulary: does a model trained on one panel run on another?

    python benchmarks/gene_panels.py --dataset runs/toy/data --slides toy_C1,toy_D1 \
        --models runs/toy/pretrain/model runs/toy/set/model

Recall@10 over the pool of all spots of the slides, image to gene and gene to image, for the whole vocabulary and for random
parts of it (the mean over three draws). Chance is 10 / spots.
"""

import argparse

import numpy as np
import torch

from delst_hf import DelstModel, DelstProcessor
from delst_hf.data.study import Study
from delst_hf.evaluation.retrieval import bidirectional_retrieval
from delst_hf.pretraining.arguments import split_names

KEYS = ("image_to_gene_recall@10", "gene_to_image_recall@10")


@torch.no_grad()
def recalls(folder: str, images: list, counts: np.ndarray, names: list[str], shares: list[float]) -> list[np.ndarray]:
    """Return both recalls of one checkpoint for each share of the genes."""
    model, processor = DelstModel.from_pretrained(folder).eval(), DelstProcessor.from_pretrained(folder)
    processor.feature_extractor.min_match_rate = 0.0  # a small panel is what is asked for
    batches = [images[i : i + 64] for i in range(0, len(images), 64)]
    pixels = (processor(images=batch, return_tensors="pt")["pixel_values"] for batch in batches)
    image_embeds = torch.cat([model.get_image_features(batch).pooler_output for batch in pixels])
    found = []
    for share in shares:
        draws = []
        for seed in range(3 if share < 1 else 1):
            order = np.random.default_rng(seed).permutation(len(names))
            kept = np.sort(order[: round(share * len(names))])
            inputs = processor(counts=counts[:, kept], gene_names=[names[i] for i in kept], return_tensors="pt")
            genes = model.get_gene_features(inputs["gene_values"], inputs["gene_mask"]).pooler_output
            scores = bidirectional_retrieval(
                image_embeds.numpy(), genes.numpy(), model.config.geometry, curvature=model.curvature.item()
            )
            draws.append([scores[key] for key in KEYS])
        found.append(np.mean(draws, axis=0))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--slides", required=True, help="comma-separated held-out slides")
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.5, 0.25])
    arguments = parser.parse_args()
    study = Study.load(arguments.dataset)
    spots = study.subset(split_names(arguments.slides))
    images, counts, names = spots["image"][:], study.counts(spots).toarray(), list(study.gene_names)
    print(f"{len(spots)} spots, chance {10 / len(spots):.3f}")
    print(f"| model | {' | '.join(f'{share:.0%}' for share in arguments.shares)} |")
    print("|---" * (len(arguments.shares) + 1) + "|")
    for folder in arguments.models:
        cells = [f"{a:.3f} / {b:.3f}" for a, b in recalls(folder, images, counts, names, arguments.shares)]
        print(f"| {folder} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
