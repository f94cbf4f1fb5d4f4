import json

import pytest
import torch
from transformers import AutoModel, AutoProcessor

from delst_hf.hub.checkpoint_folder import save_checkpoint_folder
from delst_hf.record import read_training_record, training_record


def test_folder_holds_everything_and_loads(tiny_model, tiny_processor, tmp_path):
    folder = save_checkpoint_folder(tmp_path / "model", tiny_model, tiny_processor, training_record(seed=3))
    assert {path.name for path in folder.iterdir() if path.suffix != ".py"} == {
        "checksums.json",
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "training.json",
    }
    loaded = AutoModel.from_pretrained(folder)
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.feature_extractor.vocabulary == tiny_processor.feature_extractor.vocabulary
    record = read_training_record(folder)
    assert record["seed"] == 3
    assert record["versions"]["torch"].startswith(torch.__version__.split("+")[0])


def test_a_save_that_breaks_leaves_the_old_folder(tiny_model, tiny_processor, tmp_path):
    folder = save_checkpoint_folder(tmp_path / "model", tiny_model, tiny_processor, {"run": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint_folder(folder, tiny_model, tiny_processor, {"run": object()})
    assert read_training_record(folder) == {"run": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_is_replaced_whole(tiny_model, tiny_processor, tmp_path):
    folder = save_checkpoint_folder(tmp_path / "model", tiny_model, tiny_processor)
    (folder / "stranger").touch()
    save_checkpoint_folder(folder, tiny_model, tiny_processor, {"run": 2})
    assert not (folder / "stranger").exists()
    assert json.loads((folder / "training.json").read_text()) == {"run": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_no_record_is_an_empty_one(tmp_path):
    assert read_training_record(tmp_path) == {}


@pytest.mark.fault("strangers at the output")
def test_what_is_no_checkpoint_is_not_replaced(tiny_model, tiny_processor, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.tex").write_text("years")
    with pytest.raises(FileExistsError, match="holds something that is not a checkpoint, so it is left as it is"):
        save_checkpoint_folder(tmp_path / "model", tiny_model, tiny_processor)
    assert (tmp_path / "model" / "thesis.tex").read_text() == "years"
    save_checkpoint_folder(tmp_path / "head", tiny_model, tiny_processor)
    with pytest.raises(FileExistsError, match="was made by another program while this run was working"):
        save_checkpoint_folder(tmp_path / "head", tiny_model, tiny_processor, replace=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head", "model"]
