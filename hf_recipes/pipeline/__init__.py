"""The main path of a run, top to bottom."""
