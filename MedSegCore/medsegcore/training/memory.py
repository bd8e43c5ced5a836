"""Whether a step of a training fits into the memory there is, told before anything large is made.

A system whose memory is full ends the process without a word, so nobody could be told afterwards.
"""

import functools
import math
from typing import TYPE_CHECKING

from medsegcore.errors import OutOfMemoryError
from medsegcore.networks import create_network
from medsegcore.training.facts import COPIES, fitting_size, training_bytes

if TYPE_CHECKING:
    from medsegcore.models import ModelDescription
    from medsegcore.training.recipes.base import Recipe

# An estimate so far above what is free is refused; what is proposed stays as far below. On CPUs the
# estimate is 0.9 to 1.45 times the peak, and what fits must not be refused.
MARGIN = 1.5
# Of what a step of training would keep, what a network takes that answers without learning.
UNKEPT = 0.2


def check_memory(
    recipe: "Recipe", description: "ModelDescription", free: int, half: bool = False
) -> str:
    """A sentence on how much a step takes of the memory that is free.

    Args:
        recipe: configured.
        free: bytes, of the GPU or else of the computer.
        half: where activations are kept in half precision.

    Raises:
        OutOfMemoryError: it surely does not fit.
    """
    assert recipe.patch is not None
    assert recipe.batch_size is not None
    fixed, each = step_bytes(recipe, description, recipe.patch, half)
    needed = fixed + recipe.batch_size * each
    if needed > MARGIN * free:
        raise OutOfMemoryError(
            f"A step of this training takes about {needed / 1e9:.1f} GB of memory, but only "
            f"{free / 1e9:.1f} GB are free.",
            _what_fits(recipe, description, int(free / MARGIN), half),
        )
    tight = "" if needed < free / MARGIN else ", which may not be enough"
    return (
        f"A step takes about {needed / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free{tight}."
    )


def step_bytes(
    recipe: "Recipe",
    description: "ModelDescription",
    patch: tuple[int, ...],
    half: bool = False,
) -> tuple[int, int]:
    """(bytes whatever the batch, bytes for each of its items) of a step, about."""
    shape = (description.channels, *patch)
    fixed, each = training_bytes(lambda: recipe.outline(description), shape, half)
    for spec in recipe.beside:
        build = functools.partial(create_network, spec.name, spec.config)
        copies, kept = training_bytes(build, shape, half)
        # They answer one after another, and what each took is free again before the way back.
        fixed, each = fixed + copies // COPIES, max(each, int(UNKEPT * kept))
    # Unpaired images come in a batch of each modality.
    return fixed, each * (len(description.inputs) if description.one_of else 1)


def _what_fits(recipe: "Recipe", description: "ModelDescription", room: int, half: bool) -> str:
    """What to set so that a step takes no more than so many bytes."""
    if not recipe.resizable:
        return "Free some, or use a computer with more."
    assert recipe.patch is not None
    assert recipe.batch_size is not None
    # Batch normalisation needs at least two.
    least = min(recipe.batch_size, 2)
    fixed, each = step_bytes(recipe, description, recipe.patch, half)
    batch = min((room - fixed) // each, recipe.batch_size)
    if batch >= least:
        return f"Make the batch smaller: --set batch_size={batch}."
    flat = recipe.patch[0] == 1
    space = recipe.patch[1:] if flat else recipe.patch
    voxels = math.prod(space)
    multiple = description.grid.multiple
    while fixed < room and voxels > multiple ** len(space):
        voxels //= 2
        smaller = fitting_size(space, multiple, voxels)
        patch = (1, *smaller) if flat else smaller
        fixed, each = step_bytes(recipe, description, patch, half)
        if fixed + least * each <= room:
            sides = ",".join(str(n) for n in patch)
            return f"Make batch and patch smaller: --set batch_size={least} --set patch=[{sides}]."
    return "Make the network narrower or less deep, or use a computer with more."
