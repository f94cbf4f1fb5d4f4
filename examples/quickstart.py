"""Embed a slide and find, for its first patch, the spots whose genes lie nearest.

python examples/quickstart.py runs/toy/pretrain/model runs/toy/data toy_D1
"""

import sys

from delst_hf import DelstCollator, DelstModel, DelstProcessor
from delst_hf.data.study import Study
from delst_hf.evaluation.embed import embed
from delst_hf.model.lorentz import radius

model_folder, dataset_folder, slide = sys.argv[1:]
model, processor = DelstModel.from_pretrained(model_folder), DelstProcessor.from_pretrained(model_folder)
study = Study.load(dataset_folder)
spots = study.subset([slide])
collator = DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes)

embeddings = embed(model, spots, collator)
image, gene = model.get_image_features, model.get_gene_features  # one patch or one profile at a time
batch = collator([spots[0]])
similarity = model.similarity(
    image(batch["pixel_values"]).pooler_output, model.gene_model.missing_values.new_tensor(embeddings.gene_embeds)
)
print(f"query: spot {spots[0]['barcode']}, {spots[0]['label']}; the five spots whose genes are nearest to its image:")
for i in similarity[0].topk(5).indices.tolist():
    row = spots[i]
    print(f"spot {row['barcode']}: {row['label']}, {row['n_genes']} genes, similarity {similarity[0, i]:.2f}")
if model.config.geometry == "lorentz":
    radii = radius(similarity.new_tensor(embeddings.image_embeds), model.curvature.item())
    print(f"mean radius of the slide's image embeddings: {radii.mean():.2f}")
