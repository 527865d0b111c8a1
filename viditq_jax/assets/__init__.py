"""Packaged data: recipes, prompts, and the default model with its card."""
