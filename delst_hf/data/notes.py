"""Notes taken while a slide is read: the scale used, other sources of a scale, and what was left out, by reason.

Readers and cleaning steps write into `Slide.notes`; the summary at the end of `delst prepare`, the page of `delst check` and
the dataset card read from it. It is the only such record, so that nothing is left out without being counted.

    slide.notes.leave_out_genes("control probes", 12)
    slide.notes.leave_out_spots("not in_tissue", 40)
    slide.notes.scale_witnesses["lattice of 100 um"] = 0.4998     # micrometres per pixel of slide.image

A reader that has no slide yet makes its own `Notes` and hands them to the slide (`Slide(..., notes=notes)`).
"""

import json
from dataclasses import asdict, dataclass, field


@dataclass
class Notes:
    """Notes on one slide. Numbers of one reason add up.

    Attributes:
        scale_from: source of the micrometres per pixel, in words: "--mpp", "lattice of 100 um".
        scale_witnesses: source of a scale, in words -> micrometres per pixel of the slide's image, used or not.
        genes_left_out: kind ("control probes", "antibodies") -> number of features of the source that are not genes.
        genes_summed: number of columns that were added to another column of the same gene.
        spots_left_out: reason ("not in_tissue", "without counts") -> number of rows of the source that are not spots.
        other_layers: layers of the source with whole numbers, beside the one that was read.
        image: property -> value for the image file: {"file": "he.tif", "samples": "12 of 16 bits"}.
        remarks: complete sentences for anything else.
        labels: label -> number of spots; this and the following are measured by `understood.measure`.
        median_counts: counts of the median spot.
        median_genes: expressed genes of the median spot.
        genes_with_ids: number of genes with an Ensembl id.
        on_tissue: share of the spots that lie on tissue, 0 to 1.

    >>> notes = Notes()
    >>> notes.leave_out_genes("control probes", 12)
    >>> notes.leave_out_genes("control probes", 3)
    >>> notes.genes_left_out
    {'control probes': 15}
    >>> Notes.from_json(notes.to_json()) == notes
    True
    """

    scale_from: str = ""
    scale_witnesses: dict[str, float] = field(default_factory=dict)
    genes_left_out: dict[str, int] = field(default_factory=dict)
    genes_summed: int = 0
    spots_left_out: dict[str, int] = field(default_factory=dict)
    other_layers: list[str] = field(default_factory=list)
    image: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    median_counts: float | None = None
    median_genes: float | None = None
    genes_with_ids: int | None = None
    on_tissue: float | None = None

    def leave_out_genes(self, kind: str, number: int) -> None:
        """Count features that are not among the genes; a number of 0 leaves no trace."""
        _add(self.genes_left_out, kind, number)

    def leave_out_spots(self, reason: str, number: int) -> None:
        """Count rows of the source that are not among the spots; a number of 0 leaves no trace."""
        _add(self.spots_left_out, reason, number)

    def to_json(self) -> str:
        """Return the notes as text, for the slides table."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | None) -> "Notes":
        """Return the notes stored in a slides table: empty without a text, ignoring fields of later versions."""
        found = json.loads(text) if text else {}
        return cls(**{name: value for name, value in found.items() if name in cls.__dataclass_fields__})


def _add(counted: dict[str, int], name: str, number: int) -> None:
    if number:
        counted[name] = counted.get(name, 0) + int(number)
