"""How a network runs on a batch of a training, whatever the number of its dimensions is.

A 2D network sees the slices of 3D patches one by one; what it gives for them is stacked again, so
that losses and other networks find patches. A batch may hold several modalities, one after the
other, of which a network that tells them apart gets each with its number.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medsegcore.networks import takes_modality


def slices_of(patches: Tensor) -> Tensor:
    """[B, C, k, j, i] -> [B * k, C, j, i]."""
    return patches.transpose(1, 2).flatten(0, 1)


def stacked(slices: Tensor, count: int) -> Tensor:
    """[B * k, C, j, i] -> [B, C, k, j, i], with B the count: what `slices_of` took apart."""
    return slices.unflatten(0, (count, -1)).transpose(1, 2)


@contextlib.contextmanager
def _hooked(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the named submodules while the network runs."""
    caught: dict[str, Tensor] = {}
    with contextlib.ExitStack() as hooks:
        for name in names:
            try:
                module = network.get_submodule(name) if name else None
            except AttributeError:
                module = None
            if module is None:
                taps = ", ".join(getattr(network, "taps", {})) or "none"
                raise ValueError(
                    f"{type(network).__name__} has no tap or submodule '{name}' (taps: {taps})"
                )

            def catch(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                # A block that also gives its attention puts the features first.
                caught[name] = output[0] if isinstance(output, tuple) else output

            hooks.callback(module.register_forward_hook(catch).remove)
        yield caught


def answer(network: nn.Module, x: Tensor, modalities: int = 1) -> Tensor:
    """The logits [B, classes, *space] for x [B, C, *space], see `run_with_taps`."""
    return run_with_taps(network, x, [], modalities)[0]


def run_with_taps(
    network: nn.Module, x: Tensor, names: Sequence[str], modalities: int = 1
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a network and take the features of those names.

    Args:
        network: any network of ours.
        x: its input [B, C, *space]; a 2D network may be given 3D patches.
        names: taps by name, or submodules by dotted name.
        modalities: how many, in equal parts of x and in the order in which they are counted.

    Returns:
        (logits [B, classes, *space], {name: features [B, C', *space']}), *space' as long as *space.

    Raises:
        ValueError: the network has no such tap or submodule, or that submodule has not run.
    """
    if not takes_modality(network):
        # All in one: the means of a batch normalisation are then those of inference.
        return _run_patches(network, x, names)
    parts = [
        _run_patches(network, part, names, modality=n) for n, part in enumerate(x.chunk(modalities))
    ]
    logits = torch.cat([part for part, _ in parts])
    return logits, {name: torch.cat([found[name] for _, found in parts]) for name in names}


def _run_patches(
    network: nn.Module, x: Tensor, names: Sequence[str], **options: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """As slices where the network is 2D and the patches are not."""
    if x.dim() != 5 or getattr(network, "dimensions", 3) == 3:
        return _run(network, x, names, **options)
    logits, features = _run(network, slices_of(x), names, **options)
    return stacked(logits, len(x)), {n: stacked(found, len(x)) for n, found in features.items()}


def _run(
    network: nn.Module, x: Tensor, names: Sequence[str], **options: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    taps = getattr(network, "taps", {})
    hooked = [name for name in names if name not in taps]
    with _hooked(network, hooked) as features:
        if len(hooked) < len(names):
            logits, tapped = network.forward_features(x, **options)  # type: ignore[operator]
            features.update({name: tapped[name] for name in names if name in taps})
        else:
            logits = network(x, **options)
    for name in names:
        if not isinstance(features.get(name), Tensor) or features[name].dim() != x.dim():
            raise ValueError(
                f"'{name}' of {type(network).__name__} gives no features [B, C, *space]"
            )
    return logits, features
