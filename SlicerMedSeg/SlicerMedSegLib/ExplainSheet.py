"""A sheet that explains an answer: the largest lesions with input, outline and attention."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medsegcore.errors import MissingInputError, SettingError

from .Colors import CLEAR_BELOW, overlayTable
from .Drawing import drawText, fillBox, writePng
from .Lattice import kjiOf
from .LesionTable import LesionRow, LesionTable, meanText
from .MapUnits import highestOf, unitText
from .NodeNames import TITLE
from .Resampling import VOXELS_A_STEP, resampling
from .SceneConversion import imageFromVolumeNode
from .Steps import Steps, runToEnd
from .Translation import _

PANEL = 250
GAP = 8
CAPTION = 56
HEADER = 64
FOOTER = 74
GRAY = (150, 150, 150)
OPACITY = 0.75
# Brightness is judged on about this many voxels.
SAMPLED = 5e5
# Array axis that a plane is cut across, and the letters at its left, right, top and bottom edge.
PLANES = {"axial": (0, "RLAP"), "coronal": (1, "RLSI"), "sagittal": (2, "APSI")}


def explainSheet(
    table: LesionTable, inputNode, path: str | Path, overlayNode=None,
    rows: Sequence[LesionRow] | None = None, most: int = 3,
) -> Path:  # fmt: skip
    """Write a PNG: a row per lesion, its planes with the outline and with an overlay.

    Names of volumes, patients and files are not on it.

    Args:
        table: of the run.
        inputNode: volume node to look at; of a 4-D input, the frame that was segmented is shown.
        path: ends with .png; a file that is there is replaced.
        overlayNode: volume node of a map, e.g. a spatial attention; the probability when None.
        rows: the lesions; the largest kept ones when None.
        most: how many of them.

    Raises:
        MissingInputError: there is no lesion, or no volume to show.
        SettingError: the name does not end with .png.
        OutputError: it cannot be written.
    """
    return runToEnd(explaining(table, inputNode, path, overlayNode, rows, most))


def explaining(
    table: LesionTable, inputNode, path: str | Path, overlayNode=None,
    rows: Sequence[LesionRow] | None = None, most: int = 3,
) -> Steps[Path]:  # fmt: skip
    """`explainSheet` in short steps."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise SettingError(
            _("'{name}' is no name of a picture.").format(name=path.name),
            _("Let it end with .png."),
        )
    chosen = [row for row in table.rows() if row.kept] if rows is None else list(rows)
    if not chosen:
        raise MissingInputError(_("There is no lesion to explain."), _("Lower the threshold."))
    sheet = yield from _Sheet.making(table, inputNode, overlayNode)
    canvas = yield from sheet.draw(chosen[:most])
    yield
    writePng(canvas, path)
    return path


class _Sheet:
    @classmethod
    def making(cls, table: LesionTable, inputNode, overlayNode) -> Steps["_Sheet"]:
        sheet = cls()
        yield from sheet._make(table, inputNode, overlayNode)
        return sheet

    def _make(self, table: LesionTable, inputNode, overlayNode) -> Steps[None]:
        self.table, segments = table, table.segments
        self.grid = segments.worldGrid
        self.image = yield from resampling(table.imageOf(inputNode), self.grid)
        mean = float(self.image.mean())
        yield
        box = yield from _boxAbove(self.image, mean)
        self.box = _padded(box, self.image.shape)
        # Air is black, whatever its value, and the brightest lesions keep their texture.
        step = max(1, round((self.image.size / SAMPLED) ** (1 / 3)))
        some = self.image[::step, ::step, ::step]
        self.low = float(np.percentile(some, 0.5))
        tissue = some[some > mean]
        self.high = float(np.percentile(tissue, 99.9)) if tissue.size else self.low + 1
        yield
        self.overlays: dict[str, np.ndarray] = segments.probabilities
        self.overlayTitle, self.highest, self.unit = _("Probability"), 1.0, _("from 0 to 1")
        if overlayNode is not None:
            overlay = yield from resampling(imageFromVolumeNode(overlayNode, copy=False), self.grid)
            self.overlayTitle = overlayNode.GetAttribute(TITLE) or _("Attention")
            self.highest, self.unit = highestOf(overlayNode), unitText(overlayNode)
            self.overlays = dict.fromkeys(segments.labels, overlay)
        sizes = [(s.stop - s.start) for s in self.box]
        spacing = np.array(self.grid.spacing[::-1])
        self.perMm = PANEL / float((np.array(sizes) * spacing).max())

    def draw(self, rows: Sequence[LesionRow]) -> Steps[np.ndarray]:
        """uint8 [height, width, 3]."""
        width = 6 * PANEL + 7 * GAP
        height = HEADER + len(rows) * (PANEL + CAPTION + GAP) + FOOTER
        canvas = np.zeros((height, width, 3), np.uint8)
        volumes = self.table.volumes().items()
        title = _("{run}: {volumes}").format(
            run=self.table.segments.run,
            volumes=", ".join(f"{label} {volume:.1f} ml" for label, volume in volumes),
        )
        drawText(canvas, GAP, 8, title, 22, bold=True)
        halves = (_("Input with the answer's outline"), self.overlayTitle)
        for n, text in enumerate(halves):
            x = GAP + n * 3 * (PANEL + GAP)
            drawText(canvas, x, 40, text, 15, GRAY)
        for n, row in enumerate(rows):
            yield from self._row(canvas, HEADER + n * (PANEL + CAPTION + GAP), row)
        self._footer(canvas, height - FOOTER)
        yield
        return canvas

    def _row(self, canvas: np.ndarray, y: int, row: LesionRow) -> Steps[None]:
        kji = kjiOf(row.voxels, self.grid.shape)
        mask = np.zeros(self.grid.shape, bool)
        mask.reshape(-1)[row.voxels] = True
        yield
        answer = self.table.segments.mask(row.lesion.label)
        color = np.array(self.table.segments.color(row.lesion.label))
        for n, (plane, (axis, letters)) in enumerate(PLANES.items()):
            # Where the lesion is widest: its centre may lie outside of it.
            at = int(np.bincount(kji[axis]).argmax())
            gray = (self._cut(self.image, axis, at) - self.low) / max(self.high - self.low, 1e-6)
            gray = np.repeat(np.clip(gray, 0, 1)[..., None], 3, axis=-1)
            outline = _edge(self._cut(answer, axis, at) >= 0.5)
            own = _edge(self._cut(mask, axis, at) >= 0.5)
            yield
            outlined = np.where(outline[..., None], 0.55 * color, gray)
            outlined = np.where(own[..., None], color, outlined)
            level = self._cut(self.overlays[row.lesion.label], axis, at) / self.highest
            colors = overlayTable()[np.rint(np.clip(level, 0, 1) * 255).astype(int)]
            alpha = OPACITY * (level >= CLEAR_BELOW)[..., None]
            overlaid = gray * (1 - alpha) + colors * alpha
            overlaid = np.where(own[..., None], 1.0, overlaid)
            for half, picture in enumerate((outlined, overlaid)):
                x = GAP + (n + 3 * half) * (PANEL + GAP)
                self._paste(canvas, x, y, picture)
                place = self._place(row, axis, at)
                text = _("{plane} {place}").format(plane=_planeName(plane), place=place)
                drawText(canvas, x + 4, y + PANEL - 17, text, 12, GRAY)
                _letters(canvas, x, y, letters)
                yield
        self._caption(canvas, y + PANEL + 6, row)

    def _cut(self, array: np.ndarray, axis: int, at: int) -> np.ndarray:
        """One plane at the sheet's scale, as a reader looks at it: right or anterior is left."""
        from scipy import ndimage

        rest = tuple(s for n, s in enumerate(self.box) if n != axis)
        plane = np.take(array, at, axis=axis)[rest][::-1, ::-1]
        spacing = np.array([s for n, s in enumerate(self.grid.spacing[::-1]) if n != axis])
        size = np.maximum(np.rint(np.array(plane.shape) * spacing * self.perMm), 1).astype(int)
        # Pixel centres on voxel coordinates, edges on edges.
        lines = [(np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(size, plane.shape, strict=True)]
        return ndimage.map_coordinates(
            plane.astype(np.float32), np.meshgrid(*lines, indexing="ij"), order=1, mode="nearest"
        )

    def _paste(self, canvas: np.ndarray, x: int, y: int, picture: np.ndarray) -> None:
        picture = picture[:PANEL, :PANEL]
        top, left = (PANEL - picture.shape[0]) // 2, (PANEL - picture.shape[1]) // 2
        part = canvas[y + top : y + top + picture.shape[0], x + left : x + left + picture.shape[1]]
        part[:] = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)

    def _place(self, row: LesionRow, axis: int, at: int) -> str:
        ijk = np.zeros(3)
        ijk[2 - axis] = at
        ras = self.grid.to_ras(ijk)
        letter = "SAR"[axis]
        return f"{letter} {ras[2 - axis]:.0f} mm"

    def _caption(self, canvas: np.ndarray, y: int, row: LesionRow) -> None:
        lesion = row.lesion
        first = _(
            "Lesion {number}, {label}: {volume:.2f} ml, longest diameter {longest:.1f} mm, {place} "
            "(R {r:.0f}, A {a:.0f}, S {s:.0f} mm)"
        ).format(
            number=lesion.number, label=lesion.label, volume=lesion.volume_ml,
            longest=lesion.longest_diameter_mm, place=row.place,
            r=lesion.center_ras[0], a=lesion.center_ras[1], s=lesion.center_ras[2],
        )  # fmt: skip
        drawText(canvas, GAP, y, first, 14)
        means = ", ".join(f"{key} {meanText(value)}" for key, value in lesion.inputs.items())
        x = GAP + drawText(canvas, GAP, y + 22, _("Probability"), 14, GRAY) + 8
        width, height = 160, 12
        fillBox(canvas, x, y + 25, width, height, (60, 60, 60))
        mean = round(width * lesion.mean_probability)
        fillBox(canvas, x, y + 25, mean, height, (86, 180, 233))
        highest = min(round(width * lesion.max_probability), width - 2)
        fillBox(canvas, x + highest, y + 22, 2, height + 6, (255, 255, 255))
        text = _("mean {mean:.2f}, highest {highest:.2f} of 1").format(
            mean=lesion.mean_probability, highest=lesion.max_probability
        )
        x += width + 10
        x += drawText(canvas, x, y + 22, text, 14, GRAY)
        if means:
            text = _(";  mean of {means}").format(means=means)
            drawText(canvas, x, y + 22, text, 14, GRAY)

    def _footer(self, canvas: np.ndarray, y: int) -> None:
        x, width = GAP + 3 * (PANEL + GAP), 300
        bar = overlayTable()[np.linspace(0, 255, width).astype(int)]
        canvas[y + 10 : y + 24, x : x + width] = np.rint(bar * 255).astype(np.uint8)
        for part in (0.0, 0.5, 1.0):
            value = f"{part * self.highest:g}"
            drawText(canvas, x + round(part * width), y + 26, value, 12, GRAY, align="middle")
        text = _("{unit}; clear below {low:g}").format(
            unit=self.unit, low=CLEAR_BELOW * self.highest
        )
        drawText(canvas, x + width + 14, y + 9, text, 13, GRAY)
        length = round(50 * self.perMm)
        fillBox(canvas, GAP, y + 16, length, 3, (235, 235, 235))
        drawText(canvas, GAP + length + 8, y + 9, _("{length} mm").format(length=50), 13, GRAY)
        note = _("Bright outline: this lesion; dim: the others. Research and teaching only.")
        drawText(canvas, GAP, y + 46, note, 12, GRAY)


def _planeName(plane: str) -> str:
    return {"axial": _("axial"), "coronal": _("coronal"), "sagittal": _("sagittal")}[plane]


def _boxAbove(array: np.ndarray, limit: float) -> Steps[tuple[slice, ...] | None]:
    """The smallest box [k, j, i] around all above the limit; None when nothing is."""
    lines = [np.zeros(n, bool) for n in array.shape]
    slices = max(1, VOXELS_A_STEP // array[0].size)
    for first in range(0, len(array), slices):
        above = array[first : first + slices] > limit
        lines[0][first : first + slices] = above.any(axis=(1, 2))
        lines[1] |= above.any(axis=(0, 2))
        lines[2] |= above.any(axis=(0, 1))
        yield
    ends = [np.flatnonzero(line)[[0, -1]] for line in lines if line.any()]
    return tuple(slice(int(a), int(b) + 1) for a, b in ends) or None


def _padded(box, shape: tuple[int, ...], margin: int = 4) -> tuple[slice, ...]:
    if box is None:
        return tuple(slice(0, n) for n in shape)
    return tuple(
        slice(max(s.start - margin, 0), min(s.stop + margin, n))
        for s, n in zip(box, shape, strict=True)
    )


def _edge(mask: np.ndarray) -> np.ndarray:
    """The pixels at both sides of the border of what is True."""
    from scipy import ndimage

    return ndimage.binary_dilation(mask) & ~ndimage.binary_erosion(mask)


def _letters(canvas: np.ndarray, x: int, y: int, letters: str) -> None:
    middle = PANEL // 2
    places = (
        (letters[0], x + 3, y + middle - 8, "left"),
        (letters[1], x + PANEL - 3, y + middle - 8, "right"),
        (letters[2], x + middle, y + 2, "middle"),
        (letters[3], x + middle, y + PANEL - 18, "middle"),
    )
    for letter, left, top, align in places:
        drawText(canvas, left, top, letter, 13, GRAY, align=align)
