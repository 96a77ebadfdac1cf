"""The tensor core: rows over a shared prefix, families, mixing, sampling, the thinking model."""
