"""Every error that a user can meet: a stable code, one plain sentence, and what to do about it."""


class MedSegError(Exception):
    """Base of all errors that are the input's or the machine's doing, not a defect of ours.

    Args:
        message: one plain sentence that names what is wrong, with the offending value.
        action: one plain sentence that says what to do; may be empty.
    """

    code = "medseg"
    exit_code = 1

    def __init__(self, message: str, action: str = ""):
        super().__init__(message)
        self.message = message
        self.action = action

    def __str__(self) -> str:
        return f"{self.message} {self.action}".strip()


class InputError(MedSegError):
    """The images that were given cannot be used."""

    code = "input"
    exit_code = 3


class UnreadableImageError(InputError):
    """The file is missing, truncated, or no image."""

    code = "input.unreadable"


class MultiVolumeError(InputError):
    """The file holds several volumes (4-D) and none was chosen."""

    code = "input.multi_volume"


class ColorImageError(InputError):
    """The image is RGB or a vector field instead of one value per voxel."""

    code = "input.color"


class EmptyImageError(InputError):
    """The image has no voxels, only NaN, or one constant value."""

    code = "input.empty"


class GeometryError(InputError):
    """Axes that are not orthogonal, a zero determinant, or a non-finite affine."""

    code = "input.geometry"


class OverlapError(InputError):
    """Two images have less than half of their fields of view in common."""

    code = "input.overlap"


class MissingInputError(InputError):
    """A required input of the model was not given, or a key that the model does not know was."""

    code = "input.missing"


class DatasetError(InputError):
    """The description of a data set, or what it says of its files, cannot be used."""

    code = "input.dataset"


class SettingError(InputError):
    """A setting has a value outside of its range."""

    code = "input.setting"


class EditedSegmentError(InputError):
    """A segment was edited by hand and must not be overwritten."""

    code = "input.edited"


class SegmentsError(InputError):
    """The segments of a run do not make one mask: they overlap, or one is none of the model's."""

    code = "input.segments"


class ModelError(MedSegError):
    """A model folder cannot be used."""

    code = "model"
    exit_code = 4


class ModelNotFoundError(ModelError):
    """No model folder at that path or with that id."""

    code = "model.not_found"


class OtherModelError(ModelError):
    """The worker has another version of the model, or other weights, than was asked for."""

    code = "model.other"


class ModelSchemaError(ModelError):
    """model.json is missing, no JSON, or against the schema."""

    code = "model.schema"


class ModelChecksumError(ModelError):
    """The weights are not those that model.json names (sha256)."""

    code = "model.checksum"


class ModelWeightsError(ModelError):
    """The weights are truncated or do not fit the network."""

    code = "model.weights"


class ModelArchiveError(ModelError):
    """The .zip is damaged, unsafe, or holds no model folder."""

    code = "model.archive"


class RunError(MedSegError):
    """The run itself failed."""

    code = "run"
    exit_code = 5


class PackagesError(RunError):
    """Python packages that a run needs are not installed."""

    code = "run.packages"


class DeviceError(RunError):
    """The wanted device is not there or cannot do the work."""

    code = "run.device"


class OutOfMemoryError(RunError):
    """Memory ran out even with the smallest tile, or a training takes more than there is."""

    code = "run.memory"


class WorkerError(RunError):
    """The worker process does not start, died, or says what is not understood."""

    code = "run.worker"


class CancelledError(RunError):
    """The user cancelled."""

    code = "run.cancelled"
    exit_code = 130


class OutputError(MedSegError):
    """A file could not be written."""

    code = "output"
    exit_code = 6


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of whatever library says that the host's or a device's memory is full.

    torch, safetensors and the loader of shared libraries raise RuntimeError, OSError or
    ImportError with the system's words.
    """
    text = str(error).lower()
    words = (
        "out of memory",
        "not enough memory",
        "cannot allocate memory",
        "can't allocate memory",
    )
    return isinstance(error, MemoryError) or any(said in text for said in words)
