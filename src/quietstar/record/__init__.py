"""The record: every run with its thoughts in one SQLite file."""
