"""Readers of untrusted files, and types shared by their schemas.

Every failure becomes one short error with file, line or key. The schema of a file is in the package that writes it
(``*_schema.py``).
"""
