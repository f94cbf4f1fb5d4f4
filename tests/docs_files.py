"""What the pages name, as small files of the kinds that they speak of: page -> what it needs in its folder."""

import json
import shutil
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import tifffile
from conftest import make_tiny_model, make_tiny_processor
from layouts import Source, make_source, write_outs
from PIL import Image
from scipy import sparse
from test_readers_collections import write_hest, write_stimage, write_xenium
from test_readers_her2st import write_section
from test_readers_tables import on_legacy_array, write_legacy
from test_readers_visium import make_hd
from test_readers_visium_cells import feature, rectangle, write_geojson
from test_readers_xenium import write_cells

from delst_hf.cli import main
from delst_hf.data.dataset import write_dataset
from delst_hf.data.slide import Slide
from delst_hf.data.study import Study
from delst_hf.data.toy import make_toy_slide

FACTORS = {"spot_diameter_fullres": 130.0, "fiducial_diameter_fullres": 210.0,
           "tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.25}  # fmt: skip


# --- slides -----------------------------------------------------------------------------------------------------------


def large_source(seed: int = 0, rows: int = 5, columns: int = 6) -> Source:
    """A Visium lattice of 200 px, 0.5 um per px, on an image of 4,000 x 3,000 px."""
    source = make_source(seed, rows=rows, columns=columns, num_genes=40)
    source.spots[["x", "y"]] *= 10
    source.pixels = np.repeat(np.repeat(source.pixels, 10, 0), 10, 1)
    return source


def write_table(source: Source, counts: Path, spots: Path) -> None:
    pd.DataFrame(source.counts, index=source.spots.index, columns=source.symbols).to_csv(counts)
    labels = np.where(np.arange(len(source.spots)) % 2, "tumour", "stroma")
    source.spots.assign(region=labels).reset_index(names="barcode").to_csv(spots, index=False)


def write_adata(path: Path, source: Source, spot_um: float, mpp: float = 5.0) -> None:
    """A slide as scanpy keeps it."""
    adata = anndata.AnnData(
        sparse.csr_matrix(source.counts),
        obs=source.spots[["array_row", "array_col"]].assign(pathology="tumour"),
        var=pd.DataFrame({"gene_ids": source.gene_ids}, index=source.symbols),
        obsm={"spatial": source.spots[["x", "y"]].to_numpy(float)},
        layers={"counts": sparse.csr_matrix(source.counts)},
    )
    factors = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": spot_um / mpp}
    adata.uns["spatial"] = {path.stem: {"images": {"hires": source.pixels}, "scalefactors": factors}}
    adata.write_h5ad(path)


def source_of(slide: Slide) -> Source:
    spots = slide.spots.assign(array_row=-1, array_col=-1)
    spots.index = spots.index.astype(str)
    symbols = slide.genes["symbol"].tolist()
    return Source(np.asarray(slide.image), spots, slide.counts.toarray(), ["" for _ in symbols], symbols)


def write_slides(folder: Path) -> None:
    """Slides in the layouts of docs/data.md."""
    source = large_source()
    picture = Image.fromarray(source.pixels)
    write_outs(folder / "S1/outs", source, factors=FACTORS)
    write_outs(folder / "P1/spaceranger/outs", source, factors=FACTORS)
    for name in ("S1_he.tif", "P1_he.tif", "P3_he.tif", "he.tif"):
        picture.save(folder / name)
    write_table(source, folder / "counts.csv.gz", folder / "spots.csv")
    write_table(source, folder / "P3_counts.csv.gz", folder / "P3_spots.csv")
    write_adata(folder / "P2.h5ad", make_source(), 55)
    write_adata(folder / "V1_breast.h5ad", make_source(), 55)
    write_adata(folder / "A1.h5ad", on_legacy_array(make_source()), 100)
    _write_collections(folder)
    _write_cells(folder)
    _write_images(folder)
    write_dataset([make_toy_slide(name, spots_per_side=4, image_px=300) for name in ("B4", "C2")], folder / "st")
    write_dataset([make_toy_slide("A1", spots_per_side=4, image_px=300)], folder / "a1")


def _write_collections(folder: Path) -> None:
    write_section(folder / "her2st")
    for path in sorted((folder / "her2st").rglob("*Z1*"), reverse=True):
        for name in ("C2", "C3"):
            copy = path.with_name(path.name.replace("Z1", name))
            shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
    images = folder / "her2st/data/ST-imgs"
    shutil.move(images / "Z", images / "C")
    shutil.rmtree(images / "C/Z1")
    (folder / "her2st/transferred_labels.csv").write_text("section,id,label\nC2,1x1,tumour\n")
    make_hd(folder / "HD1/outs", make_source(), 16)
    Image.fromarray(make_source().pixels).save(folder / "HD1_he.btf", format="TIFF")
    (folder / "legacy").mkdir()
    counts, spots, image = write_legacy(folder / "legacy", on_legacy_array(make_source()), suffix=".tsv")
    shutil.copy(counts, folder / "MOB1.tsv")
    shutil.copy(spots, folder / "MOB1_spots.tsv")
    Image.open(image).save(folder / "MOB1.jpg")
    for sample in ("TENX95", "NCBI785"):
        write_hest(folder / "hest_data", make_source(), sample)
    write_stimage(folder / "STimage-1K4M", make_source())


def _write_cells(folder: Path) -> None:
    source = make_source()
    source.spots.index = [f"cellid_{number:09d}-1" for number in range(1, 13)]
    from layouts import write_10x_h5, write_spatial

    segmented = folder / "HD1/outs/segmented_outputs"
    segmented.mkdir(parents=True)
    write_10x_h5(segmented / "filtered_feature_cell_matrix.h5", source)
    places = source.spots[["x", "y"]].to_numpy()
    outlines = [feature(number + 1, rectangle(x, y, 20, 30)) for number, (x, y) in enumerate(places)]
    write_geojson(segmented / "cell_segmentations.geojson", outlines)
    write_spatial(segmented / "spatial", source, factors={**FACTORS, "microns_per_pixel": 0.25})

    write_xenium(folder / "output-XETG")
    told = (folder / "output-XETG/experiment.xenium").read_text()
    write_cells(folder / "cells", make_source())
    for path in (folder / "cells").iterdir():
        shutil.move(path, folder / "output-XETG" / path.name)
    (folder / "output-XETG/experiment.xenium").write_text(told)
    tifffile.imwrite(folder / "he.ome.tif", np.asarray(Image.fromarray(source.pixels).resize((800, 600))))
    identity = "1,0,0\n0,1,0\n0,0,1\n"
    for name in ("alignment", "cosmx_to_he", "micron_to_mosaic_pixel_transform", "mosaic_to_he"):
        (folder / f"{name}.csv").write_text(identity)

    keys = pd.DataFrame({"fov": 1, "cell_ID": np.arange(1, 13)})
    genes = pd.DataFrame(source.counts[:, :4], columns=source.symbols[:4])
    x, y = (places * 8).T
    pd.concat([keys, genes], axis=1).to_csv(folder / "S_exprMat_file.csv", index=False)
    cosmx = keys.assign(**{"CenterX_global_px": x, "CenterY_global_px": y, "Area.um2": 30.0})
    cosmx.to_csv(folder / "S_metadata_file.csv", index=False)
    names = [str(1504440900000100001 + number) for number in range(12)]
    genes.set_index(pd.Index(names, name="cell")).to_csv(folder / "cell_by_gene.csv")
    pd.DataFrame({"center_x": x, "center_y": y}, index=names).to_csv(folder / "cell_metadata.csv")


def _write_images(folder: Path) -> None:
    """H&E without counts, half of it tissue; at 0.5 um per px, as the two that state it say."""
    he = np.full((4000, 2000, 3), (242, 240, 244), dtype=np.uint8)
    he[:, :1500] = np.random.default_rng(0).integers((160, 80, 130), (220, 150, 190), (4000, 1500, 3), dtype=np.uint8)
    Image.fromarray(he).save(folder / "he.jpg")
    small = he[:1200, :1800]
    aperio = "Aperio Image Library v11.2.1\n1800x1200 |AppMag = 20|MPP = 0.5000"
    tifffile.imwrite(folder / "slide.svs", small, photometric="rgb", tile=(256, 256), description=aperio)
    sizes = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(folder / "slide.ome.tif", small, photometric="rgb", tile=(256, 256), metadata=sizes)
    write_geojson(folder / "annotations.geojson", [feature(1, rectangle(700, 600, 900, 900))])
    c5 = folder / "her2st/data/ST-imgs/C/C5"
    c5.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).save(c5 / "5714_HE_BT_E1.jpg")


# --- datasets and models ----------------------------------------------------------------------------------------------


def write_runs(folder: Path, tiny_backbone: Path) -> None:
    """A dataset whose genes have names of markers, a model trained on two of its patients, heads and results."""
    from delst_hf.hub.checkpoint_folder import save_checkpoint_folder
    from delst_hf.record import data_facts, training_record

    slides = []
    for name in ("toy_A1", "toy_A2", "toy_B1", "toy_C1", "toy_D1"):
        slide = make_toy_slide(name, spots_per_side=5, num_genes=60, image_px=400)
        slide.genes.loc[:3, "symbol"] = ["ERBB2", "KRT8", "EPCAM", "COL1A1"]  # the model reads every second
        slides.append(slide)
    data = folder / "runs/toy/data"
    write_dataset(slides, data, patch_px=32)
    study = Study.load(str(data))
    processor = make_tiny_processor(study)
    model = make_tiny_model(len(processor.feature_extractor.vocabulary)).eval()
    trained = ["toy_A1", "toy_A2", "toy_B1"]
    record = training_record(
        train_slides=trained, validation_slides=[], vision=None, data=data_facts(data, study, trained),
        hyperparameters={"learning_rate": 1e-3}, hardware="two cores", log_history=[{"train_runtime": 60.0}],
    )  # fmt: skip
    made = save_checkpoint_folder(folder / "made/model", model, processor, record)
    for name in ("runs/toy/pretrain/model", "runs/her2st/pretrain/model", "MODEL"):
        shutil.copytree(made, folder / name)
    # A user's own, whose patient D is held out.
    assert main(["merge", str(data), "--output", str(folder / "DATASET"), "--test-slides", "toy_D1"]) == 0
    for name in ("runs/her2st/data", "data/her2st"):
        shutil.copytree(data, folder / name)
    for name in ("facebook/dinov2-small", "BACKBONE"):
        shutil.copytree(tiny_backbone, folder / name)
    rows = len(study.spots)
    np.savez(folder / "embeddings.npz", image=np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32))
    slide = make_toy_slide("toy_C1", spots_per_side=5, num_genes=60, image_px=400)
    write_adata(folder / "mine.h5ad", source_of(slide), 55, slide.mpp)
    scale = 0.5 / slide.mpp
    small = Image.fromarray(np.asarray(slide.image))
    small.save(folder / "he.tif")
    places = slide.spots[["x", "y"]] / scale
    places.rename_axis("barcode").reset_index().to_csv(folder / "spots.csv", index=False)
    (folder / "signatures.json").write_text(json.dumps({"luminal": {"genes": ["ERBB2", "EPCAM"]}}))
    _write_images(folder)
    small.resize((2000, 4000)).save(folder / "he.jpg")
    _write_trident(folder / "trident/20x_256px_0px_overlap/features_uni_v1", study)
    small.resize((3200, 3200)).save(folder / "S9.svs", format="TIFF")  # where S9.h5 has its patches


def _write_trident(folder: Path, study: Study) -> None:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    mpp = dict(zip(study.slide_ids, study.slides["mpp"], strict=True))
    for slide in (*study.slide_ids, "S9"):
        like = slide if slide in mpp else "toy_D1"
        spots = study.subset([like]).remove_columns("image").to_pandas()
        stated = mpp[like] if slide in mpp else 0.25
        side = 112 / stated
        with h5py.File(folder / f"{slide}.h5", "w") as file:
            file["features"] = generator.normal(size=(len(spots), 12)).astype(np.float32)
            file["coords"] = (spots[["x", "y"]].to_numpy() * mpp[like] / stated - side / 2).round()
            file["coords"].attrs.update({"patch_size": 256, "patch_size_level0": side, "overlap": 0, "name": slide})


def write_results(folder: Path) -> None:
    """A results.json of the toy run, under each name that docs/report.md gives."""
    words = ["--test-slides", "toy_D1", "--protocols", "retrieval", "--no-baselines", "--resamples", "20"]
    first = folder / "runs/toy/results.json"
    assert main(["evaluate", str(folder / "runs/toy/pretrain/model"), str(folder / "runs/toy/data"), *words,
                 "--output", str(first)]) == 0  # fmt: skip
    record = json.loads(first.read_text())  # few pictures are quick
    first.write_text(json.dumps({key: value for key, value in record.items() if key not in ("gallery", "traversals")}))
    for name in ("a-0", "a-1", "b-0", "b-1", "results"):
        shutil.copy(first, folder / f"{name}.json")


def write_own_slides(folder: Path, tiny_backbone: Path) -> None:
    """The slides of the README's sample sheet."""
    write_outs(folder / "S1/outs", make_source(1, rows=10, columns=14, num_genes=120))
    write_adata(folder / "S2.h5ad", make_source(2, rows=10, columns=14, num_genes=120), 55)
    shutil.copytree(tiny_backbone, folder / "facebook/dinov2-small")
