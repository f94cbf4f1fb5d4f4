"""Measure CPU seconds of a backbone without gradients: as run by transformers, and by prediction and evaluation.

    python benchmarks/backbone.py path/to/mobilenet_v2 --patches 64 --turns 7

BACKBONE is a folder or Hub id of transformers. Both run on the same patches of noise, turn by turn in one run; the ratio is
taken within each turn, and its median and quartiles are printed. Features of both are compared with those of float64.
"""

import argparse
import statistics
import time
from copy import deepcopy

import numpy as np
import torch
from transformers import AutoModel

from delst_hf import DelstConfig, DelstModel
from delst_hf.evaluation.backbone import InferenceBackbone
from delst_hf.model.vision_delst import encode_images


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone")
    parser.add_argument("--patches", type=int, default=64)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    plain = AutoModel.from_pretrained(options.backbone).eval()
    model = DelstModel(DelstConfig(vision_config=plain.config)).eval()
    model.vision_model = deepcopy(plain)
    pooling = model.config.vision_pooling
    pixels = torch.randn(options.patches, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    ours = InferenceBackbone(model)
    works = {
        "transformers": lambda: encode_images(plain, pixels, pooling).pooler_output,
        "delst": lambda: ours(pixels),
    }
    exact = encode_images(deepcopy(plain).double(), pixels.double(), pooling).pooler_output
    for name, work in works.items():  # the first turn, which is not counted
        print(
            f"{name:12} differs from float64 by {((work() - exact).abs().max() / exact.abs().max()).item():.1e} of the largest"
        )
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(options.turns):
        for name in np.roll(list(works), turn).tolist():
            start = time.process_time()
            works[name]()
            taken[name].append(time.process_time() - start)
    for name, seconds in taken.items():
        print(f"{name:12} {1000 * statistics.median(seconds) / options.patches:.1f} CPU ms per patch")
    ratios = [own / theirs for theirs, own in zip(*taken.values(), strict=True)]
    print("delst / transformers: {1:.2f} ({0:.2f} to {2:.2f})".format(*np.quantile(ratios, [0.25, 0.5, 0.75])))


if __name__ == "__main__":
    main()
