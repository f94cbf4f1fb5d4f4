"""Five sentences in plain words, by hand-made results."""

from delst_hf.evaluation.conclusions import conclusions


def row(protocol, arm, own=False, variant="", intervals=None, **metrics):
    names = {"protocol": protocol, "variant": variant, "arm": arm, "own": own, "control": False}
    ends = {key: {"low": low, "high": high} for key, (low, high) in (intervals or {}).items()}
    return {**names, "metrics": metrics, "intervals": ends}


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


def test_nothing_scored_is_told_in_whole_sentences():
    nothing = conclusions(record(0.01, protocols=[], command=["delst", "evaluate", "--protocols"]))
    assert nothing == [
        'Nothing was scored on B4; the table "Not run" says why.',
        "The hierarchy: it is not among the --protocols that were chosen.",
    ]


def test_a_tie_is_neither_above_nor_below():
    equal = [row("hest", "ours", True, pearson_mean=0.2), row("hest", "colour statistics", pearson_mean=0.2)]
    against = conclusions(record(0.01, protocols=equal, comparisons=[]))[1]
    assert against.endswith("gets 0.200; the model lies level with it.")


def test_a_baseline_of_one_seed_has_no_spread_to_judge_by():
    rows = [row("arms", "ours", True, pearson_mean=0.3), row("arms", "colour statistics", pearson_mean=0.2)]
    rows = [{**each, "slide": "B4"} for each in rows]
    sure = conclusions(record(0.01, protocols=rows, comparisons=[]))[2]
    assert "nothing says how sure it is" in sure and "judged by the spread" not in sure
    rows[1]["metrics"]["pearson_mean_sd"] = 0.01
    sure = conclusions(record(0.01, protocols=rows, comparisons=[]))[2]
    assert "judged by the spread of the baseline, the model is above it" in sure


def hierarchy(**intervals):
    names = {"in_cone_matched": 0.3, "in_cone_mismatched": 0.1, "entailment_auc": 0.61}
    metrics = {**names, "image_radius_genes_given_counts": 0.1}
    only = [row("hierarchy", "ours", True, intervals=intervals, **metrics)]
    return conclusions(record(0.01, protocols=only))[-1]


def test_the_hierarchy_is_claimed_only_as_far_as_its_intervals_reach():
    sure = hierarchy(
        in_cone_matched=(0.2, 0.4),
        in_cone_mismatched=(0.05, 0.15),
        entailment_auc=(0.55, 0.66),
        image_radius_genes_given_counts=(0.02, 0.19),
    )
    assert "so the cones tell the two apart" in sure and "(55% to 66% in 95 % of resamples; 50% is chance)" in sure
    assert "by +0.10 (+0.02 to +0.19 in 95 % of resamples)." in sure
    with_control = [row("hierarchy", "ours", True, in_cone_matched=0.3, in_cone_mismatched=0.1, entailment_auc=0.61)]
    with_control[0]["metrics"]["entailment_auc_shuffled"] = 0.56
    assert (
        "61% of pairs (56% with children shuffled within slides)" in conclusions(record(0, protocols=with_control))[-1]
    )
    unsure = hierarchy(
        in_cone_matched=(0.1, 0.5),
        in_cone_mismatched=(0.0, 0.2),
        image_radius_genes_given_counts=(-0.01, 0.19),
    )
    assert "not shown that the cones tell the two apart" in unsure
    assert "by +0.10 (-0.01 to +0.19 in 95 % of resamples, which holds 0: no correlation is shown)." in unsure
