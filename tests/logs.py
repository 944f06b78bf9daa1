"""What the library logs to, in tests."""

from __future__ import annotations

import logging


def forget_logging() -> None:
    """The library logs to nothing of its own, as when it is imported."""
    logger = logging.getLogger("ercfusion")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.propagate = True
