"""Typed schemas of files that are read, and the readers that apply them.

Files may be damaged, edited by hand or made by a stranger. :mod:`ercfusion._core.schemas.reading` turns every failure
into one short error that names file, line or key. Here are the readers and the shared types; the schema of a file is in
the room that writes it (``*_schema.py``).
"""
