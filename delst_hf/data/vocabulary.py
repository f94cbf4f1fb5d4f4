"""Which genes the gene encoder reads: chosen on the spots of the training slides, and on nothing else."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import scipy.sparse
from scipy.spatial import cKDTree

from .images import check_readable
from .schema import CONFIGS

logger = logging.getLogger(__name__)

METHODS = ("hvg", "spatial", "detected", "list", "all")
# A spatial gene is judged on at most this many neighbouring spots of a slide, so that memory is bounded.
_SPATIAL_SPOTS = 5000
_NEIGHBOURS = 6
_METHOD_LINE, _SLIDES_LINE = "# chosen by delst vocabulary, method ", "# on slides "


@dataclass(frozen=True)
class GeneMoments:
    """What a vocabulary is chosen by, and what stands in for a gene that a panel lacks: of normalised counts, ``log1p``.

    Attributes:
        detected: In how many spots each gene was found (genes,).
        mean: Mean over the spots (genes,).
        variance: Variance over the spots (genes,).
        spots: How many spots there were.
    """

    detected: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    spots: int


def gene_moments(batches: Iterable[scipy.sparse.csr_matrix], target_sum: float = 1e4) -> GeneMoments:
    """Moments of every gene, one batch of spots in memory at a time.

    Args:
        batches: Raw counts (spots, genes), for example `Study.count_batches`; at least one.
        target_sum: Library size of the normalisation.
    """
    detected: Any = 0.0
    total: Any = 0.0
    square: Any = 0.0
    spots = 0
    for counts in batches:
        values = counts.astype(np.float64).tocsr(copy=True)
        totals = np.asarray(values.sum(1)).ravel()
        values.data = np.log1p(values.data * np.repeat(target_sum / np.maximum(totals, 1), np.diff(values.indptr)))
        detected = detected + np.asarray((values > 0).sum(0)).ravel()
        total = total + np.asarray(values.sum(0)).ravel()
        square = square + np.asarray(values.multiply(values).sum(0)).ravel()
        spots += len(totals)
    mean = total / max(spots, 1)
    return GeneMoments(detected, mean, square / max(spots, 1) - mean**2, spots)


def select_vocabulary(
    counts: scipy.sparse.csr_matrix | GeneMoments,
    gene_names: Sequence[str],
    num_genes: int | None = 1000,
    min_spots: float = 0.02,
    target_sum: float = 1e4,
) -> list[str]:
    """Choose the most variable genes among those that are detected often enough.

    Args:
        counts: Raw counts of the training spots (spots, genes), or their `gene_moments`.
        gene_names: Names of the genes (genes,). Of a name given twice, the first is eligible.
        num_genes: How many genes to keep; None keeps all that are detected.
        min_spots: A gene must be detected in this share of the spots.
        target_sum: Library size of the normalisation of counts.

    Returns:
        Names, the most variable first, by the variance of ``log1p`` of the normalised counts.

    Raises:
        ValueError: If no gene is detected often enough.
    """
    moments = counts if isinstance(counts, GeneMoments) else gene_moments([counts], target_sum)
    detected = moments.detected >= max(1.0, min_spots * moments.spots)
    first_of_name = np.zeros(len(gene_names), dtype=bool)
    first_of_name[np.unique(np.asarray(gene_names, dtype=object).astype(str), return_index=True)[1]] = True
    eligible = np.flatnonzero(detected & first_of_name)
    if not len(eligible):
        raise ValueError(
            f"No gene is detected in {min_spots:.0%} of the {moments.spots} training spots. Lower min_spots, or check that "
            "the slides hold raw counts."
        )
    ranked = eligible[np.argsort(-moments.variance[eligible], kind="stable")]
    return [str(gene_names[i]) for i in ranked[:num_genes]]


def choose_genes(
    folder: str | Path,
    method: str = "hvg",
    num_genes: int | None = 1000,
    min_spots: float = 0.02,
    slides: Sequence[str] | None = None,
    wanted: Sequence[str] | None = None,
    seed: int = 0,
    target_sum: float = 1e4,
) -> list[str]:
    """Chooses genes of a dataset folder on its training slides, a row group of 100 spots at a time.

    Args:
        folder: Dataset folder.
        method: ``"hvg"``, the most variable by the variance of ``log1p`` of normalised counts; ``"spatial"``, the highest
            Moran's I over neighbouring spots, mean over slides; ``"detected"``, in the most spots; ``"list"``, those of
            ``wanted`` that are there; ``"all"``.
        num_genes: How many to keep; None keeps all. Not used by ``"list"`` and ``"all"``.
        min_spots: A gene must be detected in this share of the spots; not used by ``"list"`` and ``"all"``.
        slides: Training slides; by default those of the split ``train``, or all where the folder is not split.
        wanted: Names or Ensembl ids for ``"list"``.
        seed: Which neighbourhood of a large slide ``"spatial"`` looks at.
        target_sum: Library size of the normalisation.

    Returns:
        Names, the best first (for ``"list"`` and ``"all"`` in the order given).

    Raises:
        ValueError: An unknown method, slides that are not there, test slides, or no gene left.
        FileNotFoundError: No dataset folder.
    """
    folder = Path(folder)
    if method not in METHODS:
        raise ValueError(f"method is {method!r}. Allowed: {', '.join(map(repr, METHODS))} (--method).")
    missing = [name for name in ("README.md", *CONFIGS) if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{folder} is no complete dataset folder: {missing} missing. Make it with delst prepare."
        )
    table = pq.read_table(folder / "genes" / "genes.parquet").to_pandas()
    names = np.array(
        [symbol or gene_id for symbol, gene_id in zip(table["symbol"], table["gene_id"], strict=True)], dtype=object
    )
    if method == "list":
        return _listed(names, table["gene_id"].tolist(), wanted)
    first = np.zeros(len(names), dtype=bool)
    first[np.unique(names.astype(str), return_index=True)[1]] = True
    if method == "all":
        return [str(name) for name in names[first]]
    files = _training_files(folder, slides)
    detected, mean, square, spots = _moments(files, len(names), target_sum)
    if method == "spatial":
        score = _spatial_score(files, len(names), target_sum, seed)
    else:
        score = square / max(spots, 1) - (mean / max(spots, 1)) ** 2 if method == "hvg" else detected
    eligible = np.flatnonzero(first & (detected >= max(1.0, min_spots * spots)))
    if not len(eligible):
        raise ValueError(
            f"No gene is detected in {min_spots:.0%} of the {spots} training spots. Lower min_spots (--min-spots), or check "
            "that the slides hold raw counts."
        )
    ranked = eligible[np.argsort(-score[eligible], kind="stable")]
    return [str(name) for name in names[ranked][:num_genes]]


def write_vocabulary(path: str | Path, names: Sequence[str], method: str, slides: Sequence[str]) -> None:
    """Writes names, one a line, under a header that says how they were chosen and on which slides."""
    header = f"{_METHOD_LINE}{method}\n{_SLIDES_LINE}{', '.join(slides)}\n"
    Path(path).write_text(header + "".join(f"{name}\n" for name in names), encoding="utf-8")


def read_gene_list(path: str | Path) -> list[str]:
    """Names one a line; what follows # is left out."""
    lines = check_readable(path, "gene list").read_text(encoding="utf-8-sig").splitlines()
    return [name for line in lines if (name := line.split("#")[0].strip())]


def read_vocabulary(
    path: str | Path, gene_names: Sequence[str], gene_ids: Sequence[str], train_slides: Sequence[str]
) -> list[str]:
    """Reads a vocabulary as `delst vocabulary` writes it, or any list of names, and keeps its order.

    Args:
        path: the file.
        gene_names: genes of the dataset (genes,).
        gene_ids: their Ensembl ids, "" where unknown (genes,).
        train_slides: slides of the run.

    Returns:
        Names as in `gene_names`. Genes that the dataset has not are left out; the match rate is logged.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no gene of it is in the dataset, or it was chosen on slides that this run does not train on.
    """
    listed = read_gene_list(path)
    if not listed:
        raise ValueError(
            f"{path} names no gene. Allowed: one name or Ensembl id a line. Make it with delst vocabulary."
        )
    names = _listed(np.asarray(gene_names, dtype=object), gene_ids, listed)
    for line in Path(path).read_text(encoding="utf-8-sig").splitlines():
        chosen_on = line.removeprefix(_SLIDES_LINE).split(", ") if line.startswith(_SLIDES_LINE) else []
        held_out = sorted(set(filter(None, chosen_on)) - set(train_slides))
        if held_out:
            raise ValueError(
                f"the vocabulary {path} was chosen on slides {held_out}, which this run does not train on: "
                f"what is held out would decide which genes are read. Choose it again: "
                f"delst vocabulary DIR --slides {','.join(train_slides)}."
            )
    return names


def _listed(names: np.ndarray, ids: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    if not wanted:
        raise ValueError("method 'list' needs genes. Give their names or Ensembl ids (--genes FILE).")
    known = {name.casefold(): name for name in names.tolist()}
    known |= {gene_id.casefold(): name for gene_id, name in zip(ids, names.tolist(), strict=True) if gene_id}
    found = dict.fromkeys(known[name.split(".")[0].casefold() if name.startswith("ENS") else name.casefold()]
                          for name in wanted
                          if (name.split(".")[0] if name.startswith("ENS") else name).casefold() in known)  # fmt: skip
    report = logger.info if 2 * len(found) >= len(wanted) else logger.warning
    report(
        "%d of %d listed genes (%.0f %%) are in the dataset", len(found), len(wanted), 100 * len(found) / len(wanted)
    )
    if not found:
        raise ValueError(
            f"none of the {len(wanted)} listed genes, e.g. {wanted[0]!r}, is in the dataset. Check their species."
        )
    return list(found)


def training_slides(folder: str | Path, slides: Sequence[str] | None = None) -> list[str]:
    """The slides whose spots `choose_genes` looks at."""
    return list(_training_files(Path(folder), slides))


def _training_files(folder: Path, slides: Sequence[str] | None) -> dict[str, list[Path]]:
    """Files of the spots by training slide; spots of other splits stay out."""
    rows = pq.read_table(folder / "slides" / "slides.parquet", columns=["slide_id"])["slide_id"].to_pylist()
    unknown = sorted(set(slides or ()) - set(rows))
    if unknown:
        raise ValueError(f"No slide {unknown} in this dataset. It holds {rows} (--slides).")
    inside = folder / "spots" / "train"
    files: dict[str, list[Path]] = {}
    for path in sorted((inside if inside.is_dir() else folder / "spots").glob("*.parquet")):
        slide_id = pq.ParquetFile(path).read_row_group(0, columns=["slide_id"])["slide_id"][0].as_py()
        if slides is None or slide_id in slides:
            files.setdefault(slide_id, []).append(path)
    held_out = sorted(set(slides or ()) - set(files))
    if held_out:
        raise ValueError(
            f"slides {held_out} are not in the split train. Choose genes on training slides only (--slides)."
        )
    return files


def _batches(path: Path, num_genes: int, target_sum: float) -> Iterator[scipy.sparse.csr_matrix]:
    """Normalised log counts (spots, genes), a row group at a time."""
    file = pq.ParquetFile(path)
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=["gene_indices", "gene_counts", "total_counts"])
        indices, counts = (table[name].combine_chunks() for name in ("gene_indices", "gene_counts"))
        lengths = indices.value_lengths().to_numpy(zero_copy_only=False)
        values = counts.flatten().to_numpy().astype(np.float64)
        totals = np.maximum(table["total_counts"].to_numpy(), 1)
        values = np.log1p(values * np.repeat(target_sum / totals, lengths))
        indptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        yield scipy.sparse.csr_matrix((values, indices.flatten().to_numpy(), indptr), shape=(table.num_rows, num_genes))


def _moments(
    files: dict[str, list[Path]], num_genes: int, target_sum: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Spots with the gene, sum, and sum of squares, each (genes,), and the number of spots."""
    detected, total, square, spots = np.zeros(num_genes), np.zeros(num_genes), np.zeros(num_genes), 0
    for path in (path for paths in files.values() for path in paths):
        for batch in _batches(path, num_genes, target_sum):
            detected += np.bincount(batch.indices, minlength=num_genes)
            total += np.bincount(batch.indices, weights=batch.data, minlength=num_genes)
            square += np.bincount(batch.indices, weights=batch.data**2, minlength=num_genes)
            spots += batch.shape[0]
    return detected, total, square, spots


def _spatial_score(files: dict[str, list[Path]], num_genes: int, target_sum: float, seed: int) -> np.ndarray:
    """Moran's I of every gene, the mean over slides (genes,); -1 to 1, 0 where a gene does not vary."""
    scores = np.zeros(num_genes)
    for slide_index, paths in enumerate(files.values()):
        tables = [pq.read_table(path, columns=["x", "y"]) for path in paths]
        xy = np.concatenate([np.column_stack([table["x"], table["y"]]) for table in tables])
        keep = np.ones(len(xy), dtype=bool)
        if len(xy) > _SPATIAL_SPOTS:
            centre = xy[np.random.default_rng([seed, slide_index]).integers(len(xy))]
            keep[:] = False
            keep[np.argpartition(((xy - centre) ** 2).sum(1), _SPATIAL_SPOTS)[:_SPATIAL_SPOTS]] = True
        chosen, start = [], 0
        for batch in (batch for path in paths for batch in _batches(path, num_genes, target_sum)):
            chosen.append(batch[keep[start : start + batch.shape[0]]])
            start += batch.shape[0]
        scores += morans_i(scipy.sparse.vstack(chosen).tocsr(), xy[keep])
    return scores / max(len(files), 1)


def morans_i(values: scipy.sparse.csr_matrix, xy: np.ndarray, neighbours: int = _NEIGHBOURS) -> np.ndarray:
    """Moran's I of every column over each spot's nearest neighbours (Moran, 1950); a high value is a smooth pattern.

    Args:
        values: Sparse (spots, genes).
        xy: Positions (spots, 2).
        neighbours: How many neighbours a spot has, each of weight 1.

    Returns:
        (genes,), 0 where a gene does not vary.
    """
    spots = len(xy)
    count = min(neighbours, spots - 1)
    if count < 1:
        return np.zeros(values.shape[1])
    nearest = cKDTree(xy).query(xy, k=count + 1)[1][:, 1:]
    weights = scipy.sparse.csr_matrix(
        (np.ones(spots * count), (np.repeat(np.arange(spots), count), nearest.ravel())), shape=(spots, spots)
    )
    mean = np.asarray(values.mean(0)).ravel()
    lagged = weights @ values
    # sum_ij w_ij (x_i - m)(x_j - m), with the sums over sparse x only
    cross = np.asarray(values.multiply(lagged).sum(0)).ravel()
    given, taken = np.asarray(weights.sum(1)).ravel(), np.asarray(weights.sum(0)).ravel()
    cross += -mean * (values.T @ given + values.T @ taken) + mean**2 * weights.sum()
    variance = np.asarray(values.multiply(values).sum(0)).ravel() - spots * mean**2
    return np.where(variance > 1e-12, spots / weights.sum() * cross / np.maximum(variance, 1e-12), 0.0)
