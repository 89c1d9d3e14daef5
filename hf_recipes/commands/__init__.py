"""One file a command of `hf-recipes`: thin, each calls what does the work."""
