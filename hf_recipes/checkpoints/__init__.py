"""Checkpoints that are complete or not there, which one to resume from, and what a resumed run equals."""
