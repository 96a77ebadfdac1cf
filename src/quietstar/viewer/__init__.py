"""The page over a record: served while one looks (`quietstar view`), or written to one file that needs nothing else."""
