"""A run survives: checkpoints that are whole or not there, choosing what to resume, and what a resumed run equals."""
