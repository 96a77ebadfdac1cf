"""Using the engine: when and what to think, generation, scoring, resampling."""
