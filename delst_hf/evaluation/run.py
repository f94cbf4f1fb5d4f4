"""Evaluate a checkpoint, a backbone or given embeddings on a study, by every protocol asked for."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..data.study import Study
from ..model.distributed import process_rank
from ..model.modeling_delst import DelstModel
from ..model.processing_delst import DelstProcessor
from .baselines import shuffled
from .evidence import Arm, Evaluation, Spots
from .findings import Findings
from .illustrations import illustrations
from .subjects import Subject, checkpoint_subject, frozen_model
from .suite import run_protocols

__all__ = ["Evaluation", "evaluate_checkpoint", "evaluate_subject", "spots_of"]

Results = dict[str, Any]


def evaluate_checkpoint(
    model: DelstModel,
    processor: DelstProcessor,
    study: Study,
    train_slides: Sequence[str],
    test_slides: Sequence[str],
    evaluation: Evaluation | None = None,
    frozen_backbone: str | None = None,
) -> Results:
    """Score a checkpoint on test slides, with everything fitted on other spots.

    Arms: colour statistics of the patch; the backbone with random weights; the frozen backbone that the training started from;
    the backbone of the checkpoint; its image embeddings (in the tangent space at the origin); and the checkpoint's backbone
    with its pairs shuffled within slides, which must score at chance. Every process embeds a share of the spots; the first
    one scores.

    Args:
        model: The checkpoint's model.
        processor: Its processor.
        study: The dataset folder.
        train_slides: Slides to fit probes on; if empty, test slides are predicted from other test slides (`Evaluation.split`).
        test_slides: Slides to score; none of them may be a training slide.
        evaluation: Options of the evaluation.
        frozen_backbone: Hub id or folder of the backbone before training; None leaves that arm out.

    Returns:
        What `evaluate_subject` returns; empty on processes other than the first.

    Raises:
        ValueError: If a slide is unknown, or is used for both training and testing.
        OSError: If the frozen backbone does not load.

    Examples:
        >>> from delst_hf import DelstModel, DelstProcessor
        >>> model = DelstModel.from_pretrained("runs/toy/pretrain/model").eval()
        >>> processor = DelstProcessor.from_pretrained("runs/toy/pretrain/model")
        >>> study = Study.load("runs/toy/data")
        >>> how = Evaluation(protocols=("retrieval",), baselines=False, resamples=20, progress=False)
        >>> results = evaluate_checkpoint(model, processor, study, ["toy_A1", "toy_B1"], ["toy_D1"], how)
        >>> sorted({row["protocol"] for row in results["protocols"]})
        ['retrieval']
    """
    evaluation = evaluation or Evaluation()
    spots = spots_of(study, train_slides, test_slides, evaluation)
    dataset = study.subset([*train_slides, *test_slides])
    frozen = frozen_model(model, frozen_backbone) if frozen_backbone and evaluation.baselines else None
    subject = checkpoint_subject(model, processor, study, dataset, evaluation, frozen=frozen)
    return evaluate_subject(subject, spots, study, evaluation)


def spots_of(study: Study, train_slides: Sequence[str], test_slides: Sequence[str], evaluation: Evaluation) -> Spots:
    """Collect what is known about the spots of these slides, in the order of the folder.

    Raises:
        ValueError: If a slide is unknown or in both lists, no slide is to be scored, or the split cannot be made.
    """
    study.check_slides([*train_slides, *test_slides])
    overlap = sorted(set(train_slides) & set(test_slides))
    if overlap or not test_slides:
        found = (
            f"Slides {overlap} are used for both training and testing" if overlap else "No slide to test on is named"
        )
        raise ValueError(
            f"{found} (training {list(train_slides)}, testing {list(test_slides)}). Name different slides for both, and at "
            "least one to test on."
        )
    dataset = study.subset([*train_slides, *test_slides])
    columns = dataset.remove_columns("image").with_format("numpy")
    slides = np.asarray(columns["slide_id"][:])
    return Spots(
        slides=slides,
        patients=np.asarray(columns["patient_id"][:]),
        test=np.isin(slides, list(test_slides)),
        labels=np.array(
            [None if label in evaluation.ignore_labels else label for label in dataset["label"]], dtype=object
        ),
        positions=np.column_stack([columns["x"][:], columns["y"][:]]).astype(np.float64),
        counts=study.counts(dataset),
        genes=study.gene_names,
        split=evaluation.split,
    )


def evaluate_subject(subject: Subject, spots: Spots, study: Study, evaluation: Evaluation) -> Results:
    """Score the features of a subject and, if it has one, its space.

    Returns:
        ``protocols`` (rows of metrics with intervals), ``comparisons`` (paired), ``per_gene``, ``expression``, ``skipped``,
        ``facts`` by protocol, the slides, ``own_arms`` and what `illustrations` returns. Empty on processes other than the
        first.
    """
    if process_rank() > 0:
        return {}
    spots = replace(spots, target_sum=subject.target_sum)
    subject = subject.with_signatures(spots, evaluation.signatures)
    arms = list(subject.arms)
    if evaluation.baselines:
        main = next(arm for arm in arms if arm.own)
        # Features that belong to other spots of the slide: what they still score is the slide effect.
        control = shuffled(main.features, spots.slides, evaluation.seeds[0])
        arms.append(Arm(f"{main.name}, shuffled pairs", [control], control=True))
    findings = Findings(spots, arms, subject.space, evaluation)
    run_protocols(findings, evaluation.protocols, evaluation.progress)
    return {
        "own_arms": list(findings.own),
        "train_slides": list(dict.fromkeys(spots.slides[~spots.test].tolist())),
        "test_slides": list(dict.fromkeys(spots.slides[spots.test].tolist())),
        "split": spots.groups[1],
        "label_source": sorted(set(study.slides["label_source"]) - {""}) if "label_source" in study.slides else [],
        "interval_unit": findings.unit,
        "facts": findings.facts,
        "protocols": findings.rows,
        "comparisons": findings.comparisons,
        "per_gene": findings.per_gene,
        "expression": findings.expression,
        "skipped": findings.skipped,
        **illustrations(findings),
    }
