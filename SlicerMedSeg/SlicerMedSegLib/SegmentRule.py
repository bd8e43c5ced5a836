"""How a label's voxels follow from its probabilities. Arrays alone, no scene."""

import base64
import hashlib
import zlib
from collections import deque
from collections.abc import Sequence

import numpy as np

from .Lattice import boundingBox
from .Steps import Steps, runToEnd

# Below this the voxels are not sorted: whole volumes of air would be.
LOWEST = 0.01
# So many voxels, which may lie anywhere in new memory, are written in one step.
VOXELS_A_STEP = 1 << 15
VALUES_A_PART = 1 << 18
NO_VOXELS = np.zeros(0, np.int64)


class LabelRule:
    """One label: its probabilities sorted, its threshold, and which components stay.

    Args:
        probability: float32 [k, j, i], C-contiguous, 0..1.
        threshold: 0..1.
    """

    def __init__(self, probability: np.ndarray, threshold: float) -> None:
        runToEnd(self._make(probability, threshold))

    @classmethod
    def making(cls, probability: np.ndarray, threshold: float) -> Steps["LabelRule"]:
        """The constructor in short steps."""
        rule = cls.__new__(cls)
        yield from rule._make(probability, threshold)
        return rule

    def _make(self, probability: np.ndarray, threshold: float) -> Steps[None]:
        self.probability = probability
        self.threshold = threshold
        flat = probability.reshape(-1)
        limit, found = min(LOWEST, threshold), [NO_VOXELS]
        for n in range(0, flat.size, VALUES_A_PART):
            found.append(np.flatnonzero(flat[n : n + VALUES_A_PART] >= limit) + n)
            yield
        above = np.concatenate(found)
        yield
        values = np.empty(above.size, np.float32)
        for part in _parts(above.size):
            values[part] = flat[above[part]]
            yield
        order = yield from fallingOrder(values)
        self._voxels = np.empty(above.size, np.int64)
        # Negative, so that they rise and can be searched.
        self._negative = np.empty(above.size, np.float32)
        for part in _parts(above.size):
            self._voxels[part] = above[order[part]]
            self._negative[part] = -values[order[part]]
            yield
        # No voxel outside of these can be the label's.
        self._span = slice(int(above[0]), int(above[-1]) + 1) if above.size else slice(0, 0)
        self.leftOut = NO_VOXELS
        self._known: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=2)
        self._minMl, self._voxelMl, self._onePiece = 0.0, 0.0, False
        self._dropped: list[int] = []

    def _count(self, threshold: float) -> int:
        """How many voxels are at or above it, compared as float32 arrays are."""
        limit = -np.float32(threshold)
        return int(np.searchsorted(self._negative, limit, side="right"))

    def move(self, threshold: float) -> np.ndarray:
        """Set the threshold; the voxels (flat) between the old one and it."""
        before, after = self._count(self.threshold), self._count(threshold)
        self.threshold = threshold
        return self._voxels[min(before, after) : max(before, after)]

    def above(self) -> np.ndarray:
        """The voxels (flat) at or above the threshold."""
        return self._voxels[: self._count(self.threshold)]

    def setKept(
        self, minMl: float, voxelMl: float, onePiece: bool, dropped: Sequence[np.ndarray]
    ) -> None:
        """Which components stay: not below `minMl`, the largest alone if `onePiece`, and none
        whose highest voxel is that of a dropped one."""
        self._minMl, self._voxelMl, self._onePiece = minMl, voxelMl, onePiece
        self._dropped = [self.peak(voxels) for voxels in dropped if voxels.size]

    def peak(self, voxels: np.ndarray) -> int:
        """Flat index of the highest of these voxels (ascending), by which a lesion is known."""
        return int(voxels[self.probability.reshape(-1)[voxels].argmax()])

    def components(self, voxels: np.ndarray) -> np.ndarray:
        """`components` of these voxels. The last answers are kept: the table of lesions, and the
        lesion that is then dropped from it, ask for the same."""
        for known, numbers in self._known:
            if np.array_equal(known, voxels):
                return numbers
        numbers = components(voxels, self.probability.shape)
        self._known.append((voxels, numbers))
        return numbers

    @property
    def filters(self) -> bool:
        """Whether components can be left out at all."""
        return self._minMl > 0 or self._onePiece or bool(self._dropped)

    def filter(self, owner: np.ndarray, value: int) -> np.ndarray:
        """The voxels (flat, ascending) of the label in `owner` whose components are left out."""
        if not self.filters:
            return NO_VOXELS
        voxels = placesOf(value, owner.reshape(-1)[self._span]) + self._span.start
        numbers = self.components(voxels)
        sizes = np.bincount(numbers)
        keep = sizes * self._voxelMl >= self._minMl
        if self._onePiece and sizes.size:
            keep &= np.arange(sizes.size) == sizes.argmax()
        for peak in self._dropped:
            at = np.searchsorted(voxels, peak)
            if at < voxels.size and voxels[at] == peak:
                lesion = numbers == numbers[at]
                if self.peak(voxels[lesion]) == peak:
                    keep[numbers[at]] = False
        return voxels[~keep[numbers]]

    def refilter(
        self, owner: np.ndarray, value: int, lost: np.ndarray, gained: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the label loses and gains once components are left out, given that in `owner`."""
        before, after = self.leftOut, self.filter(owner, value)
        self.leftOut = after
        if before.size == after.size == 0:
            return lost, gained
        lost, gained = np.sort(lost), np.sort(gained)
        newlyOut = without(without(after, before), gained)
        newlyIn = without(without(before, after), lost)
        return (
            np.concatenate([without(lost, before), newlyOut]),
            np.concatenate([without(gained, after), newlyIn]),
        )


def placesOf(value: int, array: np.ndarray) -> np.ndarray:
    """np.flatnonzero(array == value), in parts whose memory is used again."""
    parts = range(0, array.size, VALUES_A_PART)
    found = [np.flatnonzero(array[n : n + VALUES_A_PART] == value) + n for n in parts]
    return np.concatenate([NO_VOXELS, *found])


def without(voxels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Those of `voxels` that are not among `others`, both ascending."""
    at = np.searchsorted(others, voxels)
    there = at < others.size
    there[there] = others[at[there]] == voxels[there]
    return voxels[~there]


def winners(rules: Sequence[LabelRule], voxels: np.ndarray) -> np.ndarray:
    """uint8: number (from 1) of the label with the highest probability among those at their
    threshold, of these voxels (flat)."""
    best, owner = np.zeros(voxels.shape, np.float32), np.zeros(voxels.shape, np.uint8)
    for n, rule in enumerate(rules):
        values = rule.probability.reshape(-1)[voxels]
        wins = (values >= rule.threshold) & (values > best)
        owner[wins], best[wins] = n + 1, values[wins]
    return owner


def winnersOfAll(rules: Sequence[LabelRule]) -> Steps[np.ndarray]:
    """`winners` of all voxels, uint8 [k, j, i]."""
    shape = rules[0].probability.shape
    owner = np.zeros(shape, np.uint8)
    for rule in rules:
        # Only those above a threshold can win.
        above = rule.above()
        for first in range(0, above.size, VOXELS_A_STEP):
            part = above[first : first + VOXELS_A_STEP]
            owner.reshape(-1)[part] = winners(rules, part)
            yield
    return owner


def fallingOrder(values: np.ndarray) -> Steps[np.ndarray]:
    """`np.argsort(-values, kind="stable")` of float32 values that are not negative, in steps."""
    # The bits of such floats rise with them, and numpy sorts 16 bits by radix: far faster.
    bits = ~values.view(np.uint32)
    yield
    high = np.empty(values.size, np.uint16)
    counts = np.zeros(1 << 16, np.int64)
    for part in _parts(values.size):
        high[part] = bits[part] >> 16
        counts += np.bincount(high[part], minlength=counts.size)
        yield
    ends = np.cumsum(counts)
    order = np.empty(values.size, np.int64)
    done, first = 0, 0
    while done < values.size:
        # A band of values, of about as many as a part.
        last = max(first, int(np.searchsorted(ends, done + VALUES_A_PART, side="right")) - 1)
        band = np.concatenate(
            [
                np.flatnonzero((high[part] >= first) & (high[part] <= last)) + part.start
                for part in _parts(values.size)
            ]
        )
        yield
        band = band[np.argsort(bits[band].astype(np.uint16), kind="stable")]
        yield
        if last > first:
            band = band[np.argsort(high[band], kind="stable")]
        order[done : done + band.size] = band
        done, first = done + band.size, last + 1
        yield
    return order


def _parts(size: int) -> list[slice]:
    """Slices of so many values that one is taken in a short step."""
    return [slice(n, min(n + VALUES_A_PART, size)) for n in range(0, size, VALUES_A_PART)]


def components(voxels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Number of the connected component (26-neighbourhood) of each voxel.

    Args:
        voxels: flat indices in an array of `shape` [k, j, i], ascending.

    Returns:
        From 0, in the order of the components' first voxels.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if voxels.size == 0:
        return np.zeros(0, np.int32)
    # Not the voxels are linked, but their runs along i: there are far fewer.
    row, i = np.divmod(voxels, shape[2])
    new = np.r_[True, (np.diff(voxels) != 1) | (np.diff(row) != 0)]
    run = np.cumsum(new) - 1
    last = np.r_[np.flatnonzero(new)[1:] - 1, voxels.size - 1]
    starts, ends, (k, j) = voxels[new], voxels[last], np.divmod(row[new], shape[1])
    left, right = np.maximum(i[new] - 1, 0), np.minimum(i[last] + 1, shape[2] - 1)
    ones, others = [], []
    # Half of the neighbouring rows: the other half sees the pair from its other end.
    for dk, dj in ((0, 1), (1, -1), (1, 0), (1, 1)):
        inside = np.flatnonzero((j + dj >= 0) & (j + dj < shape[1]) & (k + dk < shape[0]))
        base = (row[new][inside] + dk * shape[1] + dj) * shape[2]
        first = np.searchsorted(ends, base + left[inside])
        count = np.searchsorted(starts, base + right[inside], side="right") - first
        ones.append(np.repeat(inside, count))
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        others.append(np.repeat(first, count) + within)
    pairs = np.concatenate(ones), np.concatenate(others)
    graph = coo_array((np.ones(pairs[0].size, bool), pairs), shape=(starts.size,) * 2)
    return connected_components(graph, directed=False)[1][run]


def maskChecksum(mask: np.ndarray) -> str:
    """SHA-256 of which voxels of a grid are True."""
    box = boundingBox(mask)
    digest = hashlib.sha256()
    if box is not None:
        digest.update(repr([(s.start, s.stop) for s in box]).encode())
        digest.update(np.packbits(mask[box]).tobytes())
    return digest.hexdigest()


def packVoxels(lesions: Sequence[np.ndarray]) -> str:
    """Lists of flat indices (ascending) as text without separators of Slicer's tags."""
    if not lesions:
        return ""
    parts = []
    for voxels in lesions:
        breaks = np.flatnonzero(np.diff(voxels) != 1) + 1
        starts = voxels[np.r_[0, breaks]]
        lengths = np.diff(np.r_[0, breaks, voxels.size])
        parts.append(np.r_[starts.size, np.stack([starts, lengths], axis=1).ravel()])
    content = np.concatenate(parts).astype("<i8").tobytes()
    return base64.b64encode(zlib.compress(content, 1)).decode("ascii")


def unpackVoxels(text: str) -> list[np.ndarray]:
    """What `packVoxels` packed."""
    if not text:
        return []
    numbers = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i8")
    lesions, at = [], 0
    while at < numbers.size:
        count = int(numbers[at])
        runs = numbers[at + 1 : at + 1 + 2 * count].reshape(-1, 2)
        starts, lengths = runs[:, 0], runs[:, 1]
        before = np.cumsum(lengths) - lengths
        lesions.append(np.repeat(starts - before, lengths) + np.arange(lengths.sum()))
        at += 1 + 2 * count
    return lesions
