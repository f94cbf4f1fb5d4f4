"""Everything that `delst evaluate` takes: a checkpoint elsewhere, a plain backbone, arrays; and awkward datasets."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_tiny_model, make_tiny_processor

from delst_hf.cli import main
from delst_hf.data.dataset import write_dataset
from delst_hf.data.toy import make_toy_slide
from delst_hf.evaluation.results import model_index, read_results
from delst_hf.hub.checkpoint_folder import save_checkpoint_folder
from delst_hf.report.figures import headline_values, spread_pictures

QUICK = ["--resamples", "10", "--num-seeds", "1", "--num-genes", "20"]


def evaluate(model, dataset, output: Path, *options) -> dict:
    assert main(["evaluate", str(model), str(dataset), "--output", str(output), *QUICK, *options]) == 0
    return read_results(output)


def rows_of(record, protocol, variant="") -> dict[str, dict]:
    """Arm -> metrics, of the rows over all test slides."""
    return {
        row["arm"]: row["metrics"]
        for row in record["protocols"]
        if (row["protocol"], row["variant"]) == (protocol, variant) and not row.get("slide")
    }


@pytest.fixture
def one_slide_drawn(monkeypatch):
    """Of each kind of figure that of one slide and one gene is drawn; those of the others are made, and not drawn."""
    from delst_hf.report import page

    drawn, draw = {}, page.figure_svg

    def first_of_its_kind(picture):
        kind = re.sub(r"(-TOY\d+)?-(toy_\w\d|p\d+)$", "", picture.name)
        return drawn.setdefault(kind, draw(picture) if kind not in drawn else None)

    monkeypatch.setattr(page, "figure_svg", first_of_its_kind)


@pytest.fixture(scope="module")
def planted(toy_study) -> dict[str, np.ndarray]:
    """Embeddings from elsewhere: images carry the label, genes are the images with noise."""
    labels = np.unique(toy_study.spots["label"], return_inverse=True)[1]
    generator = np.random.default_rng(0)
    image = np.eye(6)[labels] * 3 + generator.normal(size=(len(labels), 6))
    return {"image": image, "gene": image + 0.1 * generator.normal(size=image.shape)}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    from transformers import ViTImageProcessorPil

    folder = tmp_path_factory.mktemp("backbone") / "tiny-vit"
    make_tiny_model(4).vision_model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_plain_backbone_is_scored_like_any_other(backbone, toy_folder, one_slide_drawn, tmp_path):
    record = evaluate(backbone, toy_folder, tmp_path / "r.json")
    assert record["kind"] == "backbone" and record["own_arms"] == ["tiny-vit"]
    # Nothing was trained, so every slide is scored, from those of other patients.
    assert record["test_slides"] == ["toy_A1", "toy_A2", "toy_B1"] and record["train_slides"] == []
    arms = [row for row in record["protocols"] if row["protocol"] == "arms"]
    assert {row["slide"] for row in arms} == {"toy_A1", "toy_A2", "toy_B1"}
    arms = {"colour statistics", "random-init backbone", "tiny-vit", "tiny-vit, shuffled pairs"}
    for protocol, variant in (("hest", ""), ("hest", "alpha=cv"), ("probes", "linear"), ("probes", "knn"),
                              ("stimage1k4m", ""), ("domains", "")):  # fmt: skip
        assert set(rows_of(record, protocol, variant)) == arms, protocol
    # Robustness is computed by an optional library.
    skipped = {row["protocol"] for row in record["skipped"]} - {"robustness"}
    assert skipped == {"retrieval", "imputation", "signatures", "hierarchy"}
    assert all(row["metrics"]["num_spots"] == 108 for row in record["protocols"] if row["protocol"] == "hest")
    assert model_index(record, "x")[0]["results"]
    assert main(["report", str(tmp_path / "r.json"), "--output", str(tmp_path / "r.html")]) == 0
    found = compared_over_runs(record, "tiny-vit")
    drawn = (("hest", "", "pearson_mean"), ("hest", "alpha=cv", "pearson_mean"), ("probes", "linear", "macro_f1"))
    expected = [rows_of(record, protocol, variant)["tiny-vit"][headline] for protocol, variant, headline in drawn]
    assert sorted(found) == sorted(expected)


def compared_over_runs(record, name):
    """Headline numbers of the model that a report of two runs draws, each beside itself."""
    drawn = headline_values([record, record], [name, name])
    assert all(list(by_name) == [name] and by_name[name] == 2 * by_name[name][:1] for by_name in drawn.values()), drawn
    assert len(list(spread_pictures([record, record], [name, name]))) == len(drawn)
    return [by_name[name][0] for by_name in drawn.values()]


def test_arrays_of_images_and_genes_have_retrieval_too(planted, toy_folder, one_slide_drawn, tmp_path):
    np.savez(tmp_path / "planted.npz", **planted)
    protocols = "probes,hest,retrieval,imputation,domains"
    record = evaluate(tmp_path / "planted.npz", toy_folder, tmp_path / "r.json", "--protocols", protocols)
    assert record["kind"] == "embeddings" and record["own_arms"] == ["planted"]
    found = rows_of(record, "retrieval")
    assert found["planted, image and gene"]["image_to_gene_recall@10"] > 0.95
    assert found["planted, image and gene, shuffled pairs"]["image_to_gene_recall@10"] < 0.25
    assert rows_of(record, "probes", "linear")["planted"]["macro_f1"] > 0.8
    assert rows_of(record, "probes", "linear")["planted, shuffled pairs"]["macro_f1"] < 0.35
    assert rows_of(record, "domains")["planted"]["ari"] > 0.6
    found = compared_over_runs(record, "planted")
    assert rows_of(record, "retrieval")["planted, image and gene"]["image_to_gene_recall@10"] in found
    assert rows_of(record, "probes", "linear")["planted"]["macro_f1"] in found
    assert main(["report", str(tmp_path / "r.json"), "--output", str(tmp_path / "r.html")]) == 0
    text = (tmp_path / "r.html").read_text()
    assert 'id="figure-gallery"' in text and 'id="figure-radius-histograms"' not in text


def test_rows_are_found_by_slide_and_barcode_in_any_order_and_format(planted, toy_folder, toy_study, tmp_path):
    order = np.random.default_rng(1).permutation(108)
    keys = {name: np.array(toy_study.spots[name])[order] for name in ("slide_id", "barcode")}
    np.save(tmp_path / "a.npy", planted["image"])
    np.savez(tmp_path / "b.npz", embeddings=planted["image"][order], **keys)
    pd.DataFrame({**keys, "embedding": list(planted["image"][order])}).to_parquet(tmp_path / "c.parquet")
    wide = pd.DataFrame(planted["image"][order], columns=[f"d{i}" for i in range(6)])
    wide.assign(**keys).to_parquet(tmp_path / "d.parquet")
    scores = [
        evaluate(tmp_path / name, toy_folder, tmp_path / "r.json", "--protocols", "probes", "--no-baselines")
        for name in ("a.npy", "b.npz", "c.parquet", "d.parquet")
    ]
    rows = [[row["metrics"] for row in record["protocols"]] for record in scores]
    assert rows[0] == rows[1] == rows[2] == rows[3] and len(rows[0]) == 2


def test_lorentz_arrays_have_a_hierarchy(toy_folder, tmp_path):
    generator = np.random.default_rng(0)
    arrays = {"image": generator.normal(size=(108, 4)), "gene": 0.5 * generator.normal(size=(108, 4))}
    np.savez(tmp_path / "l.npz", **arrays)
    options = ["--geometry", "lorentz", "--curvature", "0.7", "--protocols", "probes,hierarchy", "--no-baselines"]
    record = evaluate(tmp_path / "l.npz", toy_folder, tmp_path / "r.json", *options)
    metrics = next(row["metrics"] for row in record["protocols"] if row["protocol"] == "hierarchy")
    assert metrics["curvature"] == 0.7 and metrics["gene_radius"] < metrics["image_radius"]
    assert metrics["entailment_auc"] == pytest.approx(0.5, abs=0.12) and "prototype" in {
        row["variant"] for row in record["protocols"]
    }


@pytest.fixture(scope="module")
def checkpoint(toy_study, tmp_path_factory) -> Path:
    processor = make_tiny_processor(toy_study)
    model = make_tiny_model(len(processor.feature_extractor.vocabulary))
    return save_checkpoint_folder(
        tmp_path_factory.mktemp("elsewhere") / "model", model, processor, {"vision": "./gone"}
    )


def toy_dataset(folder: Path, *slides) -> Path:
    write_dataset(iter(slides), folder, patch_um=112, patch_px=32)
    return folder


def test_one_slide_is_cut_into_strips(checkpoint, tmp_path):
    """One slide and a checkpoint from elsewhere, whose own backbone is not on this machine."""
    data = toy_dataset(tmp_path / "one", make_toy_slide("only", spots_per_side=8, image_px=500))
    record = evaluate(
        checkpoint, data, tmp_path / "r.json", "--protocols", "arms,probes,hest,imputation,domains,hierarchy"
    )
    assert record["split"] == "block" and record["test_slides"] == ["only"]
    assert rows_of(record, "hest")["DELST backbone"]["num_folds"] == 5
    assert rows_of(record, "probes", "linear")["DELST backbone"]["num_folds"] == 5
    assert "frozen backbone" not in rows_of(record, "hest") and "arms" not in {
        r["protocol"] for r in record["protocols"]
    }


def test_a_frozen_backbone_that_does_not_load(checkpoint, toy_folder, tmp_path, capsys, caplog):
    """The one of the record is left out, with the next step; one that was asked for ends the command before the work."""
    options = [str(checkpoint), str(toy_folder), *QUICK, "--protocols", "hest", "--output"]
    assert main(["evaluate", *options, str(tmp_path / "recorded.json")]) == 0
    told = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(told) == 1 and "./gone does not load" in told[0] and "--frozen-backbone" in told[0]
    assert "frozen backbone" not in rows_of(read_results(tmp_path / "recorded.json"), "hest")
    capsys.readouterr()
    assert main(["evaluate", *options, str(tmp_path / "asked.json"), "--frozen-backbone", "./nowhere"]) == 2
    said = capsys.readouterr().err
    assert "./nowhere does not load" in said and "--frozen-backbone" in said and "embed:" not in said
    assert not (tmp_path / "asked.json").exists()


def test_no_labels_and_a_shallow_slide(checkpoint, tmp_path):
    slides = [make_toy_slide(f"s{i}", spots_per_side=4, image_px=400) for i in range(2)]
    slides = [replace(slide, spots=slide.spots.assign(label=None)) for slide in slides]
    record = evaluate(checkpoint, toy_dataset(tmp_path / "bare", *slides), tmp_path / "r.json")
    protocols = {row["protocol"] for row in record["protocols"]}
    assert "hest" in protocols and "retrieval" in protocols and "probes" not in protocols
    reasons = {row["protocol"]: row["reason"] for row in record["skipped"]}
    assert "the spots to score have no labels" in reasons["probes"]
    assert "0 test spots are labelled" in reasons["stimage1k4m"]
    assert all("ari" not in row["metrics"] for row in record["protocols"] if row["protocol"] == "domains")


def test_tiny_classes_and_many_slides(checkpoint, one_slide_drawn, tmp_path):
    """Eleven slides of nine spots; one class has a single spot, most spots have no label."""
    slides = [make_toy_slide(f"p{i}", spots_per_side=3, image_px=300) for i in range(11)]
    for i, slide in enumerate(slides):
        label = [None if spot % 3 == 0 else ["stroma", "tumour"][spot % 2] for spot in range(9)]
        label[1] = "rare" if i == 0 else label[1]
        slides[i] = replace(slide, spots=slide.spots.assign(label=label), patient_id=f"patient {i}")
    data = toy_dataset(tmp_path / "many", *slides)
    options = ["--no-baselines", "--protocols", "probes,hest,retrieval,imputation,hierarchy"]
    record = evaluate(checkpoint, data, tmp_path / "r.json", *options)
    assert record["interval_unit"] == "slides" and record["split"] == "patient"
    probe = rows_of(record, "probes", "linear")["DELST backbone"]
    assert probe["num_folds"] == 10 and probe["num_classes"] == 3 and 0 <= probe["macro_f1"] <= 1
    assert not [row for row in record["skipped"] if row["protocol"] not in ("signatures", "robustness")], record[
        "skipped"
    ]
    assert main(["report", str(tmp_path / "r.json"), "--output", str(tmp_path / "r.html")]) == 0
    text = (tmp_path / "r.html").read_text()
    assert "Maps of the first 6 slides; 5 more were scored" in text and text.count('<figure id="figure-labels-') == 6


def test_mistakes_end_with_one_line_before_any_work(planted, checkpoint, toy_folder, tmp_path, capsys):
    np.save(tmp_path / "short.npy", planted["image"][:50])
    broken = planted["image"].copy()
    broken[7, 2] = np.nan
    np.save(tmp_path / "nan.npy", broken)
    np.save(tmp_path / "complex.npy", planted["image"] + 1j)
    np.savez(tmp_path / "words.npz", words=np.ones((108, 2)))
    np.savez(tmp_path / "half.npz", image=planted["image"], slide_id=np.repeat("a", 108))
    few = {"slide_id": np.repeat("toy_A1", 2), "barcode": np.array(["x", "y"])}
    np.savez(tmp_path / "few.npz", image=planted["image"][:2], **few)
    twice = {"slide_id": np.repeat("toy_A1", 2), "barcode": np.array(["x", "x"])}
    np.savez(tmp_path / "twice.npz", image=planted["image"][:2], **twice)
    np.savez(tmp_path / "both.npz", **planted)
    (tmp_path / "s.json").write_text('{"a": {"genes": ["TOY100"]}}')
    for model, options, message in (
        (tmp_path / "none.npy", [], "no embeddings at"),
        (tmp_path / "short.npy", [], "has {'image': 50} rows and the dataset 108 spots"),
        (tmp_path / "nan.npy", [], "nan.npy: image holds NaN or infinity in 1 of 108 rows, first in row 7"),
        (tmp_path / "complex.npy", [], "complex.npy: image holds values of type complex128; allowed are real numbers"),
        (tmp_path / "words.npz", [], "holds words; no array of image embeddings"),
        (tmp_path / "half.npz", [], "has only slide_id of slide_id and barcode"),
        (tmp_path / "few.npz", [], "lacks 108 of the 108 spots"),
        (tmp_path / "twice.npz", [], "repeats spots in 1 rows"),
        (tmp_path / "both.npz", ["--geometry", "lorentz"], "--geometry lorentz needs --curvature"),
        (tmp_path / "both.npz", ["--signatures", str(tmp_path / "s.json")], "need a gene encoder"),
        (checkpoint, ["--split", "spot"], "--split is 'spot'; allowed are auto, patient, slide, block"),
        (checkpoint, ["--split", "patient", "--test-slides", "toy_A1", "--train-slides", "toy_A2"], "all spots are of one"),
        (checkpoint, ["--domain-method", "louvain"], "--domain-method is 'louvain'; allowed are kmeans, leiden"),
        (checkpoint, ["--resamples", "0"], "--resamples is 0; allowed is 1 or more"),
        (tmp_path / "nothing", [], "there is no model"),
    ):  # fmt: skip
        assert main(["evaluate", str(model), str(toy_folder), *QUICK, *options]) == 2, model
        assert message in capsys.readouterr().err


def test_arrays_that_declare_more_than_they_hold_are_refused(tmp_path):
    """The header of a small file may declare any shape: room is not made for it."""
    import io
    import zipfile

    from delst_hf.evaluation.arrays import read_embeddings

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": (2**40, 2), "fortran_order": False, "descr": "<f8"})
    (tmp_path / "a.npy").write_bytes(header.getvalue() + b"0" * 100)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("image.npy", header.getvalue() + b"0" * 100)
    (tmp_path / "c.npz").write_bytes(b"no zip")
    for name in ("a.npy", "b.npz", "c.npz"):
        with pytest.raises(ValueError, match=rf"{name}"):
            read_embeddings(tmp_path / name, None, 0)
