"""Everything that is pushed, by the real client to a Hub on loopback, and opened again from there."""

import hashlib
import json
import re

import pytest
import torch
from conftest import make_tiny_model, make_tiny_processor
from hub_client import answer_of
from hub_server import Fault, HubServer
from scripts import ROOT

from delst_hf import DelstModel
from delst_hf.evaluation.results import FORMAT
from delst_hf.hub.checkpoint_folder import save_checkpoint_folder
from delst_hf.record import data_facts, training_record

FACTS = ["--license", "apache-2.0", "--base-model", "me/vit", "--base-model-license", "mit", "--dataset-name", "toys"]
FACTS += [
    "--dataset-license",
    "cc0-1.0",
    "--hardware",
    "two cores",
    "--training-time",
    "a minute",
    "--hyperparameters",
    "h.yaml",
]

PUSH = """
import contextlib, io, json, os, shutil, sys, time
from datasets import load_dataset
import evaluate
from delst_hf.cli import main
from delst_hf.data.study import Study

time.sleep = lambda seconds: None  # the client waits between its tries
model, heads, data, results, *facts = sys.argv[1:]
open("h.yaml", "w").write("learning_rate: 1e-3\\n")
complete = ["--results", results, *facts]

def run(*arguments, token="hf_me"):
    os.environ["HF_TOKEN"] = token
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(arguments))
    return [status, out.getvalue(), err.getvalue()]

def connected():
    open("connected", "w").close()

shutil.copytree(model, "head")
open("head/README.md", "w").write("---\\nlicense: '{license}'\\n---\\n# head")  # as delst fit leaves it

answers = {
    "gaps": run("push", model, "me/gaps"),
    "upload cut": run("push", model, "me/whole", *complete),
    "model": connected() or run("push", model, "me/whole", *complete),
    "same again": run("push", model, "me/whole", *complete),
    "head": run("push", "head", "me/head", *complete),
    "heads": run("push", heads, "me/heads", *complete),
    "whole": run("push", model, "me/replaced", *complete),
    "heads over whole": run("push", heads, "me/replaced", *complete),
    "dataset": run("push", "--dataset", data, "me/toys"),
    "metric": run("push", "--metric", "gene_pearson", "me/gene_pearson"),
    "no token": run("push", model, "me/x", *complete, token=""),
    "bad token": run("push", model, "me/x", *complete, token="hf_bad"),
    "read token": run("push", model, "me/x", *complete, token="hf_reader"),
    "not mine": run("push", model, "guest/x", *complete),
    "taken": run("push", model, "me/taken", *complete),
    "no name": run("push", model, "delst", *complete),
    "dataset without flag": run("push", data, "me/x", *complete),
    "model as dataset": run("push", "--dataset", model, "me/x"),
    "no metric": run("push", "--metric", "none", "me/none"),
    "commit cut": run("push", model, "me/cut-commit", *complete),
    "server error": run("push", model, "me/cut-commit", *complete),
    "retry": run("push", model, "me/cut-commit", *complete),
}
os.environ["HF_TOKEN"] = "hf_me"
rows = {name: len(load_dataset("me/toys", name, split="train")) for name in ("spots", "genes", "slides")}
rows["study"] = len(Study.load("me/toys").spots)
streamed = sum(1 for _ in load_dataset("me/toys", split="train", streaming=True))
scores = evaluate.load("me/gene_pearson").compute(predictions=[[1.0], [2.0], [4.0]], references=[[1.0], [2.0], [4.0]])
print(json.dumps({"answers": answers, "rows": rows, "streamed": streamed, "scores": scores}))
"""

OPEN = """
import json, torch
from transformers import AutoModel, AutoProcessor

given = torch.load("inputs.pt")
outputs = {}
for name in ("me/whole", "me/heads"):
    model = AutoModel.from_pretrained(name, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
    batch = processor(given["images"], given["counts"], given["names"], return_tensors="pt")
    with torch.no_grad():
        outputs[name] = model(**batch).image_embeds
torch.save(outputs, "outputs.pt")
print(json.dumps(None))
"""


@pytest.fixture(scope="module")
def checkpoints(toy_study, toy_folder, tmp_path_factory):
    """A whole checkpoint and one of heads, their results, and the backbone."""
    folder = tmp_path_factory.mktemp("checkpoints")
    processor = make_tiny_processor(toy_study)
    genes = len(processor.feature_extractor.vocabulary)
    make_tiny_model(genes).vision_model.save_pretrained(folder / "vit")
    head = {"gene_config": {"num_genes": genes, "hidden_size": 16}, "projection_dim": 8}
    torch.manual_seed(0)
    model = DelstModel.from_vision_gene_pretrained(folder / "vit", **head)
    data = data_facts(toy_folder, toy_study, ["toy_A1"])
    record = training_record(train_slides=["toy_A1"], vision=str(folder / "vit"), data=data, seed=0, log_history=[])
    save_checkpoint_folder(folder / "whole", model, processor, record)
    model.config.save_backbone = False
    model.config.vision_source["id"] = "me/vit"
    save_checkpoint_folder(folder / "heads", model, processor, record)
    model.config.save_backbone = True
    row = {"protocol": "hest", "variant": "", "arm": "DELST backbone", "own": True, "control": False}
    row |= {"metrics": {"pearson_mean": 0.1234}, "intervals": {"pearson_mean": {"low": 0.1, "high": 0.2}}}
    results = {"format": FORMAT, "test_slides": ["toy_B1"], "protocols": [row], "pictures": {"slides": {}}}
    results["own_arms"] = ["DELST backbone", "DELST embedding"]
    (folder / "results.json").write_text(json.dumps(results))
    return folder, model, processor


def test_pushes_and_what_comes_back(checkpoints, toy_study, toy_folder, tmp_path):
    folder, model, processor = checkpoints
    with HubServer() as hub:
        hub.put("me/vit", folder / "vit")
        hub.put("me/taken", folder / "vit")
        weights = hashlib.sha256((folder / "whole" / "model.safetensors").read_bytes()).hexdigest()
        hub.faults = [
            # As often as the client tries, which differs from version to version.
            Fault("PUT", f"^/lfs/{weights}", times=99, until=tmp_path / "connected"),
            Fault("POST", "/me/cut-commit/commit/", times=1),
            Fault("POST", "/me/cut-commit/commit/", status=500, times=1),
        ]
        arguments = [folder / "whole", folder / "heads", toy_folder, folder / "results.json", *FACTS]
        found = answer_of(hub, tmp_path, PUSH, *arguments)
        images = [spot["image"] for spot in toy_study.spots.select(range(2))]
        counts, names = toy_study.counts(toy_study.spots.select(range(2))).toarray(), toy_study.gene_names
        torch.save({"images": images, "counts": counts, "names": names}, tmp_path / "inputs.pt")
        opened = OPEN.replace('torch.load("inputs.pt")', 'torch.load("inputs.pt", weights_only=False)')
        answer_of(hub, tmp_path, opened, without_package=True)
        files = {
            name: hub.files(f"me/{name}") for name in ("whole", "head", "heads", "replaced", "cut-commit", "taken")
        }
        commits = {name: [c.title for c in hub.repositories["model", f"me/{name}"].branches["main"]] for name in files}
        repositories = {name for _, name in hub.repositories}

    answers = {name: (status, out + err) for name, (status, out, err) in found["answers"].items()}
    assert "README.md of head has gaps, so the card that is pushed is written" in answers["head"][1]
    for name in ("head", "model", "same again", "heads", "heads over whole", "dataset", "metric", "retry"):
        assert answers[name][0] == 0 and "pushed " in answers[name][1], (name, answers[name][1])
    messages = {
        "gaps": r"--license .*--dataset-license ",
        "no token": "No token.*hf auth login",
        "bad token": "does not know your token.*hf auth login",
        "read token": "me may not write to the model me/x: .*role 'read'.*role write",
        "not mine": "me may not write to the model guest/x: .*rights",
        "taken": r"me/taken is taken: the repository holds \['config.json'.*Choose another name",
        "no name": "'delst' is not a repository name; use user/name",
        "dataset without flag": "is a dataset folder. Push it with `delst push --dataset",
        "model as dataset": "not a complete dataset folder",
        "no metric": "No metric 'none'. Choose one of entailment, gene_pearson, retrieval_recall",
        "upload cut": "connection to http://127.*broke.*as it was before. Run the same command again",
        "commit cut": "connection to http://127.*broke.*as it was before. Run the same command again",
        "server error": "answered with an error .500.*Run the same command again",
    }
    for name, message in messages.items():
        status, text = answers[name]
        assert status == 2, name
        assert re.search(message, text, re.DOTALL), (name, text)
    assert not {"me/gaps", "me/x", "guest/x", "me/none"} & repositories
    assert (
        found["rows"] == {"spots": 108, "genes": len(toy_study.genes), "slides": 3, "study": 108}
        and found["streamed"] == 108
    )
    assert found["scores"]["gene_pearson"] == pytest.approx(1.0)

    # One commit a push; a broken one leaves nothing, the same content makes no second one.
    assert commits["whole"] == ["initial commit", "Upload DELST checkpoint"] == commits["cut-commit"]
    assert "model.safetensors" in files["taken"] and "README.md" not in files["taken"]
    # A checkpoint without its backbone over a whole one: no weight of the backbone stays behind.
    assert len(files["replaced"]["model.safetensors"]) == len(files["heads"]["model.safetensors"])
    assert len(files["heads"]["model.safetensors"]) < len(files["whole"]["model.safetensors"])
    for name in ("whole", "head", "heads"):
        everything = b"".join(content for path, content in files[name].items() if path.endswith((".json", ".md")))
        assert str(folder).encode() not in everything and b"pictures" not in files[name]["results.json"]
        card = files[name]["README.md"].decode()
        assert "license: apache-2.0\nbase_model: me/vit\n" in card and "value: 0.1234" in card
    with torch.no_grad():
        expected = model.eval()(**processor(images, counts, names, return_tensors="pt")).image_embeds
    outputs = torch.load(tmp_path / "outputs.pt")
    assert torch.equal(outputs["me/whole"], expected) and torch.equal(outputs["me/heads"], expected)


TRAIN = """
import contextlib, io, json, runpy, sys

script, config, root, *options = sys.argv[1:]
facts = ["--license", "mit", "--dataset_name", "toys", "--dataset_license", "cc0-1.0"]
sys.path.insert(0, root)
answers = []
private = [*facts, "--hub_private_repo", "true"]
for card, name in (([], "me/run"), (facts, "guest/run"), (facts, "me/vit"), (private, "me/public"), (facts, "me/run")):
    sys.argv = [script, config, *options, *card, "--hub_model_id", name]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        answers.append([end.code, said.getvalue()])
print(json.dumps(answers))
"""


def test_the_trainer_pushes_at_each_save(toy_folder, tiny_backbone, tmp_path):
    options = ["--dataset", toy_folder, "--output_dir", tmp_path / "run", "--validation_slides", "toy_A2"]
    options += ["--same_patient_slides", "toy_A2"]
    options += [
        "--test_slides",
        "toy_B1",
        "--image_size",
        32,
        "--max_steps",
        4,
        "--save_strategy",
        "steps",
        "--save_steps",
        2,
    ]
    options += [
        "--per_device_train_batch_size",
        8,
        "--disable_tqdm",
        "true",
        "--use_cpu",
        "true",
        "--push_to_hub",
        "true",
    ]
    with HubServer() as hub:
        script, config = ROOT / "training/pretrain.py", ROOT / "training/configs/toy.yaml"
        hub.faults = [Fault("POST", "/commit/", times=1)]  # the first push breaks, the run goes on
        hub.put("me/vit", tiny_backbone)
        hub.create("me/public")
        (gaps_status, gaps), (rights_status, rights), taken, public, (done_status, done) = answer_of(
            hub, tmp_path, TRAIN, script, config, ROOT, *options
        )
        repository, files = hub.repositories["model", "me/run"], hub.files("me/run")
        kinds = set(hub.repositories)
    assert (
        "The card is not complete" in gaps
        and "--license" in gaps
        and "--dataset-name" in gaps
        and "base_model" not in gaps
    )
    assert "me may not write to the model guest/run" in rights
    assert (gaps_status, rights_status, done_status) == (2, 2, 0), done
    # Before the first step: a run would not push at any save, and end in an error.
    assert taken[0] == 2 and "me/vit is taken: the repository holds" in taken[1]
    assert public[0] == 2 and "me/public exists and is public" in public[1]
    assert "was not pushed; the run continues" not in taken[1] + public[1]
    assert kinds == {("model", name) for name in ("me/run", "me/vit", "me/public")}
    titles = [commit.title for commit in repository.branches["main"]]
    assert titles == ["initial commit", "Training in progress, step 4", "End of training"]
    assert {"README.md", "model.safetensors", "config.json", "processor_config.json", "training.json"} <= set(files)
    assert "modeling_delst.py" in files and "training_args.bin" not in files
    card, record = files["README.md"].decode(), json.loads(files["training.json"])
    assert "Not evaluated yet" in card and "minutes |" in card and "\nbase_model" not in card and "from scratch" in card
    assert record["hyperparameters"]["learning_rate"] == 1e-3 and record["data"]["species"] and record["hardware"]
    assert str(tmp_path) not in card + files["training.json"].decode() + files["config.json"].decode()
    (tmp_path / "pushed").mkdir()
    for name, content in files.items():
        (tmp_path / "pushed" / name).write_bytes(content)
    pushed = DelstModel.from_pretrained(tmp_path / "pushed").state_dict()
    local = DelstModel.from_pretrained(tmp_path / "run" / "model").state_dict()
    assert all(torch.equal(tensor, local[name]) for name, tensor in pushed.items())
