"""Checkpoint folders, their cards, and pushing them: models, datasets and metrics."""
