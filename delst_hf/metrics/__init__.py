"""Modules for `evaluate`: `evaluate.load("delst_hf/metrics/gene_pearson")`, or the classes here, which need no path."""

from .entailment.entailment import Entailment
from .gene_pearson.gene_pearson import GenePearson
from .retrieval_recall.retrieval_recall import RetrievalRecall

__all__ = ["Entailment", "GenePearson", "RetrievalRecall"]
