"""Five sentences in plain words, by hand-made results."""

from delst_hf.evaluation.conclusions import conclusions


def row(protocol, arm, own=False, variant="", **metrics):
    names = {"protocol": protocol, "variant": variant, "arm": arm, "own": own, "control": False}
    return {**names, "metrics": metrics, "intervals": {}}


def record(low, **changes):
    rows = [
        row("hest", "frozen backbone", variant="alpha=cv", pearson_mean=0.2),
        row("hest", "ours", True, variant="alpha=cv", pearson_mean=0.25),
        row("hierarchy", "ours", True, in_cone_matched=0.9, in_cone_mismatched=0.88, entailment_auc=0.61),
    ]
    pair = {"protocol": "hest", "variant": "alpha=cv", "metric": "pearson_mean", "first": "ours", "second": "frozen backbone",
            "difference": 0.05, "low": low, "high": 0.09, "unit": "spots"}  # fmt: skip
    return {"protocols": rows, "comparisons": [pair], "own_arms": ["ours"], "test_slides": ["B4"], **changes}


def test_the_sentences_say_what_was_found():
    well, against, sure, hierarchy = conclusions(record(0.01))
    assert (
        "ours scores 0.250 in Expression, HEST protocol [alpha=cv] (pearson mean) on B4" in well
        and "0 is chance" in well
    )
    assert "best baseline, frozen backbone, gets 0.200; the model lies 0.050 above it" in against
    assert "between +0.010 and +0.090" in sure and "for these slides, not for other patients: beyond chance" in sure
    assert (
        "90% of children lie in their own parent's cone and 88% in another's, so the cones do not tell the two apart"
        in hierarchy
    )
    assert "61% of pairs (50% is chance)" in hierarchy


def test_an_interval_that_holds_zero_is_no_difference():
    assert "no difference, as this interval holds 0" in conclusions(record(-0.01))[2]


def test_without_baselines_and_without_a_hierarchy_the_sentences_say_so():
    only = [row("hest", "ours", True, variant="alpha=cv", pearson_mean=-0.01)]
    _, against, sure, hierarchy = conclusions(record(0.01, protocols=only, comparisons=[]))
    assert "chance gets 0.000; the model lies 0.010 below it" in against
    assert (
        sure.endswith("so the results do not show what was learned.")
        and "only a checkpoint with a Lorentz space" in hierarchy
    )
    for left_out in ("--no-baselines", "--protocols"):
        words = ["delst", "evaluate", left_out]
        _, _, sure, hierarchy = conclusions(record(0.01, protocols=only, comparisons=[], command=words))
        assert sure.endswith(f"Evaluate without {left_out}.")
    assert "it is not among the --protocols" in hierarchy
