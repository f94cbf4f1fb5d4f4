"""Embed a slide and find, for its first patch, the spots whose genes lie nearest.

python examples/quickstart.py runs/toy/pretrain/model runs/toy/data toy_D1
"""

import sys

import torch

from delst_hf import DelstCollator, DelstModel, DelstProcessor, Study, embed
from delst_hf.model.lorentz import radius

model_folder, dataset_folder, slide = sys.argv[1:]
model = DelstModel.from_pretrained(model_folder).eval()
processor = DelstProcessor.from_pretrained(model_folder)  # knows the genes that the model reads, and normalises counts

# A study resembles an AnnData of several slides: spots (obs, with their patches and counts), genes (var) and slides.
study = Study.load(dataset_folder)
spots = study.subset([slide])
collator = DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes)  # rows of spots -> a batch

# Both embeddings of every spot: numpy arrays (spots, dim); row i of each is spot i.
embeddings = embed(model, spots, collator)
images, genes = torch.from_numpy(embeddings.image_embeds), torch.from_numpy(embeddings.gene_embeds)

similarity = model.similarity(images[:1], genes)[0]  # between the first patch and the genes of every spot
print(f"query: spot {spots[0]['barcode']}, {spots[0]['label']}; the five spots whose genes are nearest to its image:")
for i in similarity.topk(5).indices.tolist():
    print(
        f"spot {spots[i]['barcode']}: {spots[i]['label']}, {spots[i]['n_genes']} genes, similarity {similarity[i]:.2f}"
    )
if model.config.geometry == "lorentz":  # general spots lie near the origin, specific ones far out
    print(f"mean radius of the slide's image embeddings: {radius(images, model.curvature.item()).mean():.2f}")
