"""The model and all that travels to the Hub with its weights: torch, numpy and transformers are enough to load it."""
