"""Images in physical space: reading, writing, orientation, resampling, registration."""

from medsegcore.imaging.geometry import (
    Grid,
    check_overlap,
    fov_overlap,
    grid_with_spacing,
    patient_grid,
    reference_grid,
)
from medsegcore.imaging.image import Image, check_image, from_sitk, to_sitk, without_nans
from medsegcore.imaging.io import (
    DicomSeries,
    file_and_volume,
    list_dicom_series,
    list_volumes,
    read_dicom_series,
    read_dicom_slices,
    read_grid,
    read_image,
    read_labels,
    write_image,
    writing_nifti,
)
from medsegcore.imaging.measures import Measures, measure
from medsegcore.imaging.region import Region
from medsegcore.imaging.registration import Registration, register
from medsegcore.imaging.resample import reorient, resample

__all__ = [
    "DicomSeries",
    "Grid",
    "Image",
    "Measures",
    "Region",
    "Registration",
    "check_image",
    "check_overlap",
    "file_and_volume",
    "fov_overlap",
    "from_sitk",
    "grid_with_spacing",
    "list_dicom_series",
    "list_volumes",
    "measure",
    "patient_grid",
    "reference_grid",
    "read_dicom_series",
    "read_dicom_slices",
    "read_grid",
    "read_image",
    "read_labels",
    "register",
    "reorient",
    "resample",
    "to_sitk",
    "without_nans",
    "write_image",
    "writing_nifti",
]
