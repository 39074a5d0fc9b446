"""Delivery under faults: a known input, a fleet that things are done to, and what its readers see.

`python -m chaos` with `tests` on the path, or `make chaos`, prints the table; `tests/e2e/test_chaos.py` runs the rows
that find most.
"""
