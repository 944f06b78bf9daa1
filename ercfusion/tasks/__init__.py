"""Recognizers: heads, objectives and task kinds on top of an architecture."""
