"""Heads, objectives, metrics and decision rules."""
