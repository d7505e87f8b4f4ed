"""Speed measured against other ways to compute the same: one module for each subject, `scripts/bench.py` runs them."""
