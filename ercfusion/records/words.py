"""Runs in messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def named_run(record: Mapping[str, Any]) -> str:
    """A run as the subject of a message."""
    return f"the run of {record['config']['preset']['model']} on {record['protocol']}, seed {record['seed']},"
