"""Models from and to files: checkpoints, the default model, which weights these are."""
