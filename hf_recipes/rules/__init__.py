"""What contradicts itself or has no effect in a recipe: one rule, one function. `checks.py` asks them all."""
