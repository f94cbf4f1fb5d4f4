"""The control of imputation, on images that retrieve the same few spots."""

import numpy as np
from scipy import sparse

from delst_hf.evaluation.evidence import Arm, Evaluation, Space, Spots
from delst_hf.evaluation.findings import Findings
from delst_hf.evaluation.protocols.imputation import SHUFFLES
from delst_hf.evaluation.suite import run_protocols


def test_shuffled_pairs_score_at_chance_within_the_spread_that_is_shown():
    """Two kinds of images retrieve two sets of spots: a single shuffle is off by a tenth and more, with a narrow interval."""
    generator = np.random.default_rng(0)
    kind = generator.integers(0, 2, 160)
    places = np.column_stack([kind, 1 - kind]) + 0.01 * generator.normal(size=(160, 2))
    depth = 1 + 4.0 * kind[:, None]
    slides = np.repeat(["s", "t", "u", "v"], 40)
    spots = Spots(
        slides=slides,
        patients=slides,
        test=slides > "t",
        labels=np.full(160, None, dtype=object),
        positions=generator.normal(size=(160, 2)),
        counts=sparse.csr_matrix(np.column_stack([generator.poisson(depth, (160, 12)), np.full(160, 30)])),
        genes=list("ABCDEFGHIJKLM"),
    )
    space = Space(places, places, "euclidean")
    arms = [Arm("ours", [places], own=True)]
    found = run_protocols(Findings(spots, arms, space, Evaluation(resamples=20)), ["imputation"])
    ours, control = found.rows
    assert ours["metrics"]["imputation_pearson"] > 0.3 and "imputation_pearson" in ours["intervals"]
    value, spread = (control["metrics"][f"imputation_pearson{end}"] for end in ("", "_sd"))
    assert abs(value) < 3 * spread / np.sqrt(SHUFFLES) and spread > 0.02 and control["intervals"] == {}
