"""Recipes: one file per paper, with everything that makes a training what it is."""

from medsegcore.training.recipes.base import Recipe
from medsegcore.training.recipes.rsanet import RSANetRecipe
from medsegcore.training.recipes.unet import UNetRecipe

RECIPES: dict[str, type[Recipe]] = {"rsanet": RSANetRecipe, "unet": UNetRecipe}

__all__ = ["RECIPES", "RSANetRecipe", "Recipe", "UNetRecipe"]
