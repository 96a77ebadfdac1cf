"""Texts from files: rows of any format, the rules for documents, windows and packing."""
