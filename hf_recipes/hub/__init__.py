"""Pushing to the Hub, and the model card."""
