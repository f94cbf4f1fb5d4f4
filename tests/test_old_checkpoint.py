"""A checkpoint of an earlier version gives what it gave: by this package, and by the code that was saved beside its weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scripts import run_script

from delst_hf import DelstModel, DelstProcessor

OLD = Path(__file__).parent / "fixtures" / "checkpoint_2309afe"
EMBEDS = ("image_embeds", "gene_embeds", "logits_per_image")
# In a process without the package, as on a machine where it is not installed.
REMOTE = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor
folder, target = sys.argv[1:]
expected = load_file(folder + "/expected.safetensors")
model = AutoModel.from_pretrained(folder + "/model", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder + "/model", trust_remote_code=True)
assert not any(name.startswith("delst_hf") for name in sys.modules)
names = processor.feature_extractor.vocabulary[:11]
inputs = processor(images=list(expected["images"].numpy()), counts=expected["counts"].numpy(), gene_names=names,
                   return_tensors="pt")
with torch.no_grad():
    found = model(**inputs)
save_file({name: found[name].contiguous() for name in ("image_embeds", "gene_embeds", "logits_per_image")}, target)
"""


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(OLD / "expected.safetensors")


def assert_as_before(found, expected) -> None:
    for name in EMBEDS:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_the_package_loads_it(expected):
    model, processor = DelstModel.from_pretrained(OLD / "model").eval(), DelstProcessor.from_pretrained(OLD / "model")
    names = processor.feature_extractor.vocabulary[:11]
    inputs = processor(
        images=list(expected["images"].numpy()),
        counts=expected["counts"].numpy(),
        gene_names=names,
        return_tensors="pt",
    )
    torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"])
    torch.testing.assert_close(inputs["gene_values"], expected["gene_values"])
    with torch.no_grad():
        assert_as_before(model(**inputs), expected)


def test_its_own_code_loads_it(expected, tmp_path):
    found, modules = tmp_path / "found.safetensors", {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    run_script(REMOTE, OLD, found, folder=tmp_path, environment=modules, without_package=True)
    assert_as_before(load_file(found), expected)
