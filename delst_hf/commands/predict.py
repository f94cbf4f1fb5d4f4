"""`delst fit`, `delst reference`, `delst predict`, `delst embed`: their arguments, and what they print.

Nothing heavy is imported before a command runs.
"""

import argparse
import shlex
from pathlib import Path
from typing import Any

from .options import add_command, add_grid, given, split_names


def _add_speed(parser: argparse.ArgumentParser) -> None:
    speed = parser.add_argument_group("speed")
    speed.add_argument("--batch-size", type=int, default=64, metavar="N", help="patches per batch (default 64)")
    speed.add_argument("--num-workers", type=int, default=2, metavar="N", help="threads that read patches (default 2)")
    speed.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_features(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--features", metavar="DIR", help="patch features made elsewhere (TRIDENT, CLAM, HEST, .npy, "
                        ".parquet), one file per slide, for a model that was trained on these")  # fmt: skip
    parser.add_argument("--features-patch-px", type=float, metavar="PX", help="side of the patches of --features in pixels of "
                        "the full resolution, where the files do not state it")  # fmt: skip


def _speed(arguments: argparse.Namespace) -> dict[str, Any]:
    for name, least in (("batch_size", 1), ("num_workers", 0)):
        if getattr(arguments, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}. Allowed: {least} or more.")
    return {"batch_size": arguments.batch_size, "num_workers": arguments.num_workers, "progress": not arguments.quiet}


def _add_patches(where: argparse._ArgumentGroup) -> None:
    add_grid(where)
    add = where.add_argument
    add("--patch-um", type=float, metavar="UM", help="side of a patch (default: that of the training)")
    add("--min-tissue", type=float, default=0.25, metavar="SHARE", help="least share of tissue (default 0.25)")
    add("--positions", metavar="FILE", help="cut patches at the positions in this .csv, .parquet, .h5ad or dataset folder (x "
        "and y in pixels of the full resolution) or Space Ranger's tissue_positions, not on a grid")  # fmt: skip
    add("--image", metavar="FILE", help="full-resolution image of an .h5ad or a file of features")
    add("--slides", metavar="ID,ID", help="slides of a dataset folder (default: all)")
    add("--species", default="", help="species of the slide, to compare with the model's")
    _add_features(where)


def add_fit(commands: Any) -> None:
    """Add `delst fit MODEL DATASET`: a head for expression or classes on the frozen features of a checkpoint.

    Fit a head on slides with counts or labels: expression by ridge regression, classes by logistic regression, with the penalty
    chosen on held-out slides. The result is a checkpoint with its held-out scores in its card.

    Examples:
        delst fit runs/toy/pretrain/model runs/toy/data --target expression --output runs/toy/expression
        delst fit MODEL DATASET --target labels --train-slides C2,C3,C4 --output DIR
    """
    parser = add_command(commands, "fit", add_fit, _run_fit)
    add = parser.add_argument
    add("model", metavar="MODEL", help="checkpoint: folder or Hub id")
    add("dataset", metavar="DATASET", help="dataset folder written by delst prepare, or Hub id")
    add("--output", required=True, metavar="DIR", help="checkpoint folder to make")
    add("--target", choices=("expression", "labels"), default="expression", help="what to predict (default expression)")
    add("--train-slides", metavar="ID,ID", help="slides to fit on (default: those of the pretraining)")
    add("--ignore-labels", default="undetermined", metavar="NAME,NAME",
        help="labels that are not a class of tissue (default undetermined)")  # fmt: skip
    _add_features(parser)
    _add_speed(parser)


def add_reference(commands: Any) -> None:
    """Add `delst reference MODEL DATASET`: embeddings and profiles of training spots, saved with a checkpoint.

    Embed spots whose counts are known and save them in MODEL/reference; with it, delst predict states how far each patch is
    from all that the model has seen.

    Examples:
        delst reference runs/toy/expression runs/toy/data --size 5000
    """
    parser = add_command(commands, "reference", add_reference, _run_reference)
    add = parser.add_argument
    add("model", metavar="MODEL_DIR", help="checkpoint folder")
    add("dataset", metavar="DATASET", help="dataset folder written by delst prepare, or Hub id")
    add("--size", type=int, default=10_000, metavar="N", help="at most N spots, evenly from the slides (default 10000)")
    add("--slides", metavar="ID,ID", help="slides to draw from (default: those that the model was trained on)")
    add("--seed", type=int, default=0, help="equal seeds draw equal spots (default 0)")
    _add_features(parser)
    _add_speed(parser)


def add_predict(commands: Any) -> None:
    """Add `delst predict MODEL SLIDE`: a slide without counts -> expression, classes, embedding in .h5ad, .zarr or .parquet.

    Predict what a checkpoint and its heads know for every tissue patch of a slide, or for patches at given positions. A killed
    run resumes when the same command is given again.

    Examples:
        delst predict runs/toy/expression slide.svs --output slide.h5ad
        delst predict EXPRESSION he.jpg --mpp 0.5 --head LABELS --genes ERBB2,EPCAM --output he.h5ad
        delst predict EXPRESSION DATASET --slides C5 --min-pearson 0.2 --output c5.parquet
    """
    parser = add_command(commands, "predict", add_predict, _run_predict)
    add = parser.add_argument
    add("model", metavar="MODEL", help="checkpoint with a head (delst fit), or without one: embeddings only")
    add("source", metavar="SLIDE", help="image of a slide, .h5ad with positions, dataset folder, or file of features")
    out = parser.add_argument_group("output").add_argument
    out("--output", required=True, metavar="FILE", help=".h5ad, .zarr (SpatialData) or .parquet to write")
    out("--overwrite", action="store_true", help="replace FILE once the new one is complete")
    what = parser.add_argument_group("what to predict").add_argument
    what("--head", action="append", default=[], metavar="MODEL", help="another head on this backbone; repeatable")
    what("--genes", metavar="NAMES", help="genes, comma-separated, or a file with one per line (default: all)")
    what("--signatures", metavar="JSON", help='{"HER2": {"genes": ["ERBB2", "GRB7"]}}: a score per patch')
    what("--min-pearson", type=float, metavar="R", help="leave out genes with a lower held-out Pearson correlation")
    what("--reference", metavar="DIR", help="checkpoint with a reference (default: MODEL, if it has one)")
    _add_patches(parser.add_argument_group("patches"))
    _add_speed(parser)


def add_retrieve(commands: Any) -> None:
    """Add `delst retrieve MODEL SLIDE`: the training spots most similar to a slide: their genes, labels and names.

    Find the spots of the reference (delst reference) that are nearest to every patch of a slide: their mean profile, their
    commonest label and their names. --at prints the spots nearest to single positions instead.

    Examples:
        delst retrieve runs/toy/expression slide.svs --output slide.h5ad
        delst retrieve MODEL he.jpg --mpp 0.5 --at 1200,3400 --neighbours 5
    """
    parser = add_command(commands, "retrieve", add_retrieve, _run_retrieve)
    add = parser.add_argument
    add("model", metavar="MODEL", help="checkpoint with a reference")
    add("source", metavar="SLIDE", help="as in delst predict")
    add("--output", metavar="FILE", help=".h5ad, .zarr (SpatialData) or .parquet to write")
    add("--at", metavar="X,Y", action="append", help="a position in pixels of the full resolution; may be repeated")
    add("--overwrite", action="store_true", help="replace FILE once the new one is complete")
    add("--neighbours", type=int, default=10, metavar="N", help="spots per patch (default 10)")
    add("--by", choices=("image", "gene"), default="image",
        help="compare patches with the image or the gene embeddings of the spots (default image)")  # fmt: skip
    add("--search", choices=("exact", "faiss"), default="exact",
        help="compare with every spot, or search a graph (extra faiss; default exact)")  # fmt: skip
    add("--reference", metavar="DIR", help="checkpoint with the reference (default: MODEL)")
    _add_patches(parser.add_argument_group("patches"))
    _add_speed(parser)


def add_embed(commands: Any) -> None:
    """Add `delst embed MODEL FILE.h5ad` and `delst embed MODEL DATASET`: embeddings and predictions added to an AnnData;
    embeddings of a dataset folder.

    For an AnnData, write obsm[KEY] (tangent coordinates, for any Euclidean method), obs['delst_radius'] and the predictions of
    the model's head; X and all else stay unchanged. For a dataset folder, write features and embeddings of every spot to the
    folder --output, one file per process, for delst evaluate. Several processes: torchrun --nproc_per_node 4 -m delst_hf.cli
    embed MODEL DATASET --output DIR.

    Examples:
        delst embed runs/toy/pretrain/model mine.h5ad --output mine_delst.h5ad
        delst embed runs/toy/pretrain/model runs/toy/data --output runs/toy/embedded
        delst embed MODEL mine.h5ad --image he.tif --key X_delst --in-place
    """
    parser = add_command(commands, "embed", add_embed, _run_embed)
    add = parser.add_argument
    add("model", metavar="MODEL", help="checkpoint: folder or Hub id")
    add("file", metavar="FILE", help=".h5ad, or a dataset: folder or Hub id")
    where = parser.add_mutually_exclusive_group().add_argument
    where("--output", metavar="FILE", help="copy to write (default NAME_delst.h5ad); for a dataset, folder to write")
    where("--in-place", action="store_true", help="change FILE itself, atomically")
    add("--overwrite", action="store_true", help="replace the output, and keys that FILE already has")
    add("--key", default="X_delst", help="name in obsm (default X_delst)")
    add("--modality", choices=("auto", "image", "genes"), default="auto",
        help="what to embed (default: the patch of each spot where there is an image)")  # fmt: skip
    add("--image", metavar="IMAGE", help="full-resolution image (default: the reduced one in FILE)")
    add("--mpp", type=float, help="micrometres per full-resolution pixel (default: from the spots)")
    add("--layer", help="layer with raw counts, for --modality genes (default X)")
    add("--slides", metavar="ID,ID", default="", help="slides of a dataset (default: all)")
    _add_speed(parser)


def _run_fit(arguments: argparse.Namespace) -> None:
    from ..prediction.fit import fit_head

    head = fit_head(
        arguments.model,
        arguments.dataset,
        arguments.output,
        train_slides=split_names(arguments.train_slides),
        ignore_labels=split_names(arguments.ignore_labels),
        **given(arguments, "target", "features", "features_patch_px"),
        **_speed(arguments),
    )
    score = (
        f"macro-F1 {head['macro_f1']:.3f}" if arguments.target == "labels" else f"Pearson {head['pearson_mean']:.3f}"
    )
    print(f"head     {arguments.output}")
    print(f"slides   {', '.join(head['slides'])}; left out in turn: {', '.join(head['folds'])}")
    print(
        f"held out mean {score}; every {'class' if arguments.target == 'labels' else 'gene'} in {arguments.output}/README.md"
    )


def _run_reference(arguments: argparse.Namespace) -> None:
    from ..prediction.reference import build_reference

    speed = _speed(arguments)
    folder = build_reference(
        arguments.model,
        arguments.dataset,
        slides=split_names(arguments.slides),
        **given(arguments, "size", "seed", "features", "features_patch_px"),
        batch_size=speed["batch_size"],
        progress=speed["progress"],
    )
    print(f"reference  {folder}")


def _run_predict(arguments: argparse.Namespace) -> None:
    from ..data.vocabulary_file import gene_names_of
    from ..evaluation.protocols.signatures import read_signatures
    from ..prediction.predict import predict_slide

    found = predict_slide(
        arguments.model,
        arguments.source,
        arguments.output,
        heads=arguments.head,
        genes=None if arguments.genes is None else gene_names_of(arguments.genes),
        signatures=read_signatures(arguments.signatures),
        choice=_choice(arguments),
        **given(arguments, "min_pearson", "reference", "overwrite"),
        **_speed(arguments),
    )
    print(f"output   {arguments.output}")
    print(f"patches  {len(found.source)} of {found.source.patch_um:.4g} um")
    if not len(found.genes) and not found.classes:
        print("genes    0: the model has no head, so the file holds embeddings. Fit a head: delst fit MODEL DATASET")
    else:
        print(f"genes    {len(found.genes)}" + (f"; classes {', '.join(found.classes)}" if found.classes else ""))


def _choice(arguments: argparse.Namespace) -> Any:
    from ..prediction.predict import PatchChoice

    names = ("mpp", "patch_um", "stride_um", "min_tissue", "mask", "positions", "image", "species", "features",
             "features_patch_px")  # fmt: skip
    return PatchChoice(**given(arguments, *names), slides=split_names(arguments.slides))


def _run_retrieve(arguments: argparse.Namespace) -> None:
    from ..prediction.retrieve import retrieve_slide, spots_like

    speed = _speed(arguments)
    options = {"neighbours": arguments.neighbours, "modality": arguments.by, "reference": arguments.reference}
    if bool(arguments.at) == bool(arguments.output):
        raise ValueError(
            "give either --output FILE for the whole slide, or --at X,Y for the spots nearest to one position."
        )
    if arguments.output:
        found = retrieve_slide(
            arguments.model, arguments.source, arguments.output, choice=_choice(arguments), search=arguments.search,
            overwrite=arguments.overwrite, **options, **speed,
        )  # fmt: skip
        print(f"output   {arguments.output}")
        print(f"patches  {len(found.source)}, {arguments.neighbours} spots of the reference each")
        return
    places = [_place(text) for text in arguments.at]
    tables = spots_like(arguments.model, arguments.source, places, choice=_choice(arguments), **options)
    for (x, y), table in zip(places, tables, strict=True):
        print(f"at x {x:g}, y {y:g}:")
        print(
            table[["slide_id", "barcode", "label", "distance", "top_genes"]].to_string(index=False, float_format="%.3f")
        )


def _place(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"--at is {text!r}. Needed: x and y in pixels, such as --at 1200,3400.") from None
    return x, y


def _run_embed(arguments: argparse.Namespace) -> None:
    from ..prediction.annotate import embed_file

    speed = _speed(arguments)
    if not arguments.file.endswith(".h5ad") and not Path(arguments.file).is_file():
        return _embed_dataset(arguments, speed)
    written = embed_file(
        arguments.model,
        arguments.file,
        arguments.file if arguments.in_place else arguments.output,
        **given(arguments, "key", "modality", "overwrite", "image", "mpp", "layer", "batch_size", "num_workers"),
    )
    print(f"output  {written}: obsm[{arguments.key!r}]")


def _embed_dataset(arguments: argparse.Namespace, speed: dict[str, Any]) -> None:
    from ..evaluation.embedding_files import embed_dataset
    from ..model.distributed import process_rank

    if not arguments.output or arguments.in_place:
        raise ValueError("Embeddings of a dataset are written to a folder of their own. Name it with --output DIR.")
    folder = embed_dataset(
        arguments.model, arguments.file, arguments.output, slides=split_names(arguments.slides), **speed
    )
    if process_rank() == 0:
        print(f"output  {folder}\nNext: delst evaluate {shlex.quote(str(folder))} {shlex.quote(arguments.file)}")
