"""Evaluations: what thoughts are worth, always with controls and intervals."""
