"""The columns of a dataset folder: one `datasets.Features` per config.

The Arrow form of these (`Features.arrow_schema`) is stored in every parquet file, so `load_dataset` decodes images
without being told.
"""

from datasets import Features, Image, List, Value

# Columns of a gene table, and what a table of the features of a source may have beside them (`features.identify`).
GENE_ID, SYMBOL = "gene_id", "symbol"
FEATURE, FEATURE_TYPE, INCLUDED = "feature", "feature_type", "included"

SPOTS = Features(
    {
        "image": Image(),
        # The expressed genes of the spot only: positions in the `genes` config, ascending, and their raw counts (> 0).
        "gene_indices": List(Value("int32")),
        "gene_counts": List(Value("int32")),
        "slide_id": Value("string"),
        "patient_id": Value("string"),
        "barcode": Value("string"),
        # Pixels of the slide image that the patch was cut from; x runs along columns, y along rows.
        "x": Value("float64"),
        "y": Value("float64"),
        # -1 where the source has no array position.
        "array_row": Value("int32"),
        "array_col": Value("int32"),
        # None where nobody labelled the spot.
        "label": Value("string"),
        "n_genes": Value("int32"),
        "total_counts": Value("int64"),
        # Share of the patch that is tissue, 0 to 1.
        "tissue_fraction": Value("float32"),
        # Area of the cell that the row is; None where rows are spots, bins or squares, or where the source does not state it.
        "cell_area_um2": Value("float32"),
    }
)

# Made once: the property is computed anew at each access.
SPOTS_SCHEMA = SPOTS.arrow_schema

GENES = Features({"gene_id": Value("string"), "symbol": Value("string"), "species": Value("string")})

SLIDES = Features(
    {
        "slide_id": Value("string"),
        "patient_id": Value("string"),
        "technology": Value("string"),
        "tissue": Value("string"),
        "species": Value("string"),
        # Micrometres per pixel of the image that x and y refer to.
        "mpp": Value("float64"),
        # Positions in `genes` of every gene the slide's table has: a gene outside is missing, not zero.
        "measured_genes": List(Value("int32")),
        "thumbnail": Image(),
        # Who or what gave the labels; "" where there are none.
        "label_source": Value("string"),
        "image_width": Value("int32"),
        "image_height": Value("int32"),
        "patch_um": Value("float64"),
        "patch_px": Value("int32"),
        # Diameter of a spot, or side of a bin, in micrometres; None where unknown.
        "spot_um": Value("float64"),
        # Format and names of the files that the slide was read from.
        "source": Value("string"),
        # "train" unless the folder was split; "spot" where spots of the slide are in several splits.
        "split": Value("string"),
        # What was noticed while the slide was read, as JSON (`Notes` in notes.py).
        "notes": Value("string"),
    }
)

# Names of the splits, in the order in which their files of spots are read.
SPLITS = ("train", "validation", "test")

CONFIGS = {"spots": SPOTS, "genes": GENES, "slides": SLIDES}
