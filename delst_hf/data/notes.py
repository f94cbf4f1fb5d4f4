"""What was noticed while a slide was read: which scale was taken and who else states one, and what was left out, by reason.

Readers and cleaning steps write into `Slide.notes` as they go; whoever tells the user about a slide reads from it: the summary
at the end of `delst prepare`, the page of `delst check` and the dataset card. There is one such place, so that nothing is left
out without being counted.

    slide.notes.leave_out_genes("control probes", 12)
    slide.notes.leave_out_spots("not in_tissue", 40)
    slide.notes.witness("lattice of 100 um", 0.4998)     # micrometres per pixel of slide.image

A function deep within a reader that has no slide yet makes `Notes` of its own, and the slide takes them up
(`notes.update(other)`, or `Slide(..., notes=notes)`).
"""

import json
from dataclasses import asdict, dataclass, field


@dataclass
class Notes:
    """What was noticed while one slide was read. Numbers of one reason add up.

    Attributes:
        scale_from: what decided the micrometres per pixel, in words: "--mpp", "lattice of 100 um".
        scale_witnesses: what states a scale, in words -> micrometres per pixel of the slide's image, used or not.
        genes_left_out: kind -> how many features of the source are not among the genes: "control probes", "antibodies".
        genes_summed: columns that were added to another of the same gene.
        spots_left_out: reason -> how many rows of the source are not among the spots: "not in_tissue", "without counts".
        image: property -> what the file is: {"file": "he.tif", "samples": "12 of 16 bits"}.
        remarks: whole sentences for what has no other place.
        labels: label -> spots, measured by `understood.measure` when the slide is checked, as are the following.
        median_counts: counts of the median spot.
        median_genes: expressed genes of the median spot.
        genes_with_ids: how many genes have an Ensembl id.
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
        """Return the notes of a slides table: empty where there are none, without the fields of a later version."""
        found = json.loads(text) if text else {}
        return cls(**{name: value for name, value in found.items() if name in cls.__dataclass_fields__})


def _add(counted: dict[str, int], name: str, number: int) -> None:
    if number:
        counted[name] = counted.get(name, 0) + int(number)
