"""Exact evaluation, metrics and per-example scores."""
