"""Tables only: tasks, metrics, GPUs, presets and model shapes. Imports nothing heavy."""
