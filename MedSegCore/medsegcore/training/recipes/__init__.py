"""Recipes: one file per paper, with everything that makes a training what it is."""

from medsegcore.training.recipes.affinity import AffinityRecipe, AffinityTeacherRecipe
from medsegcore.training.recipes.base import Recipe
from medsegcore.training.recipes.csad import CSADRecipe
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
        RSANetRecipe,
    )
}

__all__ = [
    "RECIPES",
    "AffinityRecipe",
    "AffinityTeacherRecipe",
    "CSADRecipe",
    "EdgeAttentionPretrainingRecipe",
    "EdgeAttentionRecipe",
    "RSANetRecipe",
    "Recipe",
    "UMMKDRecipe",
    "UNetRecipe",
]
