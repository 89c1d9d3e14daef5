"""What real machines say: one recipe measured beside its prediction (`plan --measure`), and a matrix of them (`lab`).

cells.py (what is tried) ──► runner.py (prediction, then a process of its own) ──► child.py ──► card.py | cpu
"""
