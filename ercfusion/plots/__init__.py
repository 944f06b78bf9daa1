"""Pictures, and pages that hold a table."""
