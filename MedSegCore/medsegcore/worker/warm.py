"""Models that are kept ready between runs, and the memory of the devices."""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from medsegcore.errors import (
    ModelNotFoundError,
    OtherModelError,
    OutOfMemoryError,
    is_out_of_memory,
)
from medsegcore.worker.protocol import RunOptions

if TYPE_CHECKING:
    from medsegcore.inference.predictor import Predictor
    from medsegcore.models import ModelFolder

MOST_MODELS = 3
MB = 1e6


def list_devices() -> list[dict[str, Any]]:
    """The devices that can compute: name, title, free_mb and total_mb (None when not known)."""
    import platform

    import torch

    from medsegcore.errors import DeviceError
    from medsegcore.inference.devices import choose_device

    free, total = memory_mb("cpu")
    title = platform.processor() or platform.machine() or "CPU"
    devices = [{"name": "cpu", "title": title, "free_mb": free, "total_mb": total}]
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        name = f"cuda:{number}"
        free, total = memory_mb(name)
        title = torch.cuda.get_device_name(number)
        devices.append({"name": name, "title": title, "free_mb": free, "total_mb": total})
    try:
        choose_device("mps")
    except DeviceError:
        return devices
    free, total = memory_mb("mps")
    devices.append({"name": "mps", "title": "Apple GPU", "free_mb": free, "total_mb": total})
    return devices


def memory_mb(device: str) -> tuple[int | None, int | None]:
    """Free and total memory of a device in MB; None when it cannot be known."""
    import torch

    try:
        if device.startswith("cuda"):
            free, total = torch.cuda.mem_get_info(device)
            # What torch keeps of past runs is there for the next one; the driver counts it as used.
            free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        elif device == "mps":
            total = torch.mps.recommended_max_memory()
            free = total - torch.mps.driver_allocated_memory()
        else:
            import psutil

            memory = psutil.virtual_memory()
            free, total = memory.available, memory.total
    except (RuntimeError, AttributeError, ImportError):
        return None, None
    return int(free / MB), int(total / MB)


class WarmModels:
    """The models that were used last, ready on their devices.

    There are at most three; the one that was not used for longest goes first, also when a device
    has less free memory than the next model says that it needs.

    Args:
        check: called before each layer of a network computes; raises to end a run between two
            layers, because a tile may take many seconds.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._models: OrderedDict[tuple[str, str, str], Predictor] = OrderedDict()

    def get(self, folder: "ModelFolder", options: RunOptions) -> "Predictor":
        """The model on the device and in the precision of the options.

        Raises:
            ModelError, DeviceError: as `Predictor`.
            OutOfMemoryError: it does not fit, even alone.
        """
        key = (str(folder.path.resolve()), options.device, options.precision)
        warm = self._models.pop(key, None)
        # The folder may have been replaced since.
        if warm is not None and warm.description == folder.description:
            self._models[key] = warm
            return warm
        while len(self._models) >= MOST_MODELS:
            self._drop_oldest()
        predictor = self._load(folder, options)
        self._models[key] = predictor
        return predictor

    def _load(self, folder: Any, options: RunOptions) -> "Predictor":
        from medsegcore.inference.devices import choose_device
        from medsegcore.inference.predictor import Predictor

        free, _ = memory_mb(str(choose_device(options.device)))
        while self._models and free is not None and free < folder.description.memory_mb:
            self._drop_oldest()
            free, _ = memory_mb(str(choose_device(options.device)))
        try:
            predictor = Predictor(folder, device=options.device, precision=options.precision)
        except (MemoryError, RuntimeError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"The memory of the device '{options.device}' does not hold the model.",
                "Close other programs or use the device cpu.",
            ) from error
        for layer in predictor.network.modules():
            layer.register_forward_pre_hook(lambda *_: self._check())
        return predictor

    def _drop_oldest(self) -> None:
        import torch

        self._models.popitem(last=False)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def find_model(model: str, wanted: Mapping[str, str] | None = None) -> "ModelFolder":
    """The model on this computer, which need not be the client's.

    Args:
        model: id or folder; of a folder that is not here, the wanted id counts, or its name.
        wanted: id, version and sha256 of the weights, when only that one will do.

    Raises:
        ModelNotFoundError: it is not here.
        OtherModelError: another one is.
    """
    from medsegcore.models import ModelStore

    store = ModelStore()
    try:
        folder = store.find(model)
    except ModelNotFoundError:
        try:
            folder = store.find(wanted["id"] if wanted else re.split(r"[\\/]", model)[-1])
        except ModelNotFoundError as error:
            raise ModelNotFoundError(
                f"The worker has no model '{wanted['id'] if wanted else model}'.", error.action
            ) from error
    if wanted:
        found = folder.description
        here = (found.id, found.version, found.weights.sha256)
        asked = (wanted["id"], wanted["version"], wanted["sha256"])
        if here != asked:
            raise OtherModelError(
                f"The worker has the model {_named(*here)}, but {_named(*asked)} was asked for.",
                "Copy the model's folder to the worker's computer, or choose the model that it "
                "has.",
            )
    return folder


def _named(model_id: str, version: str, sha256: str) -> str:
    return f"'{model_id}' version {version} with the weights {sha256[:8]}"
