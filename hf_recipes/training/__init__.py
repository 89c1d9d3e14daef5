"""What would fail silently is stopped, with its cause and its mend. Light: each file imports what it needs.

rows.py looks at the prepared rows and at the loaded model before training, steps.py at every optimizer step.
`disable_guards` in a recipe switches guards off: they then only print a line.
"""
