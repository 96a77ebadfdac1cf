"""Training: recipes, data, the step, and a trainer on transformers' own."""
