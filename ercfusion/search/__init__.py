"""Searching settings: what ``python -m ercfusion.sweep`` does."""
