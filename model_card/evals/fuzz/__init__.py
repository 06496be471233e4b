"""Damaged and unusual input given to every reader of the package, and runs killed at random steps; counts outcomes.

`python -m model_card.evals.fuzz` runs it (start reading in `__main__.py`). `damage.py` changes files and trees, one
file for each kind of input says who reads it and what would be right, `cases.py` judges, `processes.py` runs many.
"""
