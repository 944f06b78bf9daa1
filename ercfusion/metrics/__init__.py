"""Scores, the sums they follow from, and statistics over conversations and seeds."""
