"""Recipes: one file per paper, with everything that makes a training what it is."""

import dataclasses
from collections.abc import Mapping
from typing import Any

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


def recipe_of(name: str, settings: Mapping[str, Any]) -> Recipe:
    """The recipe that a model folder's record names, with the settings of the record.

    Raises:
        SettingError: there is no such recipe.
    """
    if name not in RECIPES:
        raise SettingError(
            f"There is no recipe '{name}'.", f"Recipes: {', '.join(sorted(RECIPES))}."
        )
    known = {field.name for field in dataclasses.fields(RECIPES[name])}
    # JSON has no tuples, and no recipe has lists.
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in settings.items()
        if key in known
    }
    return RECIPES[name](**values)


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
