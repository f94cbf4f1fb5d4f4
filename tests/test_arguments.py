import dataclasses
import json
import math
from pathlib import Path

import pytest
import yaml

from delst_hf import DelstTrainingArguments
from delst_hf.pretraining.arguments import DataArguments, ModelArguments, split_names
from delst_hf.pretraining.finetune import HeadTrainingArguments
from delst_hf.pretraining.options import parse_arguments

CONFIGS = sorted((Path(__file__).parents[1] / "training" / "configs").glob("*.yaml"))


def parse(*argv: str):
    return parse_arguments((DataArguments, ModelArguments, DelstTrainingArguments), "test", list(argv))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_parses_to_its_values(config, monkeypatch, tmp_path):
    written = yaml.safe_load(config.read_text())
    parsed = parse(str(config))
    for name, value in written.items():
        found = next(getattr(part, name) for part in parsed if hasattr(part, name))
        if name == "vision_config":
            assert yaml.safe_load(found) == value
        elif name.endswith("learning_rate"):
            assert found == float(value)
        elif name == "report_to":
            assert found in (value, [value], [])
        else:
            assert str(getattr(found, "value", found)) in (
                str(value),
                str(float(value)) if isinstance(value, int) else "",
            )


def test_the_configuration_for_own_slides_names_no_one_elses():
    own = yaml.safe_load(next(path for path in CONFIGS if path.stem == "own").read_text())
    assert not [name for name in own if name.endswith("_slides") or name == "vocabulary"]
    assert own["save_strategy"] == "epoch" and own["save_total_limit"] == 2
    assert own["per_device_train_batch_size"] >= 64 and own["logging_steps"] <= 50


def test_options_win_over_the_file(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(f"dataset: d\noutput_dir: {tmp_path}\nlearning_rate: 1e-3\nseed: 1\ngeometry: cosine\n")
    _, model, training = parse(str(config), "--learning_rate", "5e-4", "--geometry", "euclidean")
    assert training.learning_rate == 5e-4 and training.seed == 1 and model.geometry == "euclidean"


def test_config_arguments_build_a_config(tmp_path):
    from delst_hf import DelstConfig

    _, model, _ = parse(
        "--dataset", "d", "--output_dir", str(tmp_path), "--gene_encoder", "linear", "--projection_dim", "7"
    )
    arguments = model.config_arguments()
    arguments.pop("vision_config")
    config = DelstConfig(**arguments)
    assert config.gene_config.encoder == "linear" and config.projection_dim == 7
    assert config.cross_entailment_weight == 0.2


def test_lists_of_slides():
    assert split_names("C2, C3,") == ["C2", "C3"]
    assert split_names("") == []


def test_a_file_that_is_no_mapping(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("- dataset\n")
    with pytest.raises(ValueError, match="must be a YAML mapping"):
        parse(str(config))


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "factor on the half-aperture of the cross- modal cones" in text or "cross-modal cones" in text
    assert "--cross_parent" in text and "Hierarchy key of the intra-modal loss" in text


@pytest.mark.fault("runs and their checkpoints")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("arguments", [DelstTrainingArguments, HeadTrainingArguments])
def test_numbers_that_no_run_could_have_are_refused(arguments, value, tmp_path):
    """Half of them trained nothing, or against the gradient, without a word; the others failed in words of torch."""
    for name in ("learning_rate", "vision_learning_rate", "scalar_learning_rate", "weight_decay", "adam_epsilon",
                 "warmup_steps", "max_grad_norm", "min_spot_distance_um", "adam_beta1", "adam_beta2"):  # fmt: skip
        if name in {one.name for one in dataclasses.fields(arguments)}:
            with pytest.raises(ValueError, match=f"{name}={value} is not possible: it must be a number"):
                arguments(str(tmp_path), **{name: value})
    if not math.isfinite(value):
        with pytest.raises(ValueError, match="num_train_epochs=(nan|inf) is not possible"):
            arguments(str(tmp_path), num_train_epochs=value)


@pytest.mark.parametrize("arguments", [DelstTrainingArguments, HeadTrainingArguments])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0 is not possible: .* 1 or more"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0 is not possible"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is for models of text"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha is for models of text"),
        ({"include_num_input_tokens_seen": True}, "include_num_input_tokens_seen is for models of text"),
        ({"train_sampling_strategy": "group_by_length"}, "='group_by_length' is for models of text"),
        ({"debug": "underflow_overflow"}, "debug='underflow_overflow' cannot read masks"),
        ({"report_to": "nonesuch"}, "report_to='nonesuch' is not installed here. Install it .pip install nonesuch."),
        ({"deepspeed": {"train_batch_size": 8}}, "deepspeed is not installed here. Install it .pip install deepspeed."),
        ({"dataloader_in_order": False}, "as workers finish them, so that no run can be repeated or resumed exactly"),
        (
            {"accelerator_config": {"split_batches": True}},
            "split_batches in accelerator_config would give a process other",
        ),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches in accelerator_config would give"),
        ({"accelerator_config": {"even_batches": False}}, "even_batches=False in accelerator_config would give"),
        ({"accelerator_config": {"use_seedable_sampler": False}}, "use_seedable_sampler=False in accelerator_config"),
    ],
)
def test_options_that_a_run_would_ignore_or_fail_on_are_refused(arguments, options, message, tmp_path):
    """They left a run as it was without a word, or ended it in a library: a missing 'input_ids', a concatenated bool."""
    with pytest.raises(ValueError, match=message):
        arguments(str(tmp_path), use_cpu=True, **options)


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_strategies_that_push_no_checkpoint_are_refused(strategy, tmp_path):
    with pytest.raises(ValueError, match=f"hub_strategy='{strategy}' would push what .*: use 'every_save' or 'end'"):
        DelstTrainingArguments(str(tmp_path), push_to_hub=True, hub_strategy=strategy)
    DelstTrainingArguments(str(tmp_path), push_to_hub=True, hub_strategy="end")


def test_spots_chosen_for_a_batch_have_no_other_order(tmp_path):
    with pytest.raises(ValueError, match="'sequential' cannot be combined with batch_sampling='balanced'"):
        DelstTrainingArguments(str(tmp_path), train_sampling_strategy="sequential", batch_sampling="balanced")


@pytest.mark.parametrize(("metric", "greater"), [("image_to_gene_mean_rank", False), ("gene_to_image_mrr", True)])
def test_the_best_model_has_the_lowest_rank(metric, greater, tmp_path):
    options = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    assert DelstTrainingArguments(str(tmp_path), metric_for_best_model=metric, **options).greater_is_better is greater


@pytest.mark.parametrize("arguments", [DelstTrainingArguments, HeadTrainingArguments])
def test_what_trackers_are_told_has_no_secrets_and_no_paths(tmp_path, arguments):
    """TensorBoard writes ``to_json_string`` into its event file, wandb and others send ``to_dict`` away."""
    home = tmp_path / "alice"
    options = {"use_cpu": True, "seed": 7, "hub_token": "hf_plantedplanted"}
    told = arguments(str(home / "run"), **options).to_json_string()
    assert "alice" not in told and "hf_planted" not in told
    assert json.loads(told)["output_dir"] == "run" and json.loads(told)["seed"] == 7
