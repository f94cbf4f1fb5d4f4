"""Two results paired spot by spot, by hand-made records."""

import numpy as np
import pytest

from delst_hf.evaluation.comparison import compare_results


def record(answers, labels, slides):
    spots = {"slide": slides.tolist(), "label": labels.tolist(), "predicted:linear:ours": answers.tolist()}
    names = {"data_fingerprint": "1", "test_slides": sorted(set(slides)), "own_arms": ["ours"]}
    return {**names, "interval_unit": "slides", "spots": spots}


@pytest.mark.parametrize(("labelled", "unit"), [(2, "spots"), (6, "slides")])
def test_slides_are_resampled_where_five_of_them_are_compared(labelled, unit):
    slides, generator = np.repeat(list("uvwxyz"), 10), np.random.default_rng(0)
    labels = np.where(np.arange(60) < 10 * labelled, generator.choice(["a", "b"], 60), None)
    wrong = np.where(np.arange(60) % 3 == 0, np.where(labels == "a", "b", "a"), labels)
    answers = [np.where(labels == None, None, side) for side in (labels, wrong)]  # noqa: E711, elementwise
    (found,) = compare_results(*(record(each, labels, slides) for each in answers), resamples=50)
    assert found["metric"] == "macro_f1" and found["difference"] > 0 and found["unit"] == unit
