"""The command line: parses, calls, prints. Torch is imported inside commands, so that `--help` is instant."""
