"""A pretraining run: its arguments, its assembly, and the trainer."""
