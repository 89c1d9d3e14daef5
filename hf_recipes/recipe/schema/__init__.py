"""The keys and values that the installed upstream classes accept, and the keys of this package."""
