"""The evaluation of whatever there is to evaluate, on a study: the table of arms and every protocol asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.study import Study
from ..model.distributed import process_rank
from ..model.modeling_delst import DelstModel
from ..model.processing_delst import DelstProcessor
from .baselines import shuffled
from .evidence import Spots
from .findings import Rows
from .illustrations import illustrations
from .protocols.arms import ArmsTable
from .subjects import Signatures, Subject, checkpoint_subject
from .suite import run_protocols

Results = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """How to evaluate.

    Attributes:
        num_genes: How many of the most variable genes the table of arms predicts.
        seeds: Of the random backbones and of the shuffles; the first one also of protocols.
        ignore_labels: Labels that are no tissue class.
        baselines: False leaves the baseline arms out, for a run whose baselines stand elsewhere.
        protocols: Protocols of `suite.SUITE` to run besides the table of arms.
        signatures: Gene signatures for zero-shot maps (see `signatures.reference_profiles`).
        resamples: Of every bootstrapped interval.
        split: What is left out at a time (see `evidence.Spots`).
        domain_method: "kmeans" or "leiden".
        batch_size: Spots a batch when embedding.
        progress: Show progress bars.
    """

    num_genes: int = 100
    seeds: Sequence[int] = (0, 1, 2)
    ignore_labels: Sequence[str] = ("undetermined",)
    baselines: bool = True
    protocols: Sequence[str] = ()
    signatures: Signatures = field(default_factory=dict)
    resamples: int = 1000
    split: str = "auto"
    domain_method: str = "kmeans"
    batch_size: int = 64
    progress: bool = True

    def embedding_options(self) -> dict[str, Any]:
        """What subjects need of these."""
        names = ("seeds", "baselines", "batch_size", "progress")
        return {name: getattr(self, name) for name in names}


def evaluate_checkpoint(
    model: DelstModel,
    processor: DelstProcessor,
    study: Study,
    train_slides: Sequence[str],
    test_slides: Sequence[str],
    evaluation: Evaluation | None = None,
    frozen_backbone: str | None = None,
) -> Results:
    """Score a checkpoint on test slides, everything being fitted elsewhere.

    Arms of the table: colour statistics of the patch; the backbone with random weights (mean and sd over seeds); the
    frozen backbone that the training started from; the backbone of the checkpoint; its image embeddings (in the tangent
    space at the origin); and the checkpoint's backbone with the targets of the training spots shuffled within their
    slide, which must come out at chance. Every process embeds a share of the spots, the first one scores.

    Args:
        model: The checkpoint's model.
        processor: Its processor.
        study: The dataset folder.
        train_slides: Slides to fit the probes on. None: each test slide is predicted from the test slides of other patients.
        test_slides: Slides to score; none of them may be a training slide.
        evaluation: How.
        frozen_backbone: Hub id or folder of the backbone before training; None leaves that arm out.

    Returns:
        What `evaluate_subject` returns; empty on processes other than the first.

    Raises:
        ValueError: If a slide is unknown, or is used for both training and testing.
    """
    evaluation = evaluation or Evaluation()
    known = spots_of(study, train_slides, test_slides, evaluation)
    spots = study.subset([*train_slides, *test_slides])
    subject = checkpoint_subject(
        model, processor, study, spots, frozen_backbone=frozen_backbone, **evaluation.embedding_options()
    )
    return evaluate_subject(subject, known, study, evaluation)


def spots_of(study: Study, train_slides: Sequence[str], test_slides: Sequence[str], evaluation: Evaluation) -> Spots:
    """What is known of the spots of these slides, in the order of the folder.

    Raises:
        ValueError: if a slide is unknown or on both sides, no slide is to be scored, or the split cannot be made.
    """
    study.check_slides([*train_slides, *test_slides])
    overlap = sorted(set(train_slides) & set(test_slides))
    if overlap or not test_slides:
        raise ValueError(
            f"Slides {overlap} are used for both training and testing. Name different slides, and at least one to test on "
            f"(training {list(train_slides)}, testing {list(test_slides)})."
        )
    spots = study.subset([*train_slides, *test_slides])
    columns = spots.remove_columns("image").with_format("numpy")
    slides = np.asarray(columns["slide_id"][:])
    return Spots(
        slides=slides,
        patients=np.asarray(columns["patient_id"][:]),
        test=np.isin(slides, list(test_slides)),
        labels=np.array(
            [None if label in evaluation.ignore_labels else label for label in spots["label"]], dtype=object
        ),
        positions=np.column_stack([columns["x"][:], columns["y"][:]]).astype(np.float64),
        counts=study.counts(spots),
        genes=study.gene_names,
        split=evaluation.split,
    )


def evaluate_subject(subject: Subject, spots: Spots, study: Study, evaluation: Evaluation) -> Results:
    """Score features and, where there is one, a space.

    Returns:
        ``arms`` (one row an arm and test slide), ``retrieval`` and ``hierarchy`` (one row a test slide), ``genes``, the
        slides and ``own_arms``; with protocols also ``protocols`` (rows with metrics and intervals), ``comparisons`` (paired),
        ``per_gene``, ``expression``, ``skipped`` and what `illustrations` returns. Empty on processes other than the first.
    """
    if process_rank() > 0:
        return {}
    subject = subject.with_signatures(spots, evaluation.signatures)
    table = ArmsTable(spots, evaluation.num_genes)
    arms = [row for arm, repeats in subject.features.items() for row in table.score(arm, repeats)]
    main = subject.own[0]
    if evaluation.baselines:
        repeats = [subject.features[main][0]] * len(evaluation.seeds)
        arms += table.score(f"{main}, shuffled pairs", repeats, shuffle_seeds=evaluation.seeds)
    space, seed = subject.space, evaluation.seeds[0]
    return {
        **(_protocols(subject, spots, evaluation) if evaluation.protocols else {}),
        "own_arms": list(subject.own),
        "train_slides": list(dict.fromkeys(spots.slides[~spots.test].tolist())),
        "test_slides": table.test_slides,
        "split": spots.groups[1],
        "genes": [study.gene_names[i] for i in table.genes],
        "label_source": sorted(set(study.slides["label_source"]) - {""}) if "label_source" in study.slides else [],
        "arms": [row for row in arms if len(row) > 3],
        "retrieval": [] if space is None else table.retrieval(space, seed),
        "hierarchy": [] if space is None else table.hierarchy(space, subject.aperture_scale),
    }


def _protocols(subject: Subject, spots: Spots, evaluation: Evaluation) -> Results:
    features = {arm: repeats[0] for arm, repeats in subject.features.items()}
    main, seed = subject.own[0], evaluation.seeds[0]
    if evaluation.baselines:
        # Features that belong to other spots of the slide: what they still score is the slide effect.
        features[f"{main}, shuffled pairs"] = shuffled(features[main], spots.slides, seed)
    found = Rows(
        spots,
        features,
        subject.own,
        subject.space,
        seed=seed,
        resamples=evaluation.resamples,
        domain_method=evaluation.domain_method,
    )
    run_protocols(found, evaluation.protocols)
    return {
        "protocols": found.rows,
        "comparisons": found.comparisons,
        "per_gene": found.per_gene,
        "expression": found.expression,
        "skipped": found.skipped,
        "interval_unit": found.unit,
        **illustrations(found),
    }
