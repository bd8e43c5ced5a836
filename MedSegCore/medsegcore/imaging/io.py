"""Reading and writing NIfTI, NRRD, MHA and DICOM series, through SimpleITK."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsegcore.errors import (
    ColorImageError,
    GeometryError,
    MultiVolumeError,
    OutputError,
    UnreadableImageError,
)
from medsegcore.files import replacing
from medsegcore.imaging.geometry import Grid
from medsegcore.imaging.image import LPS_TO_RAS, Image, from_sitk, storable, to_sitk

if TYPE_CHECKING:
    import SimpleITK as sitk

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
DICOM_TAGS = {"description": "0008|103e", "modality": "0008|0060"}
# Degrees; ten centimetres of slices then end less than 0.2 mm beside their place.
MAXIMUM_TILT = 0.1
# What is packed between two looks at the interface, and how tightly: slower levels gain little on
# images.
PIECE_BYTES = 1 << 18
PACKING = 3
# With the four bytes that say that nothing comes between it and the voxels.
NIFTI_HEADER = 352
AGAIN = "Copy or export it again from its source."


@dataclass(frozen=True)
class DicomSeries:
    """One series of a folder of DICOM files. Nothing that names a patient is kept.

    Attributes:
        uid: the series instance UID.
        description: SeriesDescription, "" when absent.
        modality: e.g. "MR".
        files: paths in slice order.
    """

    uid: str
    description: str
    modality: str
    files: tuple[str, ...]


def read_image(path: str | Path, volume: int | None = None) -> Image:
    """Read one volume from a NIfTI, NRRD or MHA file, or from a folder with one DICOM series.

    Args:
        path: "FILE@3" means volume 3 of a 4-D file, unless a file is called so.
        volume: which volume of a 4-D file, from 0.

    Raises:
        UnreadableImageError: missing, truncated or not an image.
        MultiVolumeError: several volumes and none chosen, or no volume of that number.
        ColorImageError: RGB, vectors or complex numbers.
        GeometryError: a geometry that ITK refuses, or one that is not finite.
    """
    if volume is None:
        path, volume = file_and_volume(path)
    path = Path(path)
    if path.is_dir():
        return read_dicom_series(path)
    reader = _opened(path)
    _check_whole(path, reader)
    image = _executed(reader, path)
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise ColorImageError(
            f"'{path}' has {image.GetNumberOfComponentsPerPixel()} values per voxel (RGB or "
            "vectors).",
            "A gray-scale volume is needed.",
        )
    if "complex" in image.GetPixelIDTypeAsString():
        raise ColorImageError(
            f"'{path}' has complex values.", "Export the magnitude as a volume of its own."
        )
    return from_sitk(_chosen_volume(image, volume, path), _plain_name(path))


def read_labels(path: str | Path) -> Image:
    """Read a mask or a label map.

    Raises:
        UnreadableImageError: as `read_image`; or values that are no whole numbers.
    """
    image = read_image(path)
    if image.array.dtype.kind != "f":
        return image
    whole = np.rint(image.array)
    # Scaled integers come back as nearly whole numbers.
    strange = image.array[~(np.abs(image.array - whole) < 1e-3)]
    if strange.size:
        raise UnreadableImageError(
            f"'{path}' holds values such as {float(strange[0]):g}, no labels.",
            "Give label maps, not probabilities or smoothed masks.",
        )
    return image.with_array(whole)


def read_grid(path: str | Path) -> Grid:
    """Where the volume of a file lies, from its header alone where that says so.

    Raises:
        UnreadableImageError, GeometryError, ...: as `read_image`.
    """
    file = Path(file_and_volume(path)[0])
    if file.is_dir():
        return read_image(file).grid
    reader = _opened(file)
    n = reader.GetDimension()
    if n < 3:
        return read_image(path).grid
    lps = np.eye(4)
    direction = np.array(reader.GetDirection()).reshape(n, n)[:3, :3]
    lps[:3, :3] = direction * np.array(reader.GetSpacing()[:3])
    lps[:3, 3] = reader.GetOrigin()[:3]
    i, j, k = reader.GetSize()[:3]
    return Grid((k, j, i), LPS_TO_RAS @ lps)


def file_and_volume(path: str | Path) -> tuple[str | Path, int | None]:
    """ "a.nii.gz@3" to ("a.nii.gz", 3); a file of exactly that name comes first."""
    found = re.fullmatch(r"(.+)@(\d+)", str(path))
    if found is None or Path(path).exists():
        return path, None
    return found[1], int(found[2])


def list_volumes(path: str | Path) -> list[str]:
    """One line for each volume of a file, e.g. "volume 0: 256 x 256 x 24 voxels".

    Raises:
        UnreadableImageError, GeometryError: as `read_image`.
    """
    size = _opened(Path(path)).GetSize()
    n = size[3] if len(size) > 3 else 1
    text = " x ".join(str(s) for s in (*size, 1)[:3])
    return [f"volume {i}: {text} voxels" for i in range(n)]


def list_dicom_series(folder: str | Path) -> list[DicomSeries]:
    """The image series directly in a folder, in the order of their UIDs."""
    import SimpleITK as sitk

    found = []
    for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)):
        files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)
        reader = sitk.ImageFileReader()
        reader.SetFileName(files[0])
        tags = dict.fromkeys(DICOM_TAGS, "")
        with contextlib.suppress(RuntimeError):
            reader.ReadImageInformation()
            for name, tag in DICOM_TAGS.items():
                if reader.HasMetaDataKey(tag):
                    tags[name] = reader.GetMetaData(tag).strip()
        found.append(DicomSeries(uid, tags["description"], tags["modality"], tuple(files)))
    return found


def read_dicom_series(folder: str | Path, series_uid: str | None = None) -> Image:
    """Read a DICOM series of a folder as one volume.

    Raises:
        UnreadableImageError: no series there, not the wanted one, or unreadable slices.
        MultiVolumeError: several series and none chosen.
        ColorImageError: RGB slices.
        GeometryError: slices that are not evenly spaced, not parallel, or shifted (gantry tilt).
    """

    series = list_dicom_series(folder)
    if series_uid is not None:
        series = [one for one in series if one.uid == series_uid]
    if not series:
        raise UnreadableImageError(
            f"There is no DICOM series in '{folder}'.", "Give the folder that holds the slices."
        )
    if len(series) > 1:
        names = "; ".join(f"{s.description or 'unnamed'} ({len(s.files)} files)" for s in series)
        raise MultiVolumeError(
            f"'{folder}' holds {len(series)} DICOM series: {names}.", "Choose one of them."
        )
    image = _stacked(series[0].files, Path(folder))
    return from_sitk(image, series[0].description)


def read_dicom_slices(files: Sequence[str | Path]) -> tuple[Image, list[int]]:
    """Read DICOM slices as one volume, whatever series they say that they belong to.

    Returns:
        The volume, and for each of its slices k which of `files` it is.

    Raises:
        UnreadableImageError, ColorImageError, GeometryError: as `read_dicom_series`.
    """
    import SimpleITK as sitk

    if not files:
        raise UnreadableImageError("There is no DICOM slice.", "Check the folder.")
    heights = []
    for file in files:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise _read_error(Path(file), error) from error
        normal = np.array(reader.GetDirection()).reshape(3, 3)[:, 2]
        heights.append(float(np.array(reader.GetOrigin()) @ normal))
    order = [int(n) for n in np.argsort(heights, kind="stable")]
    image = _stacked([str(files[n]) for n in order], Path(files[0]).parent)
    return from_sitk(image), order


def _stacked(files: Sequence[str], folder: Path) -> sitk.Image:
    """DICOM slices in the order of their positions as one 3-D image."""
    import SimpleITK as sitk

    _check_slice_positions(files)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    image = _executed(reader, folder)
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise ColorImageError(f"The DICOM series in '{folder}' is RGB.", "Gray-scale is needed.")
    return _chosen_volume(image, None, folder)


def write_image(image: Image, path: str | Path) -> None:
    """Write NIfTI, NRRD or MHA (by extension); the file appears as a whole or not at all.

    bool is stored as uint8 and float16 as float32. Nothing but values and geometry is written.

    Raises:
        GeometryError: NIfTI cannot hold axes that are not orthogonal.
        OutputError: unknown extension, no such folder, no space.
    """
    import SimpleITK as sitk

    path = Path(path)
    extension = next((e for e in EXTENSIONS if path.name.lower().endswith(e)), None)
    if extension is None or extension in (".nhdr", ".mhd"):
        raise OutputError(
            f"'{path.name}' has an extension that cannot be written.",
            "Use .nii.gz, .nii, .nrrd or .mha.",
        )
    if not path.parent.is_dir():
        raise OutputError(f"There is no folder '{path.parent}'.", "Create it first.")
    if extension.startswith(".nii"):
        # ITK would straighten the axes without a word, and the voxels would stand elsewhere.
        image.grid.check(f"What is to be written to '{path.name}'")
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(suffix=extension, prefix=".", dir=path.parent)
        os.close(handle)
        sitk.WriteImage(to_sitk(image), temporary, useCompression=True)
        # A full disk can leave ITK satisfied with a file that it could not write to the end.
        _check_whole(Path(temporary), _opened(Path(temporary)))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, RuntimeError, UnreadableImageError) as error:
        partly = isinstance(error, UnreadableImageError)
        why = "only a part of it was taken." if partly else _last_line(error)
        raise OutputError(
            f"'{path}' cannot be written: {why}", "Check the free space and the permissions."
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def writing_nifti(image: Image, path: str | Path) -> Iterator[None]:
    """`write_image` of a .nii.gz a piece at a time, for an interface that is to stay live.

    Iterate to the end. A file that is given up, or that cannot be written, leaves nothing.

    Raises:
        GeometryError, OutputError: as `write_image`.
    """
    path = Path(path)
    image.grid.check(f"What is to be written to '{path.name}'")
    # Without the name and the time of a file, which gzip's own header would tell.
    packer = zlib.compressobj(PACKING, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    with replacing(path) as temporary, temporary.open("wb") as file:
        header = _nifti_header(image, path.with_name(f".{path.name}.header.nii"))
        file.write(packer.compress(header))
        for plane in image.array:
            values = storable(plane).data.cast("B")
            for first in range(0, len(values), PIECE_BYTES):
                file.write(packer.compress(values[first : first + PIECE_BYTES]))
                yield
        file.write(packer.flush())


def _nifti_header(image: Image, path: Path) -> bytes:
    """As ITK writes it: it is the same for one voxel of the image, but for their number.

    Args:
        path: of a file that is made for it and taken away again.

    Raises:
        OutputError: there is no room for it.
    """
    import SimpleITK as sitk

    one = image.with_array(np.zeros((1, 1, 1), image.array.dtype))
    try:
        sitk.WriteImage(to_sitk(one), str(path))
        header = bytearray(path.read_bytes()[:NIFTI_HEADER])
    except RuntimeError as error:
        raise OutputError(
            f"'{path}' cannot be written: {_last_line(error)}",
            "Check the free space and the permissions.",
        ) from error
    finally:
        path.unlink(missing_ok=True)
    if len(header) < NIFTI_HEADER:
        # A full disk can leave ITK satisfied.
        raise OutputError(
            f"'{path}' cannot be written: only a part of it was taken.",
            "Check the free space and the permissions.",
        )
    struct.pack_into("=3h", header, 42, *reversed(image.shape))
    return bytes(header)


def _opened(path: Path) -> sitk.ImageFileReader:
    """A reader that has read the header."""
    import SimpleITK as sitk

    if not path.is_file():
        raise UnreadableImageError(f"There is no file '{path}'.", "Check the path.")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _read_error(path, error) from error
    return reader


def _executed(reader: sitk.ImageFileReader | sitk.ImageSeriesReader, path: Path) -> sitk.Image:
    try:
        return reader.Execute()
    except RuntimeError as error:
        raise _read_error(path, error) from error


def _read_error(path: Path, error: RuntimeError) -> UnreadableImageError | GeometryError:
    # A folder may be called "spacing".
    text = str(error).replace(str(path), "").replace(path.name, "").lower()
    if "orthonormal" in text or "determinant" in text or "spacing" in text:
        return GeometryError(
            f"'{path}' has a geometry with a zero determinant or axes that are not orthogonal.",
            "Its header is damaged or it was acquired with a gantry tilt: resample it first.",
        )
    return UnreadableImageError(f"'{path}' cannot be read: {_last_line(error)}", AGAIN)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".") + "."


def _check_whole(path: Path, reader: sitk.ImageFileReader) -> None:
    """Raise UnreadableImageError for a file that was cut: ITK fills the rest with zeros."""
    if path.name.lower().endswith(".nii.gz"):
        try:
            with gzip.open(path) as file:
                size = 0
                while block := file.read(1 << 22):
                    size += len(block)
        except (EOFError, OSError, zlib.error) as error:
            raise UnreadableImageError(
                f"'{path}' is truncated or damaged: its compressed data cannot be unpacked.", AGAIN
            ) from error
    elif path.suffix.lower() == ".nii":
        size = path.stat().st_size
    else:
        return
    bits = int(reader.GetMetaData("bitpix")) if reader.HasMetaDataKey("bitpix") else 8
    expected = int(np.prod([int(n) for n in reader.GetSize()])) * bits // 8
    if reader.HasMetaDataKey("vox_offset"):
        expected += int(float(reader.GetMetaData("vox_offset")))
    if size < expected:
        raise UnreadableImageError(
            f"'{path}' is truncated: {size} of at least {expected} bytes are there.", AGAIN
        )


def _chosen_volume(image: sitk.Image, volume: int | None, path: Path) -> sitk.Image:
    import SimpleITK as sitk

    if image.GetDimension() == 2:
        return sitk.JoinSeries(image)
    if image.GetDimension() == 3:
        count = 1
    elif image.GetDimension() == 4:
        count = image.GetSize()[3]
    else:
        raise MultiVolumeError(
            f"'{path}' has {image.GetDimension()} dimensions.", "Give a single 3-D volume."
        )
    if volume is None and count > 1:
        raise MultiVolumeError(
            f"'{path}' is 4-D and holds {count} volumes (0 to {count - 1}) of "
            f"{' x '.join(str(n) for n in image.GetSize()[:3])} voxels.",
            "Choose one of them.",
        )
    if volume is not None and not 0 <= volume < count:
        raise MultiVolumeError(
            f"'{path}' has no volume {volume}: it holds {count} (0 to {count - 1}).",
            "Choose one of them.",
        )
    if image.GetDimension() == 3:
        return image
    return sitk.Extract(image, [*image.GetSize()[:3], 0], [0, 0, 0, volume or 0])


def _check_slice_positions(files: Sequence[str]) -> None:
    """ITK stacks slices evenly and upright whatever their positions say: all would be shifted."""
    import SimpleITK as sitk

    origins, directions = [], []
    for file in files:
        reader = sitk.ImageFileReader()
        reader.SetFileName(file)
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise _read_error(Path(file), error) from error
        if reader.GetDimension() == 3 and reader.GetSize()[2] > 1:
            return
        if not reader.HasMetaDataKey("0020|0032"):
            return
        origins.append(reader.GetOrigin())
        directions.append(reader.GetDirection())
    if np.ptp(np.array(directions), axis=0).max() > 1e-2:
        raise GeometryError(
            "The slices of the DICOM series are not parallel to each other.",
            "Give a series of one plane, no localizer.",
        )
    steps = np.diff(np.array(origins), axis=0)
    normal = np.array(directions[0]).reshape(3, 3)[:, 2]
    gaps = np.abs(steps @ normal)
    if gaps.size and (gaps.max() - gaps.min()) > 0.1 * max(float(np.median(gaps)), 1e-3):
        raise GeometryError(
            f"The slices of the DICOM series lie {gaps.min():.2f} to {gaps.max():.2f} mm apart: "
            "some are missing or there are several volumes.",
            "Export the whole series again.",
        )
    shift = steps.sum(axis=0) - steps.sum(axis=0) @ normal * normal
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(shift), gaps.sum())))
    if tilt > MAXIMUM_TILT:
        raise GeometryError(
            f"The slices of the DICOM series are shifted against each other by a gantry tilt of "
            f"{tilt:.1f} degrees.",
            "Resample it to upright slices first.",
        )


def _plain_name(path: Path) -> str:
    for extension in EXTENSIONS:
        if path.name.lower().endswith(extension):
            return path.name[: -len(extension)]
    return path.stem
