"""`Image`: an array with the affine that says where it lies in the patient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from medsegcore.errors import EmptyImageError, GeometryError
from medsegcore.imaging.geometry import Grid

if TYPE_CHECKING:
    import SimpleITK as sitk

# ITK and DICOM count x to the patient's left and y to the back; everything of ours is in RAS.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Image:
    """Voxel values and their place in the patient.

    Attributes:
        array: [k, j, i] (slice, row, column), any real dtype.
        affine: 4x4, IJK to RAS in mm: affine @ (i, j, k, 1).
        name: what to call it in messages; never a patient's name.
    """

    array: np.ndarray
    affine: np.ndarray
    name: str = ""

    @property
    def grid(self) -> Grid:
        """Shape and affine."""
        return Grid(self.array.shape, self.affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(k, j, i)."""
        return self.array.shape

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along i, j, k."""
        return self.grid.spacing

    def with_array(self, array: np.ndarray) -> Image:
        """Other values on the same grid."""
        return replace(self, array=array)

    def astype(self, dtype: np.typing.DTypeLike) -> Image:
        """The same values in another dtype."""
        return self.with_array(self.array.astype(dtype))


def check_image(image: Image, what: str = "The image") -> None:
    """Raise what is wrong with an image that a model is to look at.

    Raises:
        GeometryError: not 3-D, a non-finite affine, zero determinant, axes not orthogonal.
        EmptyImageError: no voxels, no finite value, or one constant value.
    """
    if image.array.ndim != 3:
        raise GeometryError(
            f"{what} has {image.array.ndim} dimensions.", "A volume with three axes is needed."
        )
    if image.array.size == 0:
        raise EmptyImageError(f"{what} has no voxels: its size is {image.shape[::-1]}.")
    image.grid.check(what)
    finite = image.array[np.isfinite(image.array)]
    if finite.size == 0:
        raise EmptyImageError(f"{what} holds no finite value, only NaN.", "Load it again.")
    low, high = finite.min(), finite.max()
    if low == high:
        raise EmptyImageError(
            f"{what} is constant: every voxel is {float(low):g}.",
            "Check that the right volume was chosen.",
        )


def without_nans(image: Image) -> Image:
    """Float32 with NaN and infinity replaced by the smallest finite value, or 0 if that is less.

    That is what background has in practically every image, so that a hole stays a hole.
    """
    finite = np.isfinite(image.array)
    array = image.array.astype(np.float32)
    if not finite.all():
        lowest = float(array[finite].min(initial=0.0))
        array = np.where(finite, array, np.float32(lowest))
    return image.with_array(array)


def storable(array: np.ndarray) -> np.ndarray:
    """The values one after the other, as files can hold them: bool as uint8, float16 as float32."""
    if array.dtype == bool:
        array = array.astype(np.uint8)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    return np.ascontiguousarray(array)


def to_sitk(image: Image) -> sitk.Image:
    """As a SimpleITK image (LPS). bool becomes uint8, float16 becomes float32."""
    import SimpleITK as sitk

    converted = sitk.GetImageFromArray(storable(image.array))
    grid = image.grid
    lps = LPS_TO_RAS @ grid.affine
    converted.SetSpacing(grid.spacing)
    converted.SetOrigin(lps[:3, 3].tolist())
    converted.SetDirection((lps[:3, :3] / np.array(grid.spacing)).ravel().tolist())
    return converted


def from_sitk(image: sitk.Image, name: str = "") -> Image:
    """From a 3-D SimpleITK image of one value per voxel (LPS)."""
    import SimpleITK as sitk

    direction = np.array(image.GetDirection()).reshape(3, 3)
    lps = np.eye(4)
    lps[:3, :3] = direction * np.array(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return Image(sitk.GetArrayFromImage(image), LPS_TO_RAS @ lps, name)
