"""The keys and values that the installed upstream classes accept, and our own keys."""
