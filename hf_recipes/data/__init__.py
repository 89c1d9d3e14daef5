"""Rows: loading, splits, checks, and one file per task that prepares them for a Trainer."""
