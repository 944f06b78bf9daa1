"""Conversation-level models for emotion recognition in conversation from text, audio and visual features."""

__version__ = "0.1.0"
