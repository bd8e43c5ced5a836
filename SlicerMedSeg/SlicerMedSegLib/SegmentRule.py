"""How a label's voxels follow from its probabilities. Arrays alone, no scene."""

import base64
import hashlib
import zlib
from collections.abc import Sequence

import numpy as np

from .Lattice import boundingBox
from .Steps import Steps, runToEnd

# Below this the voxels are not sorted: whole volumes of air would be.
LOWEST = 0.01


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
        above = np.flatnonzero(flat >= min(LOWEST, threshold))
        yield
        order = np.argsort(-flat[above], kind="stable")
        yield
        self._voxels = above[order]
        # Negative, so that they rise and can be searched.
        self._negative = -flat[self._voxels]
        self.filtered: np.ndarray | None = None
        self._minMl, self._voxelMl = 0.0, 0.0
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

    def setKept(self, minMl: float, voxelMl: float, dropped: Sequence[np.ndarray]) -> None:
        """Which components stay: not below `minMl`, and none whose highest voxel is that of a
        dropped one."""
        self._minMl, self._voxelMl = minMl, voxelMl
        self._dropped = [self.peak(voxels) for voxels in dropped if voxels.size]

    def peak(self, voxels: np.ndarray) -> int:
        """Flat index of the highest of these voxels (ascending), by which a lesion is known."""
        return int(voxels[self.probability.reshape(-1)[voxels].argmax()])

    @property
    def filters(self) -> bool:
        """Whether components can be left out at all."""
        return self._minMl > 0 or bool(self._dropped)

    def filter(self, owner: np.ndarray, value: int) -> np.ndarray | None:
        """The voxels (flat, ascending) of the label in `owner` whose components stay; None when
        all do."""
        if not self.filters:
            return None
        voxels = np.sort(self.above())
        voxels = voxels[owner.reshape(-1)[voxels] == value]
        numbers = components(voxels, owner.shape)
        keep = np.bincount(numbers) * self._voxelMl >= self._minMl
        for peak in self._dropped:
            at = np.searchsorted(voxels, peak)
            if at < voxels.size and voxels[at] == peak:
                lesion = numbers == numbers[at]
                if self.peak(voxels[lesion]) == peak:
                    keep[numbers[at]] = False
        return voxels[keep[numbers]]

    def refilter(
        self, owner: np.ndarray, value: int, lost: np.ndarray, gained: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the label loses and gains once components are left out, given that in `owner`."""
        before, after = self.filtered, self.filter(owner, value)
        self.filtered = after
        if before is None and after is None:
            return lost, gained
        if before is None or after is None:
            everything = np.flatnonzero(owner.reshape(-1) == value)
            if before is None:
                before = np.sort(np.r_[without(everything, np.sort(gained)), lost])
            if after is None:
                after = everything
        return without(before, after), without(after, before)


def without(voxels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Those of `voxels` that are not among `others`, both ascending."""
    at = np.searchsorted(others, voxels)
    there = at < others.size
    there[there] = others[at[there]] == voxels[there]
    return voxels[~there]


def winners(rules: Sequence[LabelRule], voxels: np.ndarray | None) -> np.ndarray:
    """uint8: number (from 1) of the label with the highest probability among those at their
    threshold, of these voxels (flat) or, as [k, j, i], of all."""
    shape = rules[0].probability.shape
    best = np.zeros(shape if voxels is None else voxels.shape, np.float32).reshape(-1)
    owner = np.zeros(best.shape, np.uint8)
    for n, rule in enumerate(rules):
        flat = rule.probability.reshape(-1)
        # Of all voxels only those above a threshold can win.
        at = rule.above() if voxels is None else np.flatnonzero(flat[voxels] >= rule.threshold)
        values = flat[at if voxels is None else voxels[at]]
        wins = values > best[at]
        owner[at[wins]] = n + 1
        best[at[wins]] = values[wins]
    return owner.reshape(shape) if voxels is None else owner


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
        lesions.append(np.concatenate([np.arange(a, a + n) for a, n in runs]))
        at += 1 + 2 * count
    return lesions
