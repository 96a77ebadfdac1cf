"""The page over a record: served by `quietstar view`, or written to one self-contained file."""
