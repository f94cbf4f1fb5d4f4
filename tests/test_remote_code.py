"""Checkpoints where the package was never installed: from a folder, from the Hub, with and without their backbone."""

import json

import numpy as np
import pytest
import torch
from hub_client import run_client
from hub_server import HubServer
from test_architecture import MODEL_FILES, imports_of
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from delst_hf import (
    DelstForGeneExpressionPrediction,
    DelstForSpotClassification,
    DelstGeneFeatureExtractor,
    DelstModel,
    DelstProcessor,
)

LOAD = """
import json, sys, torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForImageClassification, AutoProcessor

def load(place, **options):
    config = AutoConfig.from_pretrained(place, trust_remote_code=True)
    model, info = AutoModel.from_pretrained(place, trust_remote_code=True, output_loading_info=True, **options)
    assert not any(info.values()), info
    processor = AutoProcessor.from_pretrained(place, trust_remote_code=True)
    extractor = AutoFeatureExtractor.from_pretrained(place, trust_remote_code=True)
    for thing in (model, processor, processor.feature_extractor, extractor, config):
        assert type(thing).__module__.startswith("transformers_modules."), type(thing)
    batch = processor(given["images"].numpy(), given["counts"], given["names"], return_tensors="pt")
    with torch.no_grad():
        output = model(**batch, return_loss=True)
    return {name: output[name] for name in ("image_embeds", "gene_embeds", "loss")}

given = torch.load("inputs.pt")
local, backbone = sys.argv[1:]
outputs = {
    "local": load(local),
    "hub": load("me/whole"),
    "heads": load("me/heads"),
    "heads, local backbone": load("me/heads", vision_path=backbone),
}
for name, auto_class in (("classifier", AutoModelForImageClassification), ("expression", AutoModel)):
    head, info = auto_class.from_pretrained(f"me/{name}", trust_remote_code=True, output_loading_info=True)
    assert not any(info.values()), info
    assert type(head).__module__.startswith("transformers_modules."), type(head)
    with torch.no_grad():
        outputs[name] = {"logits": head(pixel_values=given["pixels"]).logits}
def refusal(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except (OSError, ValueError) as error:
        return str(error)
refusals = {
    "gated": refusal(load, "me/gated-heads"),
    "trust": refusal(AutoModel.from_pretrained, "me/whole", trust_remote_code=False),
}
torch.save(outputs, "outputs.pt")
print(json.dumps(refusals))
"""

HEADS = {"classifier": DelstForSpotClassification, "expression": DelstForGeneExpressionPrediction}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folder with a backbone, a whole checkpoint and one of heads, and the model itself."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    tiny = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "image_size": 16,
    }
    ViTModel(ViTConfig(patch_size=8, **tiny)).save_pretrained(folder / "vit")
    gene = {"num_genes": 3, "hidden_size": 8}
    model = DelstModel.from_vision_gene_pretrained(folder / "vit", gene_config=gene, projection_dim=4)
    image_processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    processor = DelstProcessor(image_processor, DelstGeneFeatureExtractor(["A", "B", "C"]))
    for name, whole in (("whole", True), ("heads", False)):
        model.save_pretrained(folder / name, save_backbone=whole)
        processor.save_pretrained(folder / name)
    for name, cls in HEADS.items():
        head = cls.from_pretrained(folder / "heads", vision_path=folder / "vit", head_inputs="image")
        head.save_pretrained(folder / name)  # without the backbone, as it was loaded
    return folder, model, processor


def needed_by(*modules):
    """These files of the model's room and all that they import, directly or not."""
    found, waiting = set(), [f"model/{module}" for module in modules]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += {target for _, target in imports_of(module)}
    return {module.removeprefix("model/") for module in found}


def test_a_saved_folder_holds_every_file_of_its_code(models):
    folder, processing = models[0], ("processing_delst", "feature_extraction_delst")
    entries = {
        "whole": ("AutoModel", "modeling_delst.DelstModel", processing),
        "heads": ("AutoModel", "modeling_delst.DelstModel", processing),
        "classifier": ("AutoModelForImageClassification", "modeling_delst_heads.DelstForSpotClassification", ()),
        "expression": ("AutoModel", "modeling_delst_heads.DelstForGeneExpressionPrediction", ()),
    }
    for name, (auto_class, target, others) in entries.items():
        needed = needed_by("configuration_delst", target.split(".")[0], *others)
        assert {path.stem for path in (folder / name).glob("*.py")} == needed <= set(MODEL_FILES), name
        config = json.loads((folder / name / "config.json").read_text())
        assert config["auto_map"]["AutoConfig"] == "configuration_delst.DelstConfig"
        assert config["auto_map"][auto_class] == target
    for name in ("whole", "heads"):
        processor = json.loads((folder / name / "processor_config.json").read_text())
        assert processor["auto_map"]["AutoProcessor"] == "processing_delst.DelstProcessor"


def test_checkpoints_work_without_the_package(models, tmp_path):
    folder, model, processor = models
    counts, names = np.array([[1, 2, 3], [9, 0, 80]]), ["C", "A", "B"]
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    pixels = torch.rand(2, 3, 16, 16)
    given = {"images": torch.tensor(images), "counts": torch.tensor(counts), "names": names, "pixels": pixels}
    torch.save(given, tmp_path / "inputs.pt")
    with HubServer() as hub:
        revision = hub.put("me/vit", folder / "vit")
        hub.put("me/whole", folder / "whole")
        for name in ("heads", *HEADS):
            hub.put(f"me/{name}", folder / name)
            hub.edit_json(f"me/{name}", "config.json", vision_source={"id": "me/vit", "revision": revision})
        hub.put("me/gated-heads", folder / "heads")
        hub.edit_json("me/gated-heads", "config.json", vision_source={"id": "guest/gated"})
        hub.create("guest/gated", gated=True)
        result = run_client(hub, tmp_path, LOAD, folder / "whole", folder / "vit", without_package=True)
    refusals = json.loads(result.stdout.splitlines()[-1])
    assert "without its backbone 'guest/gated'" in refusals["gated"] and "gated repo" in refusals["gated"]
    assert "ask for access" in refusals["gated"] and "vision_path=FOLDER" in refusals["gated"]
    assert "trust_remote_code=True" in refusals["trust"]

    with torch.no_grad():
        expected = model(**processor(list(images), counts, names, return_tensors="pt"), return_loss=True)
    found = torch.load(tmp_path / "outputs.pt")
    for name, cls in HEADS.items():
        head = cls.from_pretrained(folder / name, vision_path=folder / "vit")
        with torch.no_grad():
            assert torch.equal(found.pop(name)["logits"], head(pixel_values=pixels).logits), name
    for place, outputs in found.items():
        assert all(torch.equal(tensor, expected[name]) for name, tensor in outputs.items()), place
