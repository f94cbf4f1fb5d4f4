"""Find the spots nearest to a patch, and map a gene signature from the images alone: no fit, no labels.

    python examples/signature_maps.py runs/toy/pretrain/model runs/toy/data toy_D1 TOY124,TOY129,TOY134 runs/toy/maps

Prints how often a patch finds the genes of its own spot, and writes gallery.png (patches, and the spots whose genes lie
nearest) and signature.png (how much each image looks like the signature, beside the measured expression of its genes).
"""

import sys
from pathlib import Path

import numpy as np
import torch

from delst_hf import DelstCollator, DelstModel, DelstProcessor
from delst_hf.data.study import Study
from delst_hf.evaluation import bidirectional_retrieval, signature_map, signature_profile
from delst_hf.evaluation.embed import embed
from delst_hf.record import read_training_record
from delst_hf.report.plots import retrieval_gallery, spatial_maps

model_folder, dataset, slide, signature, output = sys.argv[1:]
model, processor = DelstModel.from_pretrained(model_folder), DelstProcessor.from_pretrained(model_folder)
study = Study.load(dataset)
spots, train = study.subset([slide]), study.subset(read_training_record(model_folder)["train_slides"])
collator = DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes)
embeddings = embed(model, spots, collator)
image, gene = embeddings.image_embeds, embeddings.gene_embeds
space = {"geometry": model.config.geometry, "curvature": model.curvature.item()}

scores = bidirectional_retrieval(image, gene, **space)
for name in ("image_to_gene", "gene_to_image"):
    recall, chance = scores[f"{name}_recall@10"], scores["chance_recall@10"]
    print(f"{name} recall@10 among {len(spots)} spots: {recall:.2f} (chance {chance:.2f})")

# Four patches, each with the four spots whose genes lie nearest.
rows = []
for query in np.linspace(0, len(spots) - 1, 4).astype(int):
    nearest = np.argsort(-signature_map(image[[query]], gene, **space)[:, 0])[:4]
    found = [(np.asarray(spots[int(i)]["image"]), spots[int(i)]["label"] or "", i == query) for i in nearest]
    rows.append(
        {"query": (np.asarray(spots[int(query)]["image"]), spots[int(query)]["label"] or ""), "retrieved": found}
    )
Path(output).mkdir(parents=True, exist_ok=True)
retrieval_gallery(rows).savefig(f"{output}/gallery.png", dpi=120)

# The signature as an expression profile: the mean training spot, with the signature's genes raised by two standard deviations.
genes, vocabulary = signature.split(","), processor.feature_extractor.vocabulary
reference = collator.gene_values([train[i] for i in range(0, len(train), max(1, len(train) // 500))])
mean, spread = reference.mean(0), reference.std(0)
profiles = np.stack([signature_profile(genes, vocabulary, mean, spread), mean]).astype(np.float32)
with torch.no_grad():
    points = model.get_gene_features(torch.from_numpy(profiles)).pooler_output.numpy()
by_image = signature_map(points[:1], image, reference_embeds=points[1:], **space)[:, 0]
measured = collator.gene_values(list(spots))[:, [vocabulary.index(name) for name in genes if name in vocabulary]].mean(
    1
)
print(f"signature in the images against its measured genes: Pearson {np.corrcoef(by_image, measured)[0, 1]:.2f}")
figure = spatial_maps(spots["x"], spots["y"], {"signature, from images": by_image, "its genes, measured": measured})
figure.savefig(f"{output}/signature.png", dpi=120)
