"""Recipes: one file per paper, with everything that makes a training what it is."""

from medsegcore.training.recipes.rsanet import RSANetRecipe

RECIPES = {"rsanet": RSANetRecipe}

__all__ = ["RECIPES", "RSANetRecipe"]
