"""Learning rates per geometry: equal budgets, validation slides alone, and runs that all begin from the same weights."""

import json
import multiprocessing

import pytest
import torch
from test_pretraining_run import make_study, small_model, small_training

from delst_hf import DataArguments
from delst_hf.atomic.locks import locked
from delst_hf.pretraining import search as module
from delst_hf.pretraining.search import RANGES, SearchArguments, search

optuna = pytest.importorskip("optuna", reason="the extra delst-hf[search] is not installed")


pytestmark = pytest.mark.usefixtures("without_curves")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "data"
    make_study(folder, "patient", test_slides=("toy_C1",), validation_slides=("toy_B1",))
    return DataArguments(str(folder))


def test_each_geometry_has_as_many_trials_from_the_same_weights(data, tmp_path, monkeypatch):
    begun = []
    again = module._again

    def noted(model, weights):
        begun.append((model.config.geometry, float(weights["visual_projection.weight"].sum())))
        return again(model, weights)

    monkeypatch.setattr(module, "_again", noted)
    training = small_training(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
    path = search(data, small_model(), training, SearchArguments("lorentz,cosine", trials=2))
    found = json.loads(path.read_text())
    assert list(found) == ["lorentz", "cosine"]
    for name, one in found.items():
        assert len([each for each in begun if each[0] == name]) == 2
        assert len({each[1] for each in begun if each[0] == name}) == 1
        assert 0 <= one["best"]["value"] <= 1
        for rate, (low, high) in RANGES.items():
            assert low <= one["best"][rate] <= high
    assert [path.name for path in tmp_path.iterdir()] == ["search.json"]  # no trial leaves its weights
    before = len(begun)
    search(data, small_model(), training, SearchArguments("lorentz,cosine", trials=2))
    assert len(begun) == before  # what is done is not searched again
    with pytest.raises(
        ValueError, match="geometry lorentz with other settings: search_seed. Choose another --output_dir"
    ):
        search(data, small_model(), training, SearchArguments("lorentz", trials=2, search_seed=1))


def test_weights_are_those_of_the_start():
    layer = torch.nn.Linear(2, 2)
    first = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with torch.no_grad():
        layer.weight += 1
    assert torch.equal(module._again(layer, first).weight, first["weight"])


def test_what_cannot_be_searched_is_refused(data, tmp_path):
    training = small_training(tmp_path)
    with pytest.raises(ValueError, match="choose from lorentz, euclidean and cosine"):
        search(data, small_model(), training, SearchArguments("spherical"))
    with pytest.raises(ValueError, match="--trials 0: give 1 or more runs per geometry"):
        search(data, small_model(), training, SearchArguments(trials=0))
    alone = DataArguments(data.dataset, train_slides="toy_A1,toy_A2,toy_B1")
    with pytest.raises(ValueError, match="A search needs validation slides"):
        search(alone, small_model(), training, SearchArguments("cosine", trials=1))


@pytest.mark.fault("runs and their checkpoints")
def test_a_search_of_several_processes_is_refused_before_its_first_trial(data, tmp_path, monkeypatch):
    """It trained the trials of its first geometry, and failed on the processes that are not told the best of them."""
    training = small_training(tmp_path)
    monkeypatch.setattr(type(training), "world_size", 2)
    with pytest.raises(ValueError, match="2 processes were started, and a search runs in one"):
        search(data, small_model(), training, SearchArguments())


def test_trials_that_diverge_are_counted_and_not_the_end(data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RANGES", {"learning_rate": (1e-30, 1e30)})
    training = small_training(tmp_path / "some", max_steps=4)
    found = json.loads(search(data, small_model(), training, SearchArguments("cosine", trials=6)).read_text())["cosine"]
    assert 0 < found["trials_not_finite"] < 6 and found["best"]["learning_rate"] < 1e20
    monkeypatch.setattr(module, "RANGES", {"learning_rate": (1e37, 1e38)})
    with pytest.raises(ValueError, match="None of the 2 trials of the geometry cosine ended with finite numbers"):
        search(data, small_model(), small_training(tmp_path / "none", max_steps=4), SearchArguments("cosine", trials=2))


@pytest.mark.fault("runs and their checkpoints")
def test_a_search_is_alone_in_its_folder_and_reads_only_what_it_wrote(data, tmp_path):
    training, options = small_training(tmp_path / "run"), SearchArguments("cosine", trials=1)
    forks = multiprocessing.get_context("fork")
    held, tried = forks.Event(), forks.Event()

    def hold():
        with locked(tmp_path / "run" / "run"):
            held.set()
            tried.wait(60)

    other = forks.Process(target=hold)
    other.start()
    assert held.wait(60)
    with pytest.raises(FileExistsError, match="another run is writing to this run's output folder"):
        search(data, small_model(), training, options)
    tried.set()
    other.join()
    (tmp_path / "run" / "search.json").write_text('{"cosine": ')
    with pytest.raises(ValueError, match=r"cannot read the search .*Delete it, or choose another --output_dir"):
        search(data, small_model(), training, options)
    training.push_to_hub = True
    with pytest.raises(ValueError, match="would push every trial of the search"):
        search(data, small_model(), training, options)
