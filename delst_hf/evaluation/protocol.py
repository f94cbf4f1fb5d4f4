"""The evaluation of one checkpoint on held-out slides, with its baselines in the same table."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..data.collator import DelstCollator
from ..data.study import Study
from ..lorentz import log_map0
from ..losses import process_rank
from ..modeling_delst import DelstModel
from ..processing_delst import DelstProcessor
from .baselines import colour_statistics, permutation_within
from .checkpoint_suite import Signatures, run_suite
from .embed import Embeddings, embed
from .expression import expression_prediction, log_normalize, most_variable_genes
from .hierarchy import hierarchy
from .linear_probe import linear_probe
from .preparation import missing_rows
from .retrieval import bidirectional_retrieval

Results = dict[str, Any]


def evaluate_checkpoint(
    model: DelstModel,
    processor: DelstProcessor,
    study: Study,
    train_slides: Sequence[str],
    test_slides: Sequence[str],
    frozen_backbone: str | None = None,
    num_genes: int = 100,
    seeds: Sequence[int] = (0, 1, 2),
    ignore_labels: Sequence[str] = ("undetermined",),
    baselines: bool = True,
    batch_size: int = 64,
    progress: bool = True,
    protocols: Sequence[str] = (),
    signatures: Signatures | None = None,
    resamples: int = 1000,
) -> Results:
    """Expression prediction, linear probe and retrieval on each test slide, all fitted on the training slides only.

    Arms of the table: colour statistics of the patch; the backbone with random weights (mean and sd over `seeds`); the
    frozen backbone that the training started from; the backbone of the checkpoint; its image embeddings (in the tangent
    space at the origin); and the checkpoint's backbone with the targets of the training spots shuffled within their
    slide, which must come out at chance. Every process embeds a share of the spots, the first one scores.

    Args:
        model: The checkpoint's model.
        processor: Its processor.
        study: The dataset folder.
        train_slides: Slides to fit the probes on.
        test_slides: Slides to score; none of them may be a training slide.
        frozen_backbone: Hub id or folder of the backbone before training; None leaves that arm out.
        num_genes: How many of the most variable genes of the training spots to predict.
        seeds: Seeds of the random backbones and of the shuffles.
        ignore_labels: Labels that are no tissue class.
        baselines: False leaves the baseline arms out, for a run whose baselines stand elsewhere.
        batch_size: Spots a batch when embedding.
        progress: Show progress bars.
        protocols: Protocols of `suite.SUITE` to run on the same embeddings besides.
        signatures: Gene signatures for zero-shot maps (see `checkpoint_suite.run_suite`).
        resamples: Of every bootstrapped interval.

    Returns:
        ``arms`` (one row an arm and test slide), ``retrieval`` and ``hierarchy`` (one row a test slide), ``genes`` and
        the slides; with `protocols` also what `checkpoint_suite.run_suite` returns. Empty on processes other than the first.

    Raises:
        ValueError: If a slide is unknown, or is used for both training and testing.
    """
    study.check_slides([*train_slides, *test_slides])
    overlap = sorted(set(train_slides) & set(test_slides))
    if overlap or not train_slides or not test_slides:
        raise ValueError(
            f"Slides {overlap} are used for both training and testing. Name different slides, at least one of each "
            f"(training {list(train_slides)}, testing {list(test_slides)})."
        )
    spots = study.subset([*train_slides, *test_slides])
    collator = DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes)

    def run(some_model: DelstModel) -> Embeddings:
        some_model.to(device=model.device)  # type: ignore[call-arg]
        return embed(some_model, spots, collator, batch_size, progress=progress)

    embeddings = run(model)
    backbones = _baseline_backbones(model, frozen_backbone, seeds, run) if baselines else {}
    if process_rank() > 0:
        return {}
    task = _Task(study, spots, train_slides, test_slides, num_genes, ignore_labels)
    features = {
        **backbones,
        "DELST backbone": [embeddings.features],
        "DELST embedding": [_tangent(model, embeddings.image_embeds)],
    }
    if baselines:
        patches = (row["image"] for row in spots.select_columns("image"))
        features = {"colour statistics": [colour_statistics(patches)], **features}
    arms = [row for arm, repeats in features.items() for row in task.score(arm, repeats)]
    if baselines:
        arms += task.score("DELST backbone, shuffled pairs", [embeddings.features] * len(seeds), shuffle_seeds=seeds)
    suite = {}
    if protocols:
        suite = run_suite(
            model,
            processor,
            study,
            spots,
            embeddings,
            {arm: repeats[0] for arm, repeats in features.items()},
            test_slides,
            protocols=protocols,
            signatures=signatures,
            ignore_labels=ignore_labels,
            seed=seeds[0],
            resamples=resamples,
        )
    return {
        **suite,
        "train_slides": list(train_slides),
        "test_slides": list(test_slides),
        "genes": [study.gene_names[i] for i in task.genes],
        "label_source": sorted(set(study.slides["label_source"]) - {""}) if "label_source" in study.slides else [],
        "arms": arms,
        "retrieval": task.retrieval(model, embeddings, seeds[0]),
        "hierarchy": task.hierarchy(model, embeddings) if model.config.geometry == "lorentz" else [],
    }


def _baseline_backbones(
    model: DelstModel, frozen_backbone: str | None, seeds: Sequence[int], run: Callable[[DelstModel], Embeddings]
) -> dict[str, list[np.ndarray]]:
    """Features of the backbone with random weights, one array a seed, and of the backbone as it was before training."""
    random = []
    for seed in seeds:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            random.append(run(DelstModel(model.config)).features)
    baselines = {"random-init backbone": random}
    if frozen_backbone is not None:
        frozen = DelstModel.from_vision_gene_pretrained(
            frozen_backbone, model.gene_model.config, vision_pooling=model.config.vision_pooling
        )
        baselines["frozen backbone"] = [run(frozen).features]
    return baselines


def _tangent(model: DelstModel, image_embeds: np.ndarray) -> np.ndarray:
    """Coordinates in which a linear probe is at home: those of the tangent space at the origin."""
    if model.config.geometry != "lorentz":
        return image_embeds
    return log_map0(torch.from_numpy(image_embeds).double(), model.curvature.item()).numpy()


class _Task:
    """What is predicted, and on which rows: targets and labels of the spots, chosen on the training slides."""

    def __init__(
        self,
        study: Study,
        spots: Dataset,
        train_slides: Sequence[str],
        test_slides: Sequence[str],
        num_genes: int,
        ignore_labels: Sequence[str],
    ):
        columns = spots.remove_columns("image").with_format("numpy")
        self.slides = np.asarray(columns["slide_id"][:])
        self.level = np.asarray(columns["n_genes"][:])
        self.train = np.isin(self.slides, list(train_slides))
        self.test_slides = list(test_slides)
        expression = log_normalize(study.counts(spots))
        self.genes = most_variable_genes(expression[self.train], min(num_genes, expression.shape[1]))
        self.targets = expression[:, self.genes].toarray()
        self.labels = np.array([None if label in ignore_labels else label for label in spots["label"]], dtype=object)

    def score(self, arm: str, repeats: list[np.ndarray], shuffle_seeds: Sequence[int] | None = None) -> list[Results]:
        """One row a test slide: means over the repeats, and their standard deviation where there are several."""
        rows = []
        for slide in self.test_slides:
            test = self.slides == slide
            metrics = [
                self._metrics(features, test, None if shuffle_seeds is None else shuffle_seeds[i])
                for i, features in enumerate(repeats)
            ]
            row: Results = {"arm": arm, "slide": slide, "spots": int(test.sum())}
            for key in metrics[0]:
                values = [metric[key] for metric in metrics]
                row[key] = float(np.mean(values))
                if len(values) > 1:
                    row[f"{key}_sd"] = float(np.std(values, ddof=1))
            rows.append(row)
        return rows

    def _metrics(self, features: np.ndarray, test: np.ndarray, shuffle_seed: int | None) -> dict[str, float]:
        train, groups = self.train, self.slides[self.train]
        targets, labels = self.targets[train], self.labels[train]
        if shuffle_seed is not None:
            order = permutation_within(groups, shuffle_seed)
            targets, labels = targets[order], labels[order]
        result = expression_prediction(features[train], targets, features[test], self.targets[test], groups)
        metrics = {"pearson_mean": result["pearson_mean"], "ridge_alpha": result["alpha"]}
        classes = set(labels[~missing_rows(labels)])
        if len(classes) > 1 and not missing_rows(self.labels[test]).all():
            probe = linear_probe(features[train], labels, features[test], self.labels[test], groups)
            for key in ("macro_f1_mean", "macro_f1_sd", "majority_macro_f1", "num_unseen_classes"):
                metrics[f"probe_{key}"] = probe[key]
        return metrics

    def retrieval(self, model: DelstModel, embeddings: Embeddings, seed: int) -> list[Results]:
        """Retrieval over the whole pool of each test slide, and with its pairs shuffled."""
        rows = []
        for slide in self.test_slides:
            test = np.flatnonzero(self.slides == slide)
            order = np.random.default_rng(seed).permutation(len(test))
            for arm, genes in (("DELST", test), ("DELST, shuffled pairs", test[order])):
                scores = bidirectional_retrieval(
                    embeddings.image_embeds[test],
                    embeddings.gene_embeds[genes],
                    model.config.geometry,
                    curvature=model.curvature.item(),
                )
                rows.append({"arm": arm, "slide": slide, **scores})
        return rows

    def hierarchy(self, model: DelstModel, embeddings: Embeddings) -> list[Results]:
        """Radii, cones and their control on each test slide."""
        rows = []
        for slide in self.test_slides:
            test = self.slides == slide
            scores = hierarchy(
                embeddings.image_embeds[test],
                embeddings.gene_embeds[test],
                self.level[test],
                model.curvature.item(),
                parent=model.config.cross_parent,
                min_radius=model.config.min_radius,
                aperture_scale=model.config.cross_aperture_scale,
            )
            rows.append({"slide": slide, "curvature": model.curvature.item(), **scores})
        return rows


def format_results(results: Results) -> str:
    """The results as tables to read: arms, retrieval, hierarchy."""
    slides = results["test_slides"]
    arms = list(dict.fromkeys(row["arm"] for row in results["arms"]))
    by_key = {(row["arm"], row["slide"]): row for row in results["arms"]}
    header = ["", *(f"{slide} {metric}" for slide in slides for metric in ("Pearson", "probe F1"))]
    body = [[arm, *(cell for slide in slides for cell in _cells(by_key[arm, slide]))] for arm in arms]
    blocks = [
        f"Expression: mean gene-wise Pearson over {len(results['genes'])} genes (ridge). Probe: macro-F1, labels from "
        f"{', '.join(results['label_source']) or 'none'}.\nTrained on {', '.join(results['train_slides'])}; +- is the sd over "
        "seeds.",
        _table(header, body),
    ]
    if "random-init backbone" in arms and "frozen backbone" not in arms:
        blocks.append(
            "No frozen backbone: the record of this checkpoint names none, as when it was trained from scratch."
        )
    keys = ("recall@1", "recall@5", "recall@10", "median_rank")
    for direction in ("image_to_gene", "gene_to_image"):
        rows = [
            [
                f"{row['slide']} {row['arm']}",
                f"{row['pool_size']:.0f}",
                *(f"{row[f'{direction}_{key}']:.3g}" for key in keys),
            ]
            for row in results["retrieval"]
        ]
        blocks.append(_table([direction.replace("_", " "), "pool", *keys], rows))
    if results["hierarchy"]:
        names = [key for key in results["hierarchy"][0] if key != "slide"]
        rows = [[name, *(f"{row[name]:.3g}" for row in results["hierarchy"])] for name in names]
        blocks.append(_table(["hierarchy", *slides], rows))
    return "\n\n".join(blocks)


def _cells(row: Results) -> tuple[str, str]:
    def shown(key: str, spread: str) -> str:
        if key not in row:
            return "-"
        return f"{row[key]:.3f}" + (f" +- {row[spread]:.3f}" if spread in row else "")

    # Of several networks the spread between them counts, not that of the probe's own seeds.
    probe_sd = "probe_macro_f1_mean_sd" if "probe_macro_f1_mean_sd" in row else "probe_macro_f1_sd"
    return shown("pearson_mean", "pearson_mean_sd"), shown("probe_macro_f1_mean", probe_sd)


def _table(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths))
        )
        for line in [header, ["-" * width for width in widths], *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)
