"""`delst evaluate` and `delst report` as a user types them, on toy slides."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import make_tiny_model, make_tiny_processor

from delst_hf.cli import main
from delst_hf.evaluation.comparison import compare_results
from delst_hf.evaluation.results import FORMAT, data_fingerprint, model_index, read_results, write_results
from delst_hf.evaluation.suite import SUITE
from delst_hf.hub.checkpoint_folder import save_checkpoint_folder
from delst_hf.record import training_record

LOG = [{"epoch": float(i), "loss": 5.0 / (i + 1), "contrastive_loss": 4.0 / (i + 1), "curvature": 1.0 - i / 10,
        "curvature_at_clamp": float(i == 3), "image_radius": 1.0, "gene_radius": 0.8} for i in range(4)]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(toy_study, tmp_path_factory) -> Path:
    processor = make_tiny_processor(toy_study)
    model = make_tiny_model(len(processor.feature_extractor.vocabulary))
    folder = tmp_path_factory.mktemp("run") / "model"
    record = training_record(train_slides=["toy_A1", "toy_A2"], log_history=LOG)
    return save_checkpoint_folder(folder, model, processor, record)


def evaluate(checkpoint, toy_folder, output, *options):
    signatures = output.with_suffix(".signatures.json")
    signatures.write_text(json.dumps({"planted": {"genes": {"TOY100": 1.0, "TOY110": 0.5}, "region": "tumour"}}))
    command = ["evaluate", str(checkpoint), str(toy_folder), "--output", str(output), "--num-genes", "20"]
    more = ["--num-seeds", "1", "--resamples", "40", "--signatures", str(signatures), *options]
    assert main([*command, *more]) == 0
    return read_results(output)


@pytest.fixture(scope="module")
def results_file(checkpoint, toy_folder, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("results") / "results.json"
    evaluate(checkpoint, toy_folder, output)
    return output


@pytest.fixture(scope="module")
def record(results_file):
    return read_results(results_file)


def test_every_protocol_ran_on_unseen_slides(record):
    assert record["test_slides"] == ["toy_B1"] and record["train_slides"] == ["toy_A1", "toy_A2"]
    assert {row["protocol"] for row in record["protocols"]} == set(SUITE) - {"stimage1k4m", "robustness"}
    variants = {(row["protocol"], row["variant"]) for row in record["protocols"]}
    assert {("hest", ""), ("hest", "alpha=cv"), ("hest", "pcc=per_slide"), ("hest", "pca=None"), ("retrieval", "within"),
            ("probes", "linear"), ("probes", "knn"), ("probes", "prototype")} <= variants  # fmt: skip
    hest = [row for row in record["protocols"] if row["protocol"] == "hest"]
    assert {row["arm"] for row in hest} == {"colour statistics", "random-init backbone", "DELST backbone", "DELST embedding",
                                            "DELST backbone, shuffled pairs"}  # fmt: skip
    assert len(record["facts"]["hest"]["genes"]) == 50
    assert hest[0]["split"] == "patient" and record["interval_unit"] == "spots"
    # Of one test slide, robust against slides is not a question.
    assert [row["protocol"] for row in record["skipped"]] == ["stimage1k4m", "robustness"]


def test_results_lie_in_the_checkpoint_and_end_in_plain_words(checkpoint, toy_folder, capsys):
    """Also the advice that the refusal of seen slides prints, which must be an option that works."""
    command = [
        "evaluate",
        str(checkpoint),
        str(toy_folder),
        "--test-slides",
        "toy_A1",
        "--protocols",
        "retrieval,hierarchy",
    ]
    more = ["--resamples", "10", "--num-seeds", "1", "--no-baselines"]
    assert main([*command, *more]) == 2
    advice = re.search(r"insist with (--[a-z-]+)", capsys.readouterr().err)
    assert advice and main([*command, *more, advice[1]]) == 0
    printed = capsys.readouterr().out
    results = checkpoint / "results.json"
    assert read_results(results)["test_slides"] == ["toy_A1"] and f"Results: {results}" in printed
    sentences = printed.strip().splitlines()[-5:]
    for sentence, beginning in zip(
        sentences, ("How well", "Against what", "How sure", "The hierarchy", "What to open")
    ):
        assert sentence.startswith(f"{beginning}: ") and sentence.endswith(".")
    assert f"delst report {results} --output {results.with_suffix('.html')}" in sentences[-1]
    results.unlink()


def test_intervals_hold_their_value_and_controls_are_at_chance(record):
    intervals = [
        (row["metrics"][name], interval) for row in record["protocols"] for name, interval in row["intervals"].items()
    ]
    assert len(intervals) > 15
    for value, interval in intervals:
        assert interval["low"] <= interval["value"] <= interval["high"] and interval["unit"] == "spots"
        assert interval["value"] == pytest.approx(value, abs=1e-6)
    shuffled = next(row for row in record["protocols"] if row["arm"] == "DELST, shuffled pairs")
    assert shuffled["metrics"]["image_to_gene_mean_rank"] == pytest.approx(18.5, abs=6)
    assert any(
        row["first"] == "DELST backbone" and row["second"] == "colour statistics" for row in record["comparisons"]
    )


def test_results_say_how_to_get_them_again(record, toy_study):
    assert record["seeds"] == [0] and len(record["data_fingerprint"]) == 16 and record["num_spots"] == 108
    assert {"torch", "numpy", "delst-hf"} <= set(record["versions"]) and record["command"]
    assert record["data_fingerprint"] == data_fingerprint(toy_study.spots)
    assert data_fingerprint(toy_study.spots.select(range(107))) != record["data_fingerprint"]


def test_the_same_command_gives_the_same_digits(record, checkpoint, toy_folder, tmp_path):
    names = ["arms", "hest", "retrieval", "signatures", "probes"]
    again = evaluate(checkpoint, toy_folder, tmp_path / "again.json", "--protocols", ",".join(names))
    assert again["protocols"] == [row for row in record["protocols"] if row["protocol"] in names]


def test_model_index_is_what_the_hub_reads(record):
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import model_index_to_eval_results

    name, results = model_index_to_eval_results(model_index(record, "toy"))
    assert name == "toy" and all(isinstance(result, EvalResult) for result in results)
    values = {result.metric_name: result.metric_value for result in results}
    row = next(
        r for r in record["protocols"] if (r["protocol"], r["arm"], r["variant"]) == ("hest", "DELST backbone", "")
    )
    title = "Expression, HEST protocol: pearson_mean of DELST backbone"
    assert values[title] == pytest.approx(row["metrics"]["pearson_mean"], abs=1e-4)
    assert "Retrieval: gene_to_image_recall@10 of DELST" in values and not any("shuffled" in title for title in values)


def test_a_model_compared_with_itself_differs_by_nothing_and_with_another_by_something(record):
    same = compare_results(record, record, resamples=30)
    assert len(same) >= 5 and all(row["difference"] == row["low"] == row["high"] == 0 for row in same)
    other = {**record, "spots": {**record["spots"], "rank:image_to_gene": [1.0] * 36}}
    ranks = next(r for r in compare_results(other, record, resamples=30) if r["metric"] == "recall@10")
    assert ranks["difference"] > 0.3 and ranks["low"] > 0
    with pytest.raises(ValueError, match="different data: fingerprints"):
        compare_results(record, {**record, "data_fingerprint": "0"})


def test_mistakes_end_with_one_line(checkpoint, toy_folder, tmp_path, capsys):
    base = ["evaluate", str(checkpoint), str(toy_folder)]
    bad = tmp_path / "bad.json"
    bad.write_text("[1]")
    for options, message in (
        (["--test-slides", "toy_A1"], "was trained on ['toy_A1']"),
        (["--protocols", "plip"], "protocols ['plip'] are not known"),
        (["--signatures", str(tmp_path / "none.json")], "no signatures at"),
        (["--signatures", str(bad)], "must be JSON such as"),
    ):
        assert main([*base, *options]) == 2
        assert message in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none.json"), "--output", str(tmp_path / "r.html")]) == 2
    assert "no results at" in capsys.readouterr().err
    assert main(["report", str(bad), "--output", str(tmp_path / "r.html")]) == 2
    assert "holds no results" in capsys.readouterr().err


def test_nan_is_written_as_null(tmp_path):
    path = write_results(
        tmp_path / "results.json", {"format": FORMAT, "a": [np.float64("nan")], "test_slides": ["s"], "x": np.int64(3)}
    )
    assert read_results(path) == {"format": FORMAT, "a": [None], "test_slides": ["s"], "x": 3}
    assert read_results(tmp_path) == read_results(path)  # the folder of a checkpoint


def test_results_of_an_earlier_version_are_refused_with_the_command_that_makes_them_anew(tmp_path):
    """What the version at 2309afe wrote, without its rows."""
    old = {"format": "delst-results-1", "model": "runs/my model", "dataset": "data", "arms": [], "retrieval": [],
           "hierarchy": [], "train_slides": ["A1"], "test_slides": ["B1", "B2"]}  # fmt: skip
    (tmp_path / "old.json").write_text(json.dumps(old))
    command = (
        f"delst evaluate 'runs/my model' data --test-slides B1,B2 --train-slides A1 --output {tmp_path / 'old.json'}"
    )
    with pytest.raises(ValueError, match=re.escape(command)):
        read_results(tmp_path / "old.json")


# --- the report -------------------------------------------------------------------------------------------------------

FIGURES = ("arms-hest", "arms-hest-alpha-cv", "arms-probes-linear", "labels-toy_B1", "confusion", "gene-toy_B1",
           "signature-toy_B1", "domains-toy_B1", "radius-toy_B1", "radius-histograms", "poincare-labels",
           "poincare-level", "gallery", "genes", "training")  # fmt: skip


@pytest.fixture(scope="module")
def report(results_file, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    other = folder / "other.json"
    record = json.loads(results_file.read_text())
    for row in record["protocols"]:
        row["metrics"] = {key: None if value is None else value * 0.9 for key, value in row["metrics"].items()}
    other.write_text(json.dumps(record))
    files = [str(results_file), str(results_file), str(other)]
    options = ["--names", "ours,ours,theirs", "--output", str(folder / "report.html")]
    assert main(["report", *files, *options, "--model-index", str(folder / "index.yaml")]) == 0
    assert yaml.safe_load((folder / "index.yaml").read_text())["model-index"][0]["name"] == "ours"
    return folder / "report.html"


def test_report_is_one_file_that_asks_for_nothing(report):
    text = report.read_text()
    for name in FIGURES:
        assert f'id="figure-{name.replace("_", "-")}"' in text, name
    assert "ours minus theirs, the same spots" in text and "figure-spread-0" in text
    assert "<h1>ours: an image-gene model scored on toy_B1</h1><ul" in text
    assert text.index("How well: DELST backbone scores") < text.index("What to look at: ") < text.index("<nav>")
    assert text.index('id="figure-labels-toy-B1"') < text.index("<details><summary>Paired comparisons")
    addresses = [part.split('"')[0] for part in text.split('href="')[1:]] + [
        p.split('"')[0] for p in text.split('src="')[1:]
    ]
    assert addresses and all(address.startswith(("#", "data:")) for address in addresses)
    assert "@import" not in text and "<script" not in text and "#010203" not in text
    ids = [part.split('"')[0] for part in text.split(' id="')[1:]]
    assert len(ids) == len(set(ids)), "ids of different figures collide"


def thinned(value):
    """The same results, of every list only the first item of each form: a small page of everything that a page has."""
    if isinstance(value, dict):
        return {key: thinned(item) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    forms = {}
    for item in value:
        forms.setdefault(tuple(sorted(item)) if isinstance(item, dict) else type(item).__name__, item)
    return [thinned(item) for item in forms.values()]


def leaves(value, path=()):
    """Paths of all texts, keys included."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, ("key", key))
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from leaves(item, (*path, number))
    elif isinstance(value, str):
        yield path


def planted(record, path, text):
    """The same results with a text in one place."""
    found = json.loads(json.dumps(record))
    *way, last = path
    place = found
    for step in way:
        place = place[step]
    if isinstance(last, tuple):
        place[text] = place.pop(last[1])
    else:
        place[last] = text
    return found


class Tags(HTMLParser):
    """Names of elements and attributes of a page, and the addresses it refers to."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.addresses = set(), set(), set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.addresses |= {value for name, value in attributes if name in ("href", "src", "xlink:href", "action")}


ATTACK = "\"'></title></style></svg><script>alert(1)</script><img src=x onerror=alert(1)>--><!--$\\evil{$&lt;\ud800\u202e\n---"


def test_hostile_text_in_any_field_of_results_is_shown_and_does_nothing(record, report, monkeypatch):
    """Every text and key in turn; a page is made whose elements are those of any report, or the results are refused."""
    from delst_hf.report import page

    allowed = Tags(report.read_text())
    # The figures are drawn in the next test: here it is the page around them.
    monkeypatch.setattr(page, "report_pictures", lambda record, choice: iter(()))
    drawn = ("spots", "per_gene", "gallery", "training_log", "pictures")
    small = thinned({key: value for key, value in record.items() if key not in drawn})
    made, seen = 0, set()
    for path in leaves(small):
        place = tuple("item" if isinstance(step, int) else step for step in path)
        if place in seen:
            continue
        seen.add(place)
        try:
            text = page._page([page._printable(planted(small, path, ATTACK))], [page.shown(ATTACK)], page.MapChoice())
        except (ValueError, KeyError, TypeError):  # a protocol that there is not, a row without its metric
            continue
        made += 1
        found = Tags(text)
        assert found.tags <= allowed.tags and found.attributes <= allowed.attributes, path
        assert "<script" not in text and "<img" not in text and "\ud800" not in text and "\u202e" not in text
    assert made > 40, (made, len(seen))


def test_hostile_names_are_drawn(record, tmp_path):
    """All labels, genes, slides, arms and signatures at once, so that figures and legends hold them."""
    from delst_hf.report.page import write_report

    names = {*record["test_slides"], *record["own_arms"], *filter(None, record["spots"]["label"])}
    names |= {row["gene"] for row in record["per_gene"]} | {row["arm"] for row in record["protocols"]}
    hostile = {name: f"{number}{ATTACK}" for number, name in enumerate(sorted(names, key=len, reverse=True))}

    def renamed(value):
        if isinstance(value, dict):
            return {renamed_key(key): renamed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [renamed(item) for item in value]
        return hostile.get(value, value) if isinstance(value, str) else value

    def renamed_key(key):
        head, colon, tail = key.rpartition(":")
        return f"{head}{colon}{hostile.get(tail, tail)}"

    path = write_report([renamed(record)], tmp_path / "hostile.html", [ATTACK])
    found, text = Tags(path.read_text(encoding="utf-8")), path.read_text(encoding="utf-8")
    assert not {"script", "img", "iframe"} & found.tags and not [a for a in found.attributes if a.startswith("on")]
    assert all(address.startswith(("#", "data:")) for address in found.addresses)
    assert "<!--" not in text and text.count('http-equiv="Content-Security-Policy"') == 1


def figures_of(page: str) -> dict[str, str]:
    """The figures of a page by their ids, as they are written there."""
    return {part.split('"')[0]: part.split("</figure>")[0] for part in page.split('<figure id="')[1:]}


def test_same_results_same_report(results_file, report, tmp_path, monkeypatch):
    """Each figure is drawn again for this page, as it was for the page of several results; and the page is written twice."""
    assert main(["report", str(results_file), "--output", str(tmp_path / "a.html")]) == 0
    drawn, before = figures_of((tmp_path / "a.html").read_text()), figures_of(report.read_text())
    assert len(drawn) >= len(FIGURES) and drawn == {name: before[name] for name in drawn}
    from delst_hf.report import page

    svg = {name: figure[figure.index("<svg") : figure.index("<figcaption")] for name, figure in drawn.items()}
    monkeypatch.setattr(page, "figure_svg", lambda picture: page.Html(svg[page._id(picture)]))
    assert main(["report", str(results_file), "--output", str(tmp_path / "b.html")]) == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_report_in_a_browser(report, tmp_path):
    """Headless Chromium lays every figure out with a size, and its console stays empty."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here: install Debian's `chromium`")
    probe = tmp_path / "probe.html"
    # Sizes are written into the document, which --dump-dom prints.
    script = (
        "<script>window.addEventListener('load',()=>{for(const f of document.querySelectorAll('figure')){"
        "const b=f.querySelector('svg').getBoundingClientRect();f.dataset.size=b.width>50&&b.height>50?'seen':'empty'}})"
        "</script></body>"
    )
    # The page itself allows no script, also none that looks at it.
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.read_text())
    probe.write_text(page.replace("</body>", script))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
             "--enable-logging=stderr", "--v=0", "--dump-dom"]  # fmt: skip
    done = subprocess.run([browser, *flags, probe.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = done.stdout.split("<figure ")[1:]
    assert len(figures) >= len(FIGURES) and all('data-size="seen"' in figure.split(">")[0] for figure in figures)
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_suite_names_are_those_of_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in SUITE)
