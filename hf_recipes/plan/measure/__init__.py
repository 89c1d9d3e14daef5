"""What real machines measure: one recipe beside its prediction (`plan --measure`), and a matrix of them (`lab`).

matrix.py (what is tried) ──► predictions.py (plan's prediction, with or without a GPU) ──► runner.py (records)
  ──► scheduler.py (which cells share the GPU) ──► worker.py (a process of its own) ──► gpu.py | the CPU
benchmarks/lab_wheels.py carries it to a machine without network.
"""
