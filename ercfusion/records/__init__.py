"""Run records, archives and predictions."""
