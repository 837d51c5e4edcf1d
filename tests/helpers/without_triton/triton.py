"""Stands in the way of Triton, see `tests/conftest.py`."""

raise ImportError("The tests go without Triton.")
