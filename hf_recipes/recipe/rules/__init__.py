"""What contradicts itself or has no effect in a recipe: one rule, one function. `all_rules.py` asks them all."""
