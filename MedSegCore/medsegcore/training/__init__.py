"""Training: cases, augmentation, recipes, the Lightning module and the trainer."""
