"""Registration of one image to another by mutual information, with SimpleITK."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from medsegcore.errors import CancelledError, InputError, RunError
from medsegcore.imaging.geometry import check_overlap
from medsegcore.imaging.image import Image, check_image, from_sitk, to_sitk, without_nans

if TYPE_CHECKING:
    import SimpleITK as sitk

Kind = Literal["rigid", "affine", "bspline"]
LEVELS = ((4, 2.0), (2, 1.0), (1, 0.0))  # shrink factor, smoothing in mm
ITERATIONS = 100
# Share of each level's voxels that the metric looks at: a tenth of the coarsest is too few to
# find large turns.
SAMPLES = (1.0, 0.5, 0.1)
MINIMUM_VOXELS = 4  # along each axis, for ITK's recursive filters
SPLINE_SPACING_MM = 40.0


@dataclass(frozen=True)
class Registration:
    """What a registration found.

    Attributes:
        transform: SimpleITK transform from the fixed image's points to the moving one's (LPS mm).
        moved: the moving image on the fixed image's grid, float32.
        kind: "rigid", "affine" or "bspline".
        quality_before, quality_after: normalised mutual information of the fixed and the moving
            image over their common part, 0 (independent) to 1 (each tells the other); more is
            better.
    """

    transform: sitk.Transform
    moved: Image
    kind: Kind
    quality_before: float
    quality_after: float


def register(
    fixed: Image,
    moving: Image,
    kind: Kind = "rigid",
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    seed: int = 0,
) -> Registration:
    """Move one image onto another by Mattes mutual information, coarse to fine.

    Args:
        fixed, moving: images of one patient, of any contrasts.
        kind: "rigid"; "affine" starts from rigid, "bspline" from affine.
        progress: called with the share that is done, 0..1.
        cancelled: asked at every step; the registration stops when it says True.
        seed: of the random choice of samples, from 0; the same seed gives the same answer.

    Raises:
        EmptyImageError, GeometryError: an image cannot be used.
        InputError: fewer than four voxels along an axis.
        OverlapError: less than a fifth of the fields of view in common.
        CancelledError: `cancelled` said so.
        RunError: no overlap was left on the way.
    """
    check_image(fixed, "The fixed image")
    check_image(moving, "The moving image")
    for image, what in ((fixed, "fixed"), (moving, "moving")):
        if min(image.shape) < MINIMUM_VOXELS:
            raise InputError(
                f"The {what} image has only {min(image.shape)} voxels along an axis.",
                f"A volume of at least {MINIMUM_VOXELS} slices is needed.",
            )
    check_overlap(fixed.grid, moving.grid, "The moving image", minimum=0.2)
    fixed, moving = without_nans(fixed), without_nans(moving)
    images = to_sitk(fixed), to_sitk(moving)
    stages: list[Kind] = ["rigid", "affine", "bspline"]
    stages = stages[: stages.index(kind) + 1]
    done = _Progress(len(stages) * len(LEVELS), progress, cancelled)
    import SimpleITK as sitk

    transform = sitk.Transform(3, sitk.sitkIdentity)
    for stage in stages:
        transform = _stage(stage, images, transform, done, seed)
    before = _on_grid(images, sitk.Transform(3, sitk.sitkIdentity), fixed)
    after = _on_grid(images, transform, fixed)
    if progress is not None:
        progress(1.0)
    return Registration(
        transform=transform,
        moved=Image(after, fixed.affine, moving.name),
        kind=kind,
        quality_before=_normalised_mutual_information(fixed.array, before),
        quality_after=_normalised_mutual_information(fixed.array, after),
    )


class _StopError(Exception):
    """Leaves an optimiser from within: LBFGSB does not heed `StopRegistration`."""


class _Progress:
    """Counts iterations over all stages and levels, and carries the wish to stop."""

    def __init__(
        self,
        levels: int,
        report: Callable[[float], None] | None,
        cancelled: Callable[[], bool] | None,
    ):
        self.levels, self.report, self.cancelled = levels, report, cancelled
        self.finished = 0
        self.reason: Exception | None = None

    def watch(self, method: sitk.ImageRegistrationMethod, iterations: int) -> None:
        import SimpleITK as sitk

        def iterated() -> None:
            try:
                if self.cancelled is not None and self.cancelled():
                    raise CancelledError("The registration was cancelled.")
                if self.report is not None:
                    part = min(method.GetOptimizerIteration() / iterations, 1.0)
                    level = self.finished + method.GetCurrentLevel() + part
                    self.report(min(level / self.levels, 1.0))
            except Exception as error:
                self.reason = error
                raise _StopError from error

        method.AddCommand(sitk.sitkIterationEvent, iterated)

    def stage_finished(self) -> None:
        self.finished += len(LEVELS)


@contextlib.contextmanager
def _quiet_stop() -> Iterator[None]:
    """SimpleITK prints what a callback raises; a wish to stop is no news for the log."""
    hook = sys.excepthook

    def filtered(kind, value, traceback) -> None:
        if not issubclass(kind, _StopError):
            hook(kind, value, traceback)

    sys.excepthook = filtered
    try:
        yield
    finally:
        sys.excepthook = hook


def _stage(
    kind: Kind,
    images: tuple[sitk.Image, sitk.Image],
    before: sitk.Transform,
    done: _Progress,
    seed: int,
) -> sitk.Transform:
    """One stage on top of what the stage before has found."""
    import SimpleITK as sitk

    fixed, moving = images
    method = sitk.ImageRegistrationMethod()
    # Several threads add up the histogram in another order each time.
    method.SetNumberOfWorkUnits(1)
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    # What is left to bend is found with few samples as well, and they are what takes the time.
    samples = SAMPLES[-1:] * len(LEVELS) if kind == "bspline" else SAMPLES
    # SimpleITK takes the time of day for 0.
    method.SetMetricSamplingPercentagePerLevel(samples, seed + 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel([shrink for shrink, _ in LEVELS])
    method.SetSmoothingSigmasPerLevel([sigma for _, sigma in LEVELS])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetMovingInitialTransform(before)
    iterations = ITERATIONS // 4 if kind == "bspline" else ITERATIONS
    if kind == "bspline":
        size = [n * s for n, s in zip(fixed.GetSize(), fixed.GetSpacing(), strict=True)]
        mesh = [max(round(mm / SPLINE_SPACING_MM), 1) for mm in size]
        transform = sitk.BSplineTransformInitializer(fixed, mesh)
        method.SetOptimizerAsLBFGSB(numberOfIterations=iterations)
    else:
        make = sitk.Euler3DTransform if kind == "rigid" else lambda: sitk.AffineTransform(3)
        transform = sitk.CenteredTransformInitializer(
            fixed, fixed, make(), sitk.CenteredTransformInitializerFilter.GEOMETRY
        )
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=1.0, minStep=1e-4, numberOfIterations=iterations
        )
        method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    done.watch(method, iterations)
    try:
        with _quiet_stop():
            method.Execute(fixed, moving)
    except RuntimeError as error:
        if done.reason is not None:
            raise done.reason from None
        raise RunError(
            "The registration lost the overlap of the two images.",
            "Check that both belong to the same patient, or align them roughly by hand first.",
        ) from error
    done.stage_finished()
    return sitk.CompositeTransform([before, transform])


def _on_grid(
    images: tuple[sitk.Image, sitk.Image], transform: sitk.Transform, fixed: Image
) -> np.ndarray:
    import SimpleITK as sitk

    moved = sitk.Resample(images[1], images[0], transform, sitk.sitkLinear, 0.0)
    return from_sitk(moved).array.astype(np.float32)


def _normalised_mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """2 I(a, b) / (H(a) + H(b)) of the 64-bin joint histogram where either is not 0."""
    common = (a != 0) | (b != 0)
    joint, _, _ = np.histogram2d(a[common], b[common], bins=64)
    joint /= max(joint.sum(), 1.0)

    def entropy(p: np.ndarray) -> float:
        p = p[p > 0]
        return float(-(p * np.log(p)).sum())

    single = entropy(joint.sum(axis=0)) + entropy(joint.sum(axis=1))
    return 2 * (single - entropy(joint.ravel())) / single if single > 0 else 0.0
