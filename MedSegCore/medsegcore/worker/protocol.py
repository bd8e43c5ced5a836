"""What client and server say to each other. No torch here.

One JSON object per line. Requests have "request" and "id", events have "event" and "id". A message
with "bytes": N is followed by N raw bytes: a frame, one part of an array.

    client                                        server
    hello {protocol, share: {folder}}             result {protocol, version, devices, token,
                                                    machine}
    load {model, options}                         result {model, device, need_mb, free_mb}
    predict {model, images, options, wanted}      result {grid, labels, arrays, ...}
    cancel {target}                               error of the target, with code run.cancelled
    quit
    frame {array, bytes} before a predict         frame {array, bytes} before a result

While a request runs: progress {stage, done, total, eta_s}, log {text}; in the end one result or
one error {code, message, action}.

A model is an id or a folder; "wanted" says which ones are meant, {id, version, sha256} of the model
and then of each of the ensemble, because the worker's computer may have others; it may be empty.

An array is named by {"array": NAME, "dtype", "shape"}. When both ends share a disk it is the file
NAME.npy in the client's private folder, otherwise the frames of that name.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsegcore.errors import MedSegError, SettingError

if TYPE_CHECKING:
    from medsegcore.imaging import Image
    from medsegcore.inference import Result

PROTOCOL = 1
FRAME_BYTES = 1 << 20
LINE_BYTES = 1 << 24
TOKEN_FILE = "token"
ECHO_FILE = "echo"
MODES = ("fast", "careful")

Put = Callable[[np.ndarray], dict]
Get = Callable[[Any], np.ndarray]


class ProtocolError(ValueError):
    """What came is no message; the text is the beginning of what came instead."""


@dataclass(frozen=True)
class RunOptions:
    """How to run.

    Attributes:
        device: "auto", "cpu", "mps", "cuda" or "cuda:N".
        mode: "fast" takes the quickest precision of the device; "careful" computes in fp32 and
            averages over the mirrorings that the model knows (up to eight times the time).
        attention: also give the attention maps.
        thresholds: by label name, 0..1; the model's own where none is given.
        min_lesion_ml: smaller lesions are dropped.
        uncertainty: also give the entropy and, when "careful", the spread over the mirrorings.
        dropout: passes with dropout on, whose spread is also given; 0 for none.
        region: a box to work in, as `Region.as_dict` has it, or None.
        ensemble: ids or folders of further models of the same task: the answer is the mean of all,
            and how far they disagree is also given.

    Raises:
        SettingError: an unknown mode, or a value that is not of its type.
    """

    device: str = "auto"
    mode: str = "fast"
    attention: bool = True
    thresholds: Mapping[str, float] = field(default_factory=dict)
    min_lesion_ml: float = 0.0
    uncertainty: bool = False
    region: Mapping[str, Any] | None = None
    dropout: int = 0
    ensemble: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise SettingError(f"There is no mode '{self.mode}'.", f"Modes: {', '.join(MODES)}.")
        numbers = (self.min_lesion_ml, self.dropout, *self.thresholds.values())
        texts = (self.device, *self.ensemble)
        if (
            isinstance(self.ensemble, str)
            or not all(isinstance(text, str) for text in texts)
            or not all(isinstance(number, (int, float)) for number in numbers)
        ):
            raise SettingError("An option of the run is not of its type.", "Correct the options.")

    @classmethod
    def of(cls, options: "RunOptions | Mapping[str, Any] | None") -> "RunOptions":
        """From a mapping, e.g. {"device": "cpu"}; SettingError for an unknown name."""
        if isinstance(options, RunOptions):
            return options
        known = list(cls.__dataclass_fields__)
        if options is not None and not isinstance(options, Mapping):
            raise SettingError("The options are no mapping.", f"Names: {', '.join(known)}.")
        for name in options or {}:
            if name not in known:
                raise SettingError(f"There is no option '{name}'.", f"Options: {', '.join(known)}.")
        read = cls(**(options or {}))
        # JSON knows lists alone.
        return replace(read, ensemble=tuple(read.ensemble))

    def to_json(self) -> dict[str, Any]:
        """What `of` reads."""
        return {**asdict(self), "thresholds": dict(self.thresholds)}

    @property
    def precision(self) -> str:
        """As `Predictor` takes it."""
        return "auto" if self.mode == "fast" else "fp32"

    @property
    def mirror(self) -> bool:
        """As `Predictor.predict` takes it."""
        return self.mode == "careful"


class Parser:
    """Bytes in any portions to messages; a frame's bytes stand under "payload"."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._frame: dict | None = None
        self._searched = 0

    def feed(self, data: bytes) -> None:
        """Take what came."""
        self._buffer += data

    def next(self) -> dict | None:
        """The next whole message, None when more has to come first.

        Raises:
            ProtocolError: a line is no message; it is skipped.
        """
        while True:
            if self._frame is not None:
                return self._payload()
            end = self._buffer.find(b"\n", self._searched)
            if end < 0:
                self._searched = len(self._buffer)
                if self._searched > LINE_BYTES:
                    start = self._text(self._buffer[:200])
                    self._buffer.clear()
                    self._searched = 0
                    raise ProtocolError(start)
                return None
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._searched = 0
            if not line.strip():
                continue
            message = self._message(line)
            if "bytes" not in message:
                return message
            self._frame = message

    def _payload(self) -> dict | None:
        assert self._frame is not None
        length = self._frame["bytes"]
        if len(self._buffer) < length:
            return None
        message = {**self._frame, "payload": bytes(self._buffer[:length])}
        del self._buffer[:length]
        self._frame = None
        return message

    def _message(self, line: bytes) -> dict:
        try:
            message = json.loads(line)
        except ValueError as error:
            raise ProtocolError(self._text(line)) from error
        if not isinstance(message, dict) or not ("event" in message or "request" in message):
            raise ProtocolError(self._text(line))
        length = message.get("bytes", 0)
        if not isinstance(length, int) or not 0 <= length <= FRAME_BYTES:
            raise ProtocolError(self._text(line))
        return message

    @staticmethod
    def _text(line: bytes | bytearray) -> str:
        return bytes(line[:200]).decode("utf-8", errors="replace").strip()


def line(message: Mapping[str, Any]) -> bytes:
    """A message as it goes over the stream."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def frames(kind: str, request: int, name: str, array: np.ndarray) -> Iterator[bytes]:
    """The array as frames; `kind` is "request" or "event"."""
    view = _bytes(array)
    for start in range(0, len(view), FRAME_BYTES):
        part = view[start : start + FRAME_BYTES]
        head = {kind: "frame", "id": request, "array": name, "bytes": len(part)}
        yield line(head) + part


def reference(name: str, array: np.ndarray) -> dict[str, Any]:
    """How a message names an array."""
    return {"array": name, "dtype": array.dtype.str, "shape": list(array.shape)}


def write_npy(path: Path, array: np.ndarray) -> Iterator[None]:
    """Write an .npy file in parts; yields after each so that the caller can do other things."""
    array = np.ascontiguousarray(array)
    view = _bytes(array)
    with path.open("wb", buffering=0) as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        start = 0
        while start < len(view):
            # A raw write may take less than it is given, e.g. when the disk gets full.
            start += file.write(view[start : start + 4 * FRAME_BYTES])
            yield


def _bytes(array: np.ndarray) -> memoryview:
    # An array without elements has no view as bytes.
    return np.ascontiguousarray(array).data.cast("B") if array.size else memoryview(b"")


class Arrays:
    """The arrays that come from the other end, from files or frames.

    Attributes:
        folder: the shared one, None when arrays come as frames.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._parts: dict[int, dict[str, bytearray]] = {}

    def add(self, message: Mapping[str, Any]) -> None:
        """Take a frame."""
        names = self._parts.setdefault(int(message["id"]), {})
        names.setdefault(str(message["array"]), bytearray()).extend(message["payload"])

    def drop(self, request: int) -> None:
        """Forget the frames of a request."""
        self._parts.pop(request, None)

    def get(self, request: int, named: Any) -> np.ndarray:
        """The array of that name. A file is mapped, copy-on-write, and need not stay.

        Raises:
            ProtocolError: it is not there, or not what was announced.
        """
        try:
            name, dtype = named["array"], np.dtype(named["dtype"])
            shape = tuple(int(n) for n in named["shape"])
            if not re.fullmatch(r"[a-z0-9-]{1,64}", name) or dtype.kind not in "biuf":
                raise ValueError(name)
            if self.folder is not None:
                path = self.folder / f"{name}.npy"
                array = np.load(path, mmap_mode="c" if 0 not in shape else None)
                if array.dtype != dtype or array.shape != shape:
                    raise ValueError(name)
                return np.asarray(array)
            if 0 in shape:
                return np.zeros(shape, dtype)
            data = self._parts.get(request, {}).pop(name, bytearray())
            return np.frombuffer(data, dtype).reshape(shape)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ProtocolError(f"array {str(named)[:120]}: {error}") from error


def encode_images(images: Mapping[str, "Image"], put: Put) -> dict[str, Any]:
    """Images by input key, without their names."""
    return {
        key: {"voxels": put(image.array), "affine": np.asarray(image.affine).tolist()}
        for key, image in images.items()
    }


def decode_images(message: Any, get: Get) -> dict[str, "Image"]:
    """What `encode_images` made.

    Raises:
        ProtocolError: it is not.
    """
    from medsegcore.imaging import Image

    try:
        return {
            str(key): Image(get(part["voxels"]), np.array(part["affine"], float).reshape(4, 4))
            for key, part in message.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(f"images: {type(error).__name__}: {error}"[:200]) from error


def encode_result(result: "Result", put: Put) -> dict[str, Any]:
    """A result; the arrays go through `put`."""
    from medsegcore.inference import CorrelationAttention, SpatialAttention

    arrays = [
        attention.values
        if isinstance(attention, SpatialAttention)
        else attention.maps
        if isinstance(attention, CorrelationAttention)
        else attention.matrix
        for attention in result.attention
    ]
    return {
        **result.index(),
        "grid": {"shape": list(result.grid.shape), "affine": result.grid.affine.tolist()},
        "labelmap": put(result.labelmap),
        "probabilities": {name: put(array) for name, array in result.probabilities.items()},
        "maps": [put(array) for array in arrays],
    }


def decode_result(message: Mapping[str, Any], get: Get) -> "Result":
    """What `encode_result` made.

    Raises:
        ProtocolError: it is not.
    """
    from medsegcore.imaging import Grid
    from medsegcore.inference import Lesion, Result
    from medsegcore.models import Label

    try:
        slices, rows, columns = (int(n) for n in message["grid"]["shape"])
        shape = (slices, rows, columns)
        probabilities = {k: get(named) for k, named in message["probabilities"].items()}
        labelmap = get(message["labelmap"])
        if any(array.shape != shape for array in (labelmap, *probabilities.values())):
            raise ValueError("an array is not on the grid of the result")
        return Result(
            grid=Grid(shape, np.array(message["grid"]["affine"], float)),
            labels=[Label.model_validate(entry) for entry in message["labels"]],
            probabilities=probabilities,
            labelmap=labelmap,
            attention=[
                _decode_attention(entry, get(named))
                for entry, named in zip(message["attention"], message["maps"], strict=True)
            ],
            lesions=[
                Lesion(**{**entry, "center_ras": tuple(entry["center_ras"])})
                for entry in message["lesions"]
            ],
            settings=message["settings"],
            provenance=message["provenance"],
            timings=message["timings_s"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(f"result: {type(error).__name__}: {error}"[:200]) from error


def _decode_attention(entry: Mapping[str, Any], array: np.ndarray) -> Any:
    from medsegcore.inference import CorrelationAttention, SliceAttention, SpatialAttention
    from medsegcore.inference.attention import SHARE

    key, title = entry["key"], entry["title"]
    if entry["kind"] == "spatial":
        return SpatialAttention(key, title, array, entry["scale"], entry.get("unit", SHARE))
    if entry["kind"] == "correlation":
        return CorrelationAttention(key, title, array, np.array(entry["affine"]))
    centers, normal = np.array(entry["centers_ras"]), np.array(entry["normal_ras"])
    return SliceAttention(key, title, entry["axis"], array, centers, normal)


def error_of(event: Mapping[str, Any]) -> MedSegError:
    """An error event as the class that has its code."""
    code, message = str(event.get("code")), str(event.get("message"))
    waiting: list[type[MedSegError]] = [MedSegError]
    while waiting:
        candidate = waiting.pop()
        if candidate.code == code:
            return candidate(message, str(event.get("action", "")))
        waiting += candidate.__subclasses__()
    return MedSegError(message, str(event.get("action", "")))
