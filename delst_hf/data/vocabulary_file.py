"""Read and write files of genes: vocabularies with a header on their origin, and plain lists of names."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..atomic.files import write_text
from ..errors import reading
from .images import check_readable
from .vocabulary import find_genes

_METHOD_LINE, _SLIDES_LINE, _NUMBER_LINE = "# chosen by delst vocabulary, method ", "# on slides ", "# number of genes "
_BEFORE_COMMENT = re.compile(r"(?:\\.|[^#])*")
_ESCAPED = {"#": "#", "n": "\n", "r": "\r", "\\": "\\"}


def write_vocabulary(path: str | Path, names: Sequence[str], method: str, slides: Sequence[str]) -> None:
    """Write names, one per line, under a header: how they were chosen, on which slides, and how many there are.

    The write is atomic. In a name, "#", a backslash and a line break are escaped with a backslash.

    Raises:
        ValueError: If a name is empty.
    """
    if not all(name.strip() for name in names):
        raise ValueError("a gene has an empty name. Allowed: symbols or ids. Prepare the dataset again.")
    told = ", ".join(_escape(slide) for slide in slides)
    header = f"{_METHOD_LINE}{method}\n{_SLIDES_LINE}{told}\n{_NUMBER_LINE}{len(names)}\n"
    write_text(path, header + "".join(f"{_escape(name)}\n" for name in names))


def read_gene_list(path: str | Path) -> list[str]:
    r"""Read names, one per line; text after # is a comment, unless a backslash precedes the #.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file states another number of genes than it holds: it is truncated or was edited.
    """
    lines = _lines(path)
    found = [name for line in lines if (name := _BEFORE_COMMENT.match(line)[0].strip())]  # type: ignore[index]
    names = [_plain(name) for name in found]
    stated = [line.removeprefix(_NUMBER_LINE).strip() for line in lines if line.startswith(_NUMBER_LINE)]
    if stated and stated[0] != str(len(names)):
        raise ValueError(
            f"{path} states {stated[0]} genes and holds {len(names)}: it is truncated or was edited. Make it again with delst "
            "vocabulary, or delete its first lines to use it as a plain list."
        )
    return names


def read_vocabulary(
    path: str | Path, gene_names: Sequence[str], gene_ids: Sequence[str], train_slides: Sequence[str]
) -> list[str]:
    """Read a vocabulary as `delst vocabulary` writes it, or any list of names, and keep its order.

    Args:
        path: the file.
        gene_names: genes of the dataset (genes,).
        gene_ids: their Ensembl ids, "" where unknown (genes,).
        train_slides: slides of the run.

    Returns:
        Names as in `gene_names`. Genes that the dataset lacks are left out; the match rate is logged.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, no gene of it is in the dataset, or it was chosen on slides that this run does not
            train on.
    """
    listed = read_gene_list(path)
    if not listed:
        raise ValueError(
            f"{path} names no gene. Allowed: one name or Ensembl id per line. Make it with delst vocabulary."
        )
    names = find_genes(gene_names, gene_ids, listed, f"--vocabulary {path}")
    header = [line for line in _lines(path)[:3] if line.startswith(_SLIDES_LINE)]
    chosen_on = [_plain(slide) for line in header for slide in line.removeprefix(_SLIDES_LINE).split(", ")]
    held_out = sorted(set(filter(None, chosen_on)) - set(train_slides))
    if held_out:
        raise ValueError(
            f"the vocabulary {path} was chosen on slides {held_out}, which this run does not train on: "
            f"held-out slides would decide which genes are read. Choose it again: "
            f"delst vocabulary DIR --slides {','.join(train_slides)}."
        )
    return names


def gene_names_of(text: str) -> list[str]:
    """Return the genes that an option gives: the name of a file of genes, or comma-separated names.

    >>> gene_names_of("ERBB2, MKI67")
    ['ERBB2', 'MKI67']
    """
    if Path(text).is_file():
        return read_gene_list(text)
    return [name.strip() for name in text.split(",") if name.strip()]


def _lines(path: str | Path) -> list[str]:
    with reading(path, "gene list", "Give a text file in UTF-8 with one gene per line."):
        text = check_readable(path, "gene list").read_text(encoding="utf-8-sig")
    # Not splitlines, which also breaks lines at characters that a name may hold.
    return text.replace("\r\n", "\n").split("\n")


def _escape(name: str) -> str:
    return name.replace("\\", "\\\\").replace("#", "\\#").replace("\n", "\\n").replace("\r", "\\r")


def _plain(name: str) -> str:
    return re.sub(r"\\([#nr\\])", lambda match: _ESCAPED[match[1]], name)
