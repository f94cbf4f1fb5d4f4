"""The README's quickstart, as pasted, on slides of two panels: what a panel lacks is missing, not zero."""

import re
from pathlib import Path

import numpy as np

from delst_hf.data.dataset import merge_datasets, write_dataset
from delst_hf.data.study import Study
from delst_hf.data.toy import make_toy_slide


def test_the_quickstart_reads_the_genes_that_the_slide_measured(toy_folder, toy_checkpoint, tmp_path):
    from delst_hf import DelstCollator, DelstModel, DelstProcessor
    from delst_hf.evaluation.embed import embed

    other = make_toy_slide("toy_D1", spots_per_side=4, image_px=300)
    other.counts, other.genes = other.counts.tocsr()[:, ::3], other.genes[::3].reset_index(drop=True)
    write_dataset([other], tmp_path / "d1", patch_px=32)
    data = tmp_path / "data"
    merge_datasets([toy_folder, tmp_path / "d1"], data)
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = re.search(r"## Quickstart.*?```python\n(.*?)```", text, re.S)[1]
    found: dict = {}
    exec(code.replace("runs/toy/pretrain/model", str(toy_checkpoint)).replace("runs/toy/data", str(data)), found)
    model, processor = DelstModel.from_pretrained(toy_checkpoint).eval(), DelstProcessor.from_pretrained(toy_checkpoint)
    study = Study.load(str(data))
    collator = DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes)
    expected = embed(model, study.subset(["toy_D1"]), collator)
    np.testing.assert_allclose(found["output"].gene_embeds, expected.gene_embeds, atol=1e-5)
    assert not found["inputs"]["gene_mask"].all()
