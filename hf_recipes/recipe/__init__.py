"""A recipe file to a checked `Recipe`, and back to text. Imports neither torch nor transformers."""
