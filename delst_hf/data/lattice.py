"""Measure the lattice of the spots in the image, and recognise known arrays by their lattice.

The printed array is the safest ruler of a slide: its spots lie at known distances, whatever a file's metadata say. So the
lattice is measured first (its kind, and its pitch in pixels, at any angle), and a known array is accepted only if its kind is
that of the lattice. Space Ranger's spot_diameter_fullres is not a safe ruler: it is the diameter of a "theoretical 65 um spot",
not of the printed 55 um.
"""

from dataclasses import dataclass, replace

import numpy as np

# The two steps of a lattice may differ by this factor, and its angle by this many degrees: printing jitters, and pixels of a
# scanner may not be square.
_STEP_TOLERANCE, _ANGLE_TOLERANCE = 1.05, 3.5
# A spot farther than this from its position, in steps, is not on the lattice; at least this share of the spots must be.
_OFF_PLACE, _SHARE_IN_PLACE = 0.25, 0.9
# This share of the spots may lie beyond each end of a lattice.
_ASTRAY = 0.01
# Cosine of 2.6 degrees.
_UPRIGHT = 0.999
# Numbers of spots: needed to find a lattice without array positions; needed to tell that every second position is empty;
# the most whose neighbours are searched; and the most whose array positions are fitted.
_ENOUGH_SPOTS, _ENOUGH_FOR_PARITY, _LOOKED_AT, _FITTED = 12, 8, 4000, 50_000


@dataclass(frozen=True)
class SpotArray:
    """A kind of slide on which spots are printed at known distances.

    Attributes:
        name: Name, as in the column `technology`.
        kind: Kind of lattice: "hexagonal", "square", or "checkerboard" (squares with a spot on every second position).
        pitch_um: Distance between the centres of nearest neighbours, in micrometres.
        spot_um: Diameter of a spot, or side of a bin, in micrometres.
        stated_um: Diameters in micrometres that a diameter stated in pixels can mean, the likeliest first.
        places: Most positions along a side of the lattice; None where that does not distinguish the array from others.
        assumed: Whether the array was recognised by the shape of its lattice alone.
    """

    name: str
    kind: str
    pitch_um: float
    spot_um: float
    stated_um: tuple[float, ...]
    places: int | None = None
    assumed: bool = False


VISIUM = SpotArray("Visium", "hexagonal", 100.0, 55.0, (65.0, 55.0))
# 1,007 spots on 31 x 33 positions, 200 um apart along both axes. Chips of crossing channels (DBiT-seq) have squares too, but of
# 50 x 50 positions and more.
LEGACY = SpotArray("Spatial Transcriptomics", "square", 200.0, 100.0, (100.0,), places=40)
# About 2,000 spots on every second of 66 x 63 positions: 6.5 x 6.9 mm in all, with steps of 100 um and 111 um, so that the
# nearest neighbours, on the diagonals, are 150 um apart.
LEGACY_2K = SpotArray("Spatial Transcriptomics", "checkerboard", 150.0, 100.0, (100.0, 110.0))
KNOWN_ARRAYS = (VISIUM, LEGACY, LEGACY_2K)


@dataclass(frozen=True)
class Lattice:
    """The lattice on which the spots of a slide lie.

    Attributes:
        kind: "hexagonal", "square", "checkerboard", or "unknown" for a lattice of another kind.
        pitch_px: Distance between nearest neighbours in pixels.
        steps_px: The lengths of the two shortest steps from spot to spot, in pixels.
        angle: Angle between the two steps, in degrees, 60 to 90.
        places: Number of positions from the first to the last spot along each of the two steps.
    """

    kind: str
    pitch_px: float
    steps_px: tuple[float, float]
    angle: float
    places: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        if self.kind == "unknown":
            return f"steps of {self.steps_px[0]:.1f} and {self.steps_px[1]:.1f} px at {self.angle:.0f} degrees"
        plural = {"hexagonal": "hexagons", "square": "squares", "checkerboard": "a checkerboard"}[self.kind]
        large = self.kind == "square" and max(self.places) > (LEGACY.places or 0)
        places = (
            f" and {self.places[0]} x {self.places[1]} positions, more than the array of 1,007 spots has"
            if large
            else ""
        )
        return f"{plural} of {self.pitch_px:.1f} px{places}"


def bins(side_um: float) -> SpotArray:
    """Return the array of Visium HD: square bins of this side, without gaps."""
    return SpotArray("Visium HD", "square", side_um, side_um, (side_um,))


def arrays_named(technology: str, bin_um: float | None = None) -> tuple[SpotArray, ...]:
    """Return the known arrays that a technology can mean; none for an unknown technology.

    Args:
        technology: Name as users and data sets write it, for example "Visium", "visium cytassist", "ST"; "" is any array.
        bin_um: Side of the bins of Visium HD in micrometres.

    >>> [array.pitch_um for array in arrays_named("Spatial Transcriptomics")]
    [200.0, 150.0]
    """
    words = technology.lower().replace("-", " ").replace("_", " ").split()
    if not words:
        return KNOWN_ARRAYS
    if "hd" in words or "visiumhd" in words:
        return () if bin_um is None else (bins(bin_um),)
    if "visium" in words:
        return (VISIUM,)
    if words == ["st"] or words[-2:] == ["spatial", "transcriptomics"]:
        return (LEGACY, LEGACY_2K)
    return ()


def matching_array(lattice: Lattice | None, candidates: tuple[SpotArray, ...]) -> SpotArray | None:
    """Return the first candidate whose lattice is of the measured kind, and at least as large as the measured one."""
    if lattice is None:
        return None
    fitting = (array for array in candidates if array.kind == lattice.kind)
    return next((array for array in fitting if array.places is None or max(lattice.places) <= array.places), None)


def measure_lattice(pixels: np.ndarray, array: np.ndarray | None = None) -> Lattice | None:
    """Measure the lattice of the spots, at any angle, mirrored or not.

    Args:
        pixels: Centres (spots, 2) y, x.
        array: Array positions (spots, 2) row, column, -1 where unknown; None without any.

    Returns:
        The lattice; None if the spots are too few or on no lattice.

    >>> places = np.array([(row, column) for row in range(6) for column in range(6)])
    >>> print(measure_lattice(50.0 * places))
    squares of 50.0 px
    """
    pixels = np.asarray(pixels, float)
    if array is not None:
        array = np.asarray(array, float)
        known = np.flatnonzero(
            np.isfinite(array).all(axis=1) & np.isfinite(pixels).all(axis=1) & (array != -1).any(axis=1)
        )
        if len(known) > _FITTED:
            known = np.random.default_rng(0).choice(known, _FITTED, replace=False)
        if (steps := index_steps(array[known], pixels[known])) is not None:
            found = _by_index(array[known], steps)
            if found is not None and found.kind != "unknown":
                return found
    basis = _neighbour_steps(pixels)
    return None if basis is None else _described(basis, pixels)


def index_steps(array: np.ndarray, pixels: np.ndarray) -> np.ndarray | None:
    """Fit pixels = array @ steps + a constant, by least squares.

    Args:
        array: Array positions (spots, 2).
        pixels: Centres (spots, 2).

    Returns:
        The steps (2, 2) in pixels of one row and of one column; None if the spots are fewer than four, on one line, or not at
        these positions.
    """
    if len(array) < 4 or min(len(np.unique(array[:, 0])), len(np.unique(array[:, 1]))) < 2:
        return None
    fitted = np.ones(len(array), bool)
    for _ in range(3):
        if fitted.sum() < 4:
            return None
        centre, centre_pixels = array[fitted].mean(0), pixels[fitted].mean(0)
        steps, _, rank, _ = np.linalg.lstsq(array[fitted] - centre, pixels[fitted] - centre_pixels, rcond=None)
        step = np.sqrt(abs(np.linalg.det(steps)))
        if rank < 2 or step == 0:
            return None
        away = np.hypot(*((array - centre) @ steps - (pixels - centre_pixels)).T) / step
        in_place = away <= 2 * _OFF_PLACE
        if (in_place | (away <= 3 * np.median(away))).all() or (in_place == fitted).all():
            break
        fitted = away <= max(_OFF_PLACE, 3 * float(np.median(away)))  # a few misplaced spots move the rest
    return steps if in_place.mean() >= _SHARE_IN_PLACE else None


def median_pitch(array: np.ndarray, pixels: np.ndarray, lattice: Lattice) -> tuple[float, float, float]:
    """Measure squares or a checkerboard by the median slope along both axes (Theil and Sen), which outliers do not move.

    The median distance of nearest neighbours would be too small, since printed spots jitter and the nearest one is taken.

    Args:
        array: Array positions (spots, 2) row, column.
        pixels: Centres (spots, 2) y, x.
        lattice: The lattice measured with these array positions.

    Returns:
        Pixels per column, pixels per row, and the distance between nearest neighbours in pixels.
    """
    from scipy.stats import theilslopes

    steps = index_steps(array, pixels)
    if steps is None:
        return (*lattice.steps_px, lattice.pitch_px)
    slopes = []
    for index, step in zip(array.T, steps, strict=True):
        direction = step / np.hypot(*step)
        if np.abs(direction).max() > _UPRIGHT:  # use the image axis: jitter does not turn an upright array
            direction = np.rint(direction)
        slopes.append(abs(float(theilslopes(pixels @ direction, index)[0])))
    along_y, along_x = slopes
    pitch = float(np.hypot(along_x, along_y)) if lattice.kind == "checkerboard" else (along_x + along_y) / 2
    return along_x, along_y, pitch


def _by_index(array: np.ndarray, steps: np.ndarray) -> Lattice | None:
    """Return the lattice of the occupied array positions."""
    # A random sample, since a regular one would have a coarser lattice.
    some = np.random.default_rng(0).permutation(len(array))[:_LOOKED_AT]
    basis = _index_basis(np.rint(array[some] - array[some[0]]).astype(np.int64))
    if basis is None:
        return None
    lattice = _described(basis @ steps, array @ steps)
    every_second = abs(round(np.linalg.det(basis))) % 4 == 2 and len(array) >= _ENOUGH_FOR_PARITY
    if lattice.kind == "square" and every_second:  # by its angle alone it would be squares turned by 45 degrees
        return replace(lattice, kind="checkerboard", pitch_px=float(np.sqrt(lattice.steps_px[0] * lattice.steps_px[1])))
    return lattice


def _index_basis(differences: np.ndarray) -> np.ndarray | None:
    """Return two integer steps (2, 2) that generate all differences (spots, 2)."""
    first, second = np.zeros(2, np.int64), 0  # echelon form: (a, b) and (0, c)
    for row, column in np.unique(differences, axis=0).tolist():
        pair = np.array([row, column])
        while pair[0]:
            first, pair = pair, first - (first[0] // pair[0]) * pair
        second = int(np.gcd(second, pair[1]))
    return np.array([first, [0, second]]) if first[0] and second else None


def _neighbour_steps(pixels: np.ndarray) -> np.ndarray | None:
    """Return the two shortest steps (2, 2) from spot to neighbouring spot, without array positions."""
    from scipy.spatial import cKDTree

    pixels = pixels[np.isfinite(pixels).all(axis=1)]
    if len(pixels) > _LOOKED_AT:  # those around one spot: a sample spread over the slide would hold no neighbours
        centre = pixels[np.argmin(np.hypot(*(pixels - np.median(pixels, axis=0)).T))]
        pixels = pixels[np.argpartition(np.hypot(*(pixels - centre).T), _LOOKED_AT)[:_LOOKED_AT]]
    pixels = np.unique(pixels, axis=0)
    if len(pixels) < _ENOUGH_SPOTS:
        return None
    tree = cKDTree(pixels)
    nearest = float(np.median(tree.query(pixels, k=2)[0][:, 1]))
    pairs = tree.query_pairs(1.6 * nearest, output_type="ndarray")
    if len(pairs) < len(pixels) or len(pairs) > 8 * len(pixels):
        return None
    steps = pixels[pairs[:, 1]] - pixels[pairs[:, 0]]
    short = steps[np.hypot(*steps.T) < 1.2 * nearest]
    first = _commonest(short, nearest)
    angle = np.arctan2(steps @ np.array([-first[1], first[0]]), steps @ first)
    across = np.abs(np.sin(angle)) > 0.6
    if not across.any():
        return None
    second = _commonest(steps[across], nearest)
    return _fitted(steps, _shortest(np.array([first, second])))


def _commonest(steps: np.ndarray, length: float) -> np.ndarray:
    """Return the step (2,) that most steps resemble, counting a step and its opposite as one."""
    sample = steps[np.linspace(0, len(steps) - 1, min(len(steps), 200)).astype(int)]
    towards = np.where((steps @ sample.T) >= 0, 1.0, -1.0)
    near = np.hypot(*np.moveaxis(steps[:, None] * towards[:, :, None] - sample, -1, 0)) < 0.2 * length
    best = int(near.sum(0).argmax())
    return np.asarray((steps * towards[:, best, None])[near[:, best]].mean(0))


def _fitted(steps: np.ndarray, basis: np.ndarray) -> np.ndarray | None:
    """Return the basis that best fits all steps between neighbours; None unless nearly all are integer combinations of it."""
    for _ in range(4):
        if abs(np.linalg.det(basis)) < 1e-9:
            return None
        whole = np.rint(steps @ np.linalg.inv(basis))
        away = np.hypot(*(steps - whole @ basis).T) / np.sqrt(abs(np.linalg.det(basis)))
        near = away < _OFF_PLACE
        # Fit without diagonals: only the shorter ones are among the steps.
        fitted = near & (np.abs(whole).sum(axis=1) == 1)
        if fitted.sum() < 3 or np.linalg.matrix_rank(whole[fitted]) < 2:
            return None
        basis = np.linalg.lstsq(whole[fitted], steps[fitted], rcond=None)[0]
    # By chance, a fifth of all positions (pi / 4^2) lie within a quarter of a step.
    return _shortest(basis) if near.mean() >= _SHARE_IN_PLACE and np.median(away) < _OFF_PLACE / 2 else None


def _shortest(basis: np.ndarray) -> np.ndarray:
    """Return the two shortest steps of the same lattice (Lagrange's reduction), at an angle of 60 to 90 degrees."""
    first, second = basis
    for _ in range(100):
        if second @ second < first @ first:
            first, second = second, first
        times = np.rint(first @ second / (first @ first))
        if times == 0:
            break
        second = second - times * first
    return np.array([first, second if first @ second >= 0 else -second])


def _described(basis: np.ndarray, pixels: np.ndarray) -> Lattice:
    """Return the lattice of two steps (2, 2): its kind, its pitch, and its extent over the spots (spots, 2)."""
    first, second = _shortest(basis)
    lengths = float(np.hypot(*first)), float(np.hypot(*second))
    area = abs(float(np.linalg.det(np.array([first, second]))))
    angle = float(np.degrees(np.arcsin(min(1.0, area / (lengths[0] * lengths[1])))))
    kind, pitch = "unknown", lengths[0]
    if lengths[1] / lengths[0] <= _STEP_TOLERANCE:
        if angle <= 60 + _ANGLE_TOLERANCE:
            kind, pitch = "hexagonal", float(np.sqrt(area / np.sin(np.pi / 3)))
        elif angle >= 90 - _ANGLE_TOLERANCE:
            kind, pitch = "square", float(np.sqrt(area))
        elif angle >= 80:  # the rhombs of the array of 2,000 spots: 83.9 degrees
            kind, pitch = "checkerboard", float(np.sqrt(lengths[0] * lengths[1]))
    along = pixels[np.isfinite(pixels).all(axis=1)] @ np.linalg.inv(np.array([first, second]))
    reach = np.rint(np.subtract(*np.quantile(along, [1 - _ASTRAY, _ASTRAY], axis=0))).astype(int) + 1
    return Lattice(kind, pitch, lengths, angle, (int(reach[0]), int(reach[1])))
