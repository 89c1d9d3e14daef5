"""What would fail silently is stopped, with its cause and its mend. Light: each file imports what it needs.

rows.py looks at the prepared rows and at the loaded model before training, steps.py at every optimizer step.
`train_despite` in a recipe names what is meant, and is then only said.
"""
