"""Options that `--help` of a pretraining shows, in the order of reading; `--help-all` shows the others too.

The docstring of its class says what an option is, and when to change it (`arguments`).
"""

# Heading -> options.
PRETRAINING: dict[str, tuple[str, ...]] = {
    "the run": ("dataset", "output_dir", "resume_from_checkpoint", "resume_anyway", "seed"),
    "slides: what is trained on": (
        "train_slides", "validation_slides", "test_slides", "same_patient_slides", "unpaired_slides",
        "unpaired_weight", "streaming", "shuffle_buffer",
    ),
    "genes: what the gene encoder reads": (
        "num_genes", "min_spots", "ranking", "include_genes", "features", "features_patch_px", "vocabulary",
        "level_key",
    ),
    "the image encoder": (
        "vision", "init_from", "vision_config", "image_size", "vision_pooling", "freeze_vision",
        "cache_features", "lora", "lora_rank", "save_backbone", "freeze_batch_norm", "augment",
        "stain_normalization", "stain_jitter", "min_crop",
    ),
    "the gene encoder": (
        "gene_encoder", "gene_hidden_size", "gene_num_hidden_layers", "gene_dropout", "gene_norm",
        "gene_embedding_size", "gene_num_attention_heads", "gene_layer_norm_eps", "gene_initializer_range",
    ),
    "the space and the losses": (
        "geometry", "projection_dim", "cross_entailment_weight", "intra_entailment_weight", "cross_parent",
        "intra_parent", "intra_min_level_ratio", "entailment", "min_radius", "views", "levels", "niche_spots",
        "spot_um", "mask_negatives", "regression_weight", "radius_floor", "cross_aperture_scale",
        "intra_aperture_scale", "curvature_init", "learn_curvature", "logit_scale_init", "logit_scale_max",
    ),
    "batches and steps": (
        "num_train_epochs", "max_steps", "per_device_train_batch_size", "contrastive_micro_batch_size",
        "per_device_eval_batch_size", "batch_sampling", "min_spot_distance_um", "dataloader_drop_last",
        "dataloader_num_workers", "bf16", "use_cpu",
    ),
    "learning rates": (
        "learning_rate", "vision_learning_rate", "scalar_learning_rate", "weight_decay", "adam_beta2",
        "lr_scheduler_type", "warmup_steps",
    ),
    "what is saved and shown": (
        "save_strategy", "save_steps", "save_total_limit", "eval_strategy", "logging_steps", "report_to",
        "disable_tqdm",
    ),
    "the Hub, and facts of the model card": (
        "push_to_hub", "hub_model_id", "hub_private_repo", "license", "base_model", "base_model_license",
        "dataset_name", "dataset_license", "species", "patch_um", "patch_px", "train_data", "hardware",
        "training_time",
    ),
}  # fmt: skip
