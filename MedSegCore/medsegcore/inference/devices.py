"""Which device computes, and in which precision."""

from typing import TYPE_CHECKING

from medsegcore.errors import DeviceError

if TYPE_CHECKING:
    import torch


def choose_device(wanted: str = "auto") -> "torch.device":
    """The device of that name; "auto" takes cuda, then mps, then cpu.

    Args:
        wanted: "auto", "cpu", "mps", "cuda" or "cuda:N".

    Raises:
        DeviceError: unknown, not there, or (mps) without 3D convolutions.
    """
    import torch

    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if _mps_problem() is None else "cpu")
    kind, _, number = wanted.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdigit()):
        raise DeviceError(f"There is no device '{wanted}'.", "Use auto, cuda, cuda:N, mps or cpu.")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(
                "No CUDA device can be used here.",
                "Use the device cpu, or install a CUDA build of torch and its driver.",
            )
        if number and int(number) >= torch.cuda.device_count():
            raise DeviceError(
                f"There is no device '{wanted}': {torch.cuda.device_count()} CUDA devices are "
                "there, counted from 0."
            )
    if kind == "mps" and (problem := _mps_problem()) is not None:
        raise DeviceError(f"The Apple GPU cannot be used here: {problem}.", "Use the device cpu.")
    return torch.device(wanted)


def _mps_problem() -> str | None:
    import torch

    if not torch.backends.mps.is_available():
        return "torch finds none"
    try:
        # Some builds have the device but no 3D convolution on it.
        torch.nn.functional.conv3d(
            torch.ones(1, 1, 3, 3, 3, device="mps"), torch.ones(1, 1, 3, 3, 3, device="mps")
        )
    except (RuntimeError, NotImplementedError) as error:
        return str(error).splitlines()[0]
    return None


def choose_precision(wanted: str, device: "torch.device") -> "torch.dtype":
    """The dtype of the convolutions; "auto" is bf16 (else fp16) on cuda and fp32 elsewhere.

    Raises:
        DeviceError: unknown, or not on that device.
    """
    import torch

    known = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if wanted == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if wanted not in known:
        raise DeviceError(f"There is no precision '{wanted}'.", "Use auto, fp32, bf16 or fp16.")
    if wanted == "fp16" and device.type == "cpu":
        raise DeviceError("The precision fp16 does not run on the CPU.", "Use fp32 or bf16.")
    return known[wanted]
