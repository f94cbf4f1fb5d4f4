"""Pretrain DELST on the spots of a dataset folder.

    accelerate launch training/pretrain.py training/configs/toy.yaml
    accelerate launch training/pretrain.py training/configs/her2st.yaml --geometry cosine --seed 1
    torchrun --nproc_per_node 2 training/pretrain.py training/configs/toy.yaml

Options on the command line win over the file. A run that was killed goes on from its last whole checkpoint with
--resume_from_checkpoint true. The result is OUTPUT_DIR/model: load it with DelstModel.from_pretrained.
Negatives come from all processes. Gradient accumulation does not add negatives; --contrastive_micro_batch_size lets a batch
of any size fit into memory with all of its negatives.
"""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import ViTImageProcessorPil, set_seed

from delst_hf import DelstCollator, DelstConfig, DelstGeneFeatureExtractor, DelstModel, DelstProcessor
from delst_hf.data.study import Study, hierarchy_level
from delst_hf.data.vocabulary import gene_moments, read_vocabulary, select_vocabulary
from delst_hf.errors import run_script
from delst_hf.hub.checkpoint_folder import save_checkpoint_folder
from delst_hf.hub.facts import data_facts
from delst_hf.model.vision_delst import load_image_processor
from delst_hf.pretraining.arguments import (
    CardArguments,
    DataArguments,
    ModelArguments,
    parse_arguments,
    split_names,
)
from delst_hf.pretraining.cached_features import FeatureRows, as_it_is, cached_features, without_backbone
from delst_hf.pretraining.checkpoints import last_complete_checkpoint, whole_checkpoint
from delst_hf.pretraining.lora import add_lora, merge_lora
from delst_hf.pretraining.trainer import DelstTrainer, DelstTrainingArguments
from delst_hf.record import hyperparameters


def choose_slides(study: Study, data: DataArguments) -> tuple[list[str], list[str]]:
    """Slides to train on and to validate on; the two and the test slides may not overlap."""
    train, validation, test = map(split_names, (data.train_slides, data.validation_slides, data.test_slides))
    study.check_slides([*train, *validation, *test])
    train = train or [slide for slide in study.slide_ids if slide not in {*validation, *test}]
    if not train or set(train) & {*validation, *test} or set(validation) & set(test):
        raise ValueError(
            f"Training slides {train}, validation {validation} and test {test} must not overlap, and at least one slide "
            "must be left for training."
        )
    return train, validation


def build_processor(arguments, vocabulary: list[str]) -> DelstProcessor:
    """The backbone's own image processor, at the size of the run, joined with the vocabulary."""
    side = arguments.image_size
    if arguments.vision is not None:
        image_processor = load_image_processor(arguments.vision, side)
    else:
        image_processor = ViTImageProcessorPil(size={"height": side or 224, "width": side or 224})
    return DelstProcessor(image_processor, DelstGeneFeatureExtractor(vocabulary=vocabulary))


def build_model(arguments, num_genes: int) -> DelstModel:
    """A model around a pretrained backbone, or around one that starts from scratch."""
    config = arguments.config_arguments()
    vision_config = config.pop("vision_config")
    config["gene_config"]["num_genes"] = num_genes
    if arguments.vision is not None:
        return DelstModel.from_vision_gene_pretrained(arguments.vision, **config)
    vision_config = yaml.safe_load(vision_config) if vision_config else {"model_type": "vit"}
    if arguments.image_size is not None:
        vision_config.setdefault("image_size", arguments.image_size)
    return DelstModel(DelstConfig(vision_config=vision_config, **config))


def resume_point(training: DelstTrainingArguments) -> str | None:
    """The checkpoint to go on from; refuses to write over a run that is not resumed."""
    wanted = training.resume_from_checkpoint
    output_dir = Path(training.output_dir or ".")
    last = last_complete_checkpoint(output_dir)
    if wanted is None or wanted.lower() == "false":
        if last or (output_dir / "model").exists():
            raise ValueError(
                f"{output_dir} holds a run already. Go on with it by --resume_from_checkpoint true, or choose "
                "another --output_dir."
            )
        return None
    # A run that was killed before its first checkpoint begins again.
    return last if wanted.lower() == "true" else whole_checkpoint(wanted, output_dir)


def main() -> None:
    data, arguments, training, card = parse_arguments(
        (DataArguments, ModelArguments, DelstTrainingArguments, CardArguments), description=__doc__ or ""
    )
    checkpoint = resume_point(training)
    if not arguments.save_backbone and (arguments.vision is None or not (training.freeze_vision or training.lora)):
        raise ValueError(
            "save_backbone=False leaves out the backbone, so it must be one that can be loaded again and is not trained: give "
            "--vision, and --freeze_vision true or --lora true."
        )
    set_seed(training.seed)
    study = Study.load(data.dataset)
    train_slides, validation_slides = choose_slides(study, data)

    train_spots = study.subset(train_slides)
    moments = gene_moments(study.count_batches(train_spots))
    if data.vocabulary is None:
        vocabulary = select_vocabulary(moments, study.gene_names, data.num_genes, data.min_spots)
    else:
        vocabulary = read_vocabulary(data.vocabulary, study.gene_names, list(study.genes["gene_id"]), train_slides)
    processor = build_processor(arguments, vocabulary)
    model = build_model(arguments, num_genes=len(vocabulary))
    column = {name: i for i, name in reversed(list(enumerate(study.gene_names)))}
    means = torch.from_numpy(moments.mean[[column[name] for name in vocabulary]])
    model.gene_model.set_missing_values(means)

    level = hierarchy_level(train_spots, data.level_key, training.seed)
    train_spots = train_spots.add_column("level", level)
    if training.min_spot_distance_um:
        train_spots = study.with_positions_um(train_spots)
    validation_spots = study.subset(validation_slides) if validation_slides else None
    collator = DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes, defer_pixels=True)
    if training.lora:
        add_lora(model, training.lora_rank)
    run_facts = {
        "dataset": os.path.basename(os.path.normpath(data.dataset)),
        "data": data_facts(data.dataset, study, train_slides),
        "train_slides": train_slides,
        "validation_slides": validation_slides,
        "vision": arguments.vision,
        "level_key": data.level_key,
        "hyperparameters": hyperparameters(data, arguments, training),
    }
    facts = {"run_facts": run_facts, "card_facts": card.facts()}
    trainer = train(model, training, train_spots, validation_spots, collator, checkpoint, facts)
    trained = trainer.trained_model()
    if trained is not None and trainer.is_world_process_zero():
        if training.lora and trained.config.save_backbone:
            merge_lora(trained)
        folder = save_checkpoint_folder(
            Path(training.output_dir or ".") / "model", trained, processor, trainer.record()
        )
        print(f"Checkpoint: {folder}")
        if training.push_to_hub:
            print(f"Pushed: {trainer.push_to_hub(folder=folder)}")


def train(model, training, train_spots, validation_spots, collator, checkpoint, facts) -> DelstTrainer:
    """Train on patches, or with --cache_features on features of them that are made here, once."""
    data: dict[str, Any] = {"train_dataset": train_spots, "eval_dataset": validation_spots, "data_collator": collator}
    context: Any = nullcontext()
    if training.cache_features:
        model.to(training.device)
        options = {"batch_size": training.eval_batch_size, "num_workers": training.dataloader_num_workers}
        for name in ("train_dataset", "eval_dataset"):
            if data[name] is not None:
                features = cached_features(model, data[name], collator, training.output_dir, **options)
                data[name] = FeatureRows(data[name], features, collator)
        data["data_collator"], context = as_it_is, without_backbone(model)
    with context:
        trainer = DelstTrainer(model=model, args=training, processing_class=collator.processor, **data, **facts)
        trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


if __name__ == "__main__":
    sys.exit(run_script(main, "pretrain.py"))
