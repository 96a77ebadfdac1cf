"""The thought scratchpad: the record of what was thought."""
