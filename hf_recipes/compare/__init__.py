"""Is run B really better than run A? Paired statistics on per-example scores; "cannot tell" is a verdict.

runs.py (folders to runs) ──► pairing.py (the same examples in both) ──► measures.py (sums per example) ──►
statistics.py, small_samples.py (intervals and tests) ──► verdict.py (better, worse, cannot tell)
"""
