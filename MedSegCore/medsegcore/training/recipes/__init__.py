"""Recipes: one file per paper, with everything that makes a training what it is."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from medsegcore.errors import SettingError
from medsegcore.training.recipes.affinity import AffinityRecipe, AffinityTeacherRecipe
from medsegcore.training.recipes.base import Recipe
from medsegcore.training.recipes.csad import CSADRecipe
from medsegcore.training.recipes.distill import DistillRecipe
from medsegcore.training.recipes.edge_attention import (
    EdgeAttentionPretrainingRecipe,
    EdgeAttentionRecipe,
)
from medsegcore.training.recipes.rsanet import RSANetRecipe
from medsegcore.training.recipes.ummkd import UMMKDRecipe
from medsegcore.training.recipes.unet import UNetRecipe

RECIPES: dict[str, type[Recipe]] = {
    recipe.name: recipe
    for recipe in (
        UNetRecipe,
        CSADRecipe,
        EdgeAttentionPretrainingRecipe,
        EdgeAttentionRecipe,
        UMMKDRecipe,
        AffinityTeacherRecipe,
        AffinityRecipe,
        DistillRecipe,
        RSANetRecipe,
    )
}


# Smallest value of settings that many recipes have, and what has to be above it.
LIMITS = {
    "patch": (1, math.inf), "batch_size": (1, math.inf), "width": (1, math.inf),
    "norm_groups": (1, math.inf), "warmup_steps": (1, math.inf), "middle_mm": (1, math.inf),
    "learning_rate": (0, math.inf), "weight_decay": (0, math.inf), "gradient_clip": (0, math.inf),
    "neighbours": (0, math.inf), "spacing": (0.01, math.inf),
    "ema_decay": (0, 1), "threshold": (0, 1), "overlap": (0, 1), "drop": (0, 1),
}  # fmt: skip
# Probabilities of what may also happen to every patch.
CHANCES = ("ghosting", "transplant")


def recipe_of(name: str, settings: Mapping[str, Any], strict: bool = False) -> Recipe:
    """The recipe that a model folder's record names, with the settings of the record.

    Args:
        strict: refuse settings that the recipe has not, instead of leaving them out.

    Raises:
        SettingError: there is no such recipe, or a value that the setting cannot have.
    """
    if name not in RECIPES:
        raise SettingError(
            f"There is no recipe '{name}'.", f"Recipes: {', '.join(sorted(RECIPES))}."
        )
    known = [field.name for field in dataclasses.fields(RECIPES[name])]
    kinds = get_type_hints(RECIPES[name])
    values = {}
    for setting, value in settings.items():
        if setting in known:
            values[setting] = _checked(setting, value, kinds[setting])
        elif strict:
            raise SettingError(
                f"The recipe '{name}' has no setting '{setting}'.",
                f"Settings: {', '.join(known)}.",
            )
    return RECIPES[name](**values)


def _checked(setting: str, value: Any, kind: Any) -> Any:
    """A value as JSON has it, e.g. lists for tuples, as its kind; SettingError if it is none."""
    try:
        found = TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        lists = "tuple" in str(kind)
        raise SettingError(
            f"{setting} is {value!r}: {first['msg'][0].lower()}{first['msg'][1:]}.",
            "Give a list, e.g. [64,64,64]." if lists else "Give another value.",
        ) from error
    for given, number in zip(_parts(value), _parts(found), strict=True):
        # pydantic takes true for 1.
        if isinstance(given, bool) and not isinstance(number, bool):
            raise SettingError(f"{setting} is {value!r}.", "Give a number.")
    if setting in CHANCES and not 0 <= found <= 1:
        raise SettingError(f"{setting} is {found:g}.", "Give 0 to 1.")
    least, below = LIMITS.get(setting, (-math.inf, math.inf))
    for number in _parts(found):
        if isinstance(number, (int, float)) and not least <= number < below:
            less = "" if below == math.inf else f" and less than {below:g}"
            raise SettingError(f"{setting} is {number:g}.", f"Give {least:g} or more{less}.")
    return found


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else [value]


__all__ = [
    "RECIPES",
    "AffinityRecipe",
    "AffinityTeacherRecipe",
    "CSADRecipe",
    "DistillRecipe",
    "EdgeAttentionPretrainingRecipe",
    "EdgeAttentionRecipe",
    "RSANetRecipe",
    "Recipe",
    "UMMKDRecipe",
    "UNetRecipe",
    "recipe_of",
]
