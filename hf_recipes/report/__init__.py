"""A report is a list of blocks; two renderers make a Markdown file and one self-contained HTML page of it.

of_run.py, of_comparison.py (facts to blocks; plots.py draws) ──► blocks.py ──► markdown.py, page.py ──► writing.py
"""
