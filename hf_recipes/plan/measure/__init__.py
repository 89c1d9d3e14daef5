"""What real machines say: one recipe measured beside its prediction (`plan --measure`), and a matrix of them (`lab`).

cells.py (what is tried) ──► predictions.py (plan's word, with or without a card) ──► runner.py (records)
  ──► side_by_side.py (who shares the card) ──► child.py (a process of its own) ──► card.py | cpu
packing.py carries it to a machine without network.
"""
