"""Facts of a card that the user gives where no record has them. Nothing is imported here, so that help is quick."""

FACTS = {
    "license": ("--license", "license of the weights as the Hub writes it, such as apache-2.0: the stricter "
                             "of the backbone's and the data's"),
    "base_model": ("--base-model", "the backbone's id on the Hub, such as google/vit-base-patch16-224, where it was "
                                   "trained from a local folder"),
    "base_model_license": ("--base-model-license", "license of the backbone"),
    "dataset": ("--dataset-name", "name of the data and where they come from"),
    "dataset_license": ("--dataset-license", "license of the data"),
    "species": ("--species", "species of the genes (or --data DIR)"),
    "patch_um": ("--patch-um", "side of a patch, um (or --data DIR)"),
    "patch_px": ("--patch-px", "side of a patch as stored, px (or --data DIR)"),
    "train_data": ("--train-data", "what it was trained on, in words (or --data DIR, the dataset folder)"),
    "hardware": ("--hardware", "machine it was trained on, such as '1 x NVIDIA A100'"),
    "training_time": ("--training-time", "how long the training took, such as '12 minutes'"),
    "hyperparameters": ("--hyperparameters", "YAML file of the hyper-parameters"),
    "results": ("--results", "JSON of `delst evaluate MODEL DATASET --output` (default: results.json in MODEL_DIR)"),
}  # fmt: skip
# Facts whose option names a file.
FILES = ("hyperparameters", "results")
