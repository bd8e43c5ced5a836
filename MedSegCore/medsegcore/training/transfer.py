"""Weights of a pre-trained encoder from a file of ours or of others; nothing in it is executed."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medsegcore.errors import ModelWeightsError

PREFIXES = ("module.", "network.", "encoder.")


def read_encoder_weights(path: str | Path) -> dict[str, Tensor]:
    """Names and tensors of a checkpoint, without the prefixes of wrappers around the encoder.

    Takes .safetensors, and .pth or .pt as torch saves them (plain or under "state_dict", as Med3D
    publishes its encoders), which is loaded with `weights_only=True`.

    Raises:
        ModelWeightsError: no such file, unreadable, or with more in it than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelWeightsError(f"The weights '{path}' are missing.", "Check the path.")
    content: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelWeightsError(
            f"The weights '{path}' hold more than tensors and are not loaded.",
            "Ask for them as a state dict or as .safetensors.",
        ) from error
    except Exception as error:
        raise ModelWeightsError(
            f"The weights '{path}' cannot be read.", "Copy them again from their source."
        ) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {name: t for name, t in content.items() if isinstance(t, Tensor)}
    if not tensors:
        raise ModelWeightsError(
            f"The weights '{path}' hold no tensors.", "Give a checkpoint of an encoder."
        )
    return {_bare(name): tensor for name, tensor in tensors.items()}


def transfer_encoder(network: nn.Module, path: str | Path, freeze: bool = False) -> None:
    """Start the encoder of an edge attention network from a checkpoint (section 2.1).

    What the file holds beside the encoder, such as the head of the pre-training, is left out.

    Args:
        network: has an `encoder` with `transfer`, e.g. `EdgeAttentionNetwork`.
        freeze: keep the encoder as it is in later training.

    Raises:
        ModelWeightsError: see `read_encoder_weights`, or the weights are of another encoder.
    """
    encoder: nn.Module = network.encoder  # type: ignore[assignment]
    own = encoder.state_dict()
    given = {name: t for name, t in read_encoder_weights(path).items() if name in own}
    for name, tensor in own.items():
        # Counters that only newer files have; they matter to no answer.
        if name.endswith("num_batches_tracked"):
            given.setdefault(name, torch.zeros_like(tensor))
    try:
        encoder.transfer(given, freeze)  # type: ignore[operator]
    except ValueError as error:
        raise ModelWeightsError(
            f"The weights '{path}' do not fit: {error}.",
            "Set depth and width to those of the pre-trained encoder.",
        ) from error


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name
