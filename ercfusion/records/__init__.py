"""Run records, archives, predictions."""
