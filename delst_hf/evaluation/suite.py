"""Every protocol on one set of embeddings: arrays in, rows of numbers with intervals out, and what a report draws."""

from collections.abc import Callable, Sequence

from .feature_protocols import domains, hest, probes, stimage1k4m
from .findings import Rows
from .preparation import finite_matrix
from .space_protocols import hierarchy, imputation, retrieval, signatures

PROTOCOLS: dict[str, Callable[[Rows], None]] = {
    "probes": probes,
    "stimage1k4m": stimage1k4m,
    "hest": hest,
    "retrieval": retrieval,
    "imputation": imputation,
    "signatures": signatures,
    "domains": domains,
    "hierarchy": hierarchy,
}
SUITE = tuple(PROTOCOLS)


def run_protocols(found: Rows, protocols: Sequence[str] = SUITE) -> Rows:
    """Run the protocols named, in the order of `SUITE`, and keep what they find.

    One that the data do not allow (no labels, one class, too few spots) is skipped with its reason in `found.skipped`, so that
    the others are not lost.

    Raises:
        ValueError: if a protocol is not known, or an embedding is not finite.
    """
    unknown = [name for name in protocols if name not in SUITE]
    if unknown:
        raise ValueError(f"protocols {unknown} are not known; allowed are {', '.join(SUITE)}. Name some of them.")
    for arm, values in found.features.items():
        finite_matrix(values, arm)
    for name in SUITE:
        if name in protocols:
            try:
                PROTOCOLS[name](found)
            except ValueError as error:
                found.skip(name, str(error))
    return found
