"""One file a command of `hf-recipes`: each only calls what does the work."""
