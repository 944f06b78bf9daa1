"""Conversation-level models for emotion recognition in conversation from text, audio and visual features."""

from ercfusion._core.version import __version__

__all__ = ["__version__"]
