"""Typed schemas of every file that a command reads, and the readers that apply them.

Files may be damaged, edited by hand or made by a stranger. :mod:`ercfusion._core.schemas.reading` turns every failure
into one short error that names file, line or key. The other modules describe the files: types, ranges and sizes.
"""
