"""Patches turned and normalised by the Triton kernel and by torch, compared; run by test_data_turned_kernel.py.

    python tests/turned_pixels.py cpu     by Triton's interpreter
    python tests/turned_pixels.py cuda    on the device

Prints one JSON object: case -> whether the kernel served, values that differ, and whether the order of memory is the same.
"""

import json
import os
import sys
from types import SimpleNamespace

device = sys.argv[1]
if device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402

from delst_hf.data import turned_kernel  # noqa: E402
from delst_hf.data.collator import PixelTransform, orientation_choices, random_orientation  # noqa: E402

IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
ODD = {"image_mean": (0.1, 0.7071, 1 / 3), "image_std": (0.3, 1.1, 0.0173)}
SIDES = (1, 7, 32) if device == "cpu" else (1, 7, 32, 33, 70, 224, 256, 299)
calls = []


def transform_of(side, normalisation, do_rescale=True):
    processor = SimpleNamespace(
        size={"height": side, "width": side},
        do_rescale=do_rescale,
        rescale_factor=1 / 255,
        do_normalize=True,
        **normalisation,
    )
    return PixelTransform.from_processor(SimpleNamespace(image_processor=processor, normalize_stains=lambda x: x))


def compared(side, normalisation, batch=8, contiguous=False, **options):
    transform = transform_of(side, normalisation, **options)
    pixels = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    pixels = pixels.contiguous() if contiguous else pixels
    # Each of the eight orientations once, in an order of its own.
    number = torch.randperm(batch, device=device)
    choices = (number >> torch.arange(3, device=device)[:, None]).bitwise_and(1).bool().view(3, batch, 1, 1, 1)
    assert choices.shape == orientation_choices(pixels).shape
    calls.clear()
    found = transform(pixels, choices)
    expected = transform(random_orientation(pixels, choices))
    return {
        "served": len(calls),
        "different": int((found != expected).sum()) + int(found.dtype != expected.dtype),
        "same order": found.stride() == expected.stride(),
    }


def counted(*arguments, launched=turned_kernel.turned_and_normalised):
    calls.append(1)
    return launched(*arguments)


turned_kernel.turned_and_normalised = counted
torch.manual_seed(0)
results = {f"{side} px": compared(side, IMAGENET) for side in SIDES}
results["several blocks, other normalisation"] = compared(39, ODD)
results["without rescaling"] = compared(7, ODD, do_rescale=False)
results["channels first"] = compared(7, IMAGENET, contiguous=True)
results["one patch"] = compared(7, IMAGENET, batch=1)
results["no patch"] = compared(7, IMAGENET, batch=0)
print(json.dumps(results))
