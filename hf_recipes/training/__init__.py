"""Building a trainer, its steps and its callbacks. Each file imports what it needs.

`disable_guards` in a recipe switches guards off: they then only print a line.
"""
