"""List the protocols in order, and run them one after the other."""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm

from ..atomic.processes import give_back_freed_memory
from ..errors import did_you_mean
from .findings import Findings
from .preparation import finite_matrix
from .protocols import Protocol

# Each name is that of a file in protocols/, loaded on first use.
SUITE = (
    "arms",
    "probes",
    "stimage1k4m",
    "hest",
    "retrieval",
    "imputation",
    "signatures",
    "domains",
    "hierarchy",
    "reliability",
    "robustness",
)


def protocol(name: str) -> Protocol:
    """Load a protocol of the suite.

    Raises:
        ValueError: If the suite has no protocol of this name.

    Examples:
        >>> protocol("hest").headline
        'pearson_mean'
    """
    if name not in SUITE:
        raise ValueError(f"protocol {name!r} is not known; allowed are {', '.join(SUITE)}. Choose one of them.")
    return importlib.import_module(f"{__package__}.protocols.{name}").PROTOCOL


def protocols_of(rows: Iterable[Mapping[str, Any]]) -> list[Protocol]:
    """Return the protocols that occur in rows of results, in the order of the suite."""
    present = {row["protocol"] for row in rows}
    return [protocol(name) for name in SUITE if name in present]


def chosen_protocols(names: Iterable[str]) -> tuple[str, ...]:
    """Check names and bring them into the order of the suite.

    Raises:
        ValueError: If a name is not in the suite, or no name is given.

    Examples:
        >>> chosen_protocols(["retrieval", "hest"])
        ('hest', 'retrieval')
    """
    wanted = list(names)
    unknown = [name for name in wanted if name not in SUITE]
    if unknown or not wanted:
        wrong = f"protocols {unknown} are not known" if unknown else "no protocol is named"
        raise ValueError(f"{wrong}.{did_you_mean(unknown, SUITE)} Allowed are {', '.join(SUITE)}, comma-separated.")
    return tuple(name for name in SUITE if name in wanted)


def run_protocols(findings: Findings, names: Sequence[str] = SUITE, progress: bool = False) -> Findings:
    """Run the protocols named, in the order of `SUITE`, and collect what they find.

    A protocol that the data do not allow (no labels, one class, too few spots) is skipped, with the reason in
    `findings.skipped`, so that the results of the others are not lost.

    Raises:
        ValueError: If a protocol is not known, or an embedding is not finite.
    """
    from sklearn import config_context

    protocols = [protocol(name) for name in chosen_protocols(names)]
    for arm in findings.arms.values():
        finite_matrix(arm.features, arm.name)
    bar: Any = tqdm(
        total=sum(each.cost for each in protocols),
        bar_format="{desc} {percentage:3.0f} %|{bar}| {elapsed} passed, {remaining} left",
        disable=not progress,
        leave=False,
    )
    # Features are finite and arguments valid: scikit-learn need not check them again at each of a thousand fits.
    with bar, config_context(assume_finite=True, skip_parameter_validation=True):
        for each in protocols:
            bar.set_description_str(f"protocol {each.name}")
            try:
                each.run(findings)
            except ValueError as error:
                findings.skip(each.name, str(error))
            give_back_freed_memory()
            bar.update(each.cost)
    return findings
