"""Heads fitted on frozen features, and predictions for slides that have no counts.

The way of one slide: `source` (what patches there are) -> `stream` (read by threads, in order) -> `predictor` (features,
embedding, expression, classes) -> `shards` (on disk: a killed run resumes) -> `outputs` (AnnData, SpatialData, parquet).
Heads come from `fit`, by `ridge` or `logistic`, with their `held_out` scores.
"""

from .annotate import embed_anndata, embed_file
from .fit import fit_head
from .predict import PatchChoice, predict_slide
from .predictor import Predictor, load_predictor
from .reference import build_reference, load_reference
from .retrieve import retrieve_slide, spots_like

__all__ = [
    "PatchChoice",
    "Predictor",
    "build_reference",
    "embed_anndata",
    "embed_file",
    "fit_head",
    "load_predictor",
    "load_reference",
    "predict_slide",
    "retrieve_slide",
    "spots_like",
]
