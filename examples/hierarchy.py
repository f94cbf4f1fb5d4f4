"""Show the learned hierarchy: the Poincare disk of a slide, and numbers that say whether it means anything.

    python examples/hierarchy.py runs/toy/pretrain/model runs/toy/data toy_D1 runs/toy/hierarchy.png

Points near the centre are general, points near the rim specific. Each number is printed beside its control, without which it
says little: levels shuffled within the slide, and cones that hold the children of other spots.
"""

import sys

import numpy as np
import torch

from delst_hf import DelstCollator, DelstModel, DelstProcessor
from delst_hf.data.study import Study
from delst_hf.evaluation.embed import embed
from delst_hf.evaluation.illustrations import leading_plane
from delst_hf.evaluation.protocols.hierarchy import hierarchy_report
from delst_hf.model.lorentz import log_map0
from delst_hf.report.plots import poincare_disk

model_folder, dataset, slide, output = sys.argv[1:]
model, processor = DelstModel.from_pretrained(model_folder), DelstProcessor.from_pretrained(model_folder)
if model.config.geometry != "lorentz":
    sys.exit(f"geometry={model.config.geometry!r} has no hierarchy: pretrain with --geometry lorentz.")
study = Study.load(dataset)
spots = study.subset([slide])
collator = DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes)
embeddings = embed(model, spots, collator)
image, gene, curvature = embeddings.image_embeds, embeddings.gene_embeds, model.curvature.item()
options = {"parent": model.config.cross_parent, "min_radius": model.config.min_radius}
num_genes, labels = np.asarray(spots["n_genes"][:]), spots["label"][:]
report = hierarchy_report(
    image, gene, curvature, num_genes=num_genes, total_counts=spots["total_counts"][:], slides=spots["slide_id"][:],
    labels=labels, **options,
)  # fmt: skip
for modality in ("image", "gene"):
    radius, aperture, order, shuffled = (
        report[f"{modality}_{name}"]
        for name in ("radius", "half_aperture", "radius_genes_within", "radius_genes_shuffled")
    )
    print(f"{modality}: mean radius {radius:.2f}, half-aperture of its cones {aperture:.0f} degrees")
    print(f"  rank correlation of radius and number of expressed genes {order:.2f}, shuffled {shuffled:.2f}")
print(
    f"child in its parent's cone {report['in_cone_matched']:.2f}, child of another {report['in_cone_mismatched']:.2f}"
)
print(f"curvature -{curvature:.2f}, tree-likeness delta {report['delta_hyperbolic']:.2f} (0: a tree)")

tangents = (log_map0(torch.from_numpy(points), curvature).numpy() for points in (image, gene))
image_plane, gene_plane = leading_plane(*tangents)
figure = poincare_disk(image_plane, gene_plane, curvature, labels, num_genes, cone_of=len(image) // 2, **options)
figure.savefig(output, dpi=120)
