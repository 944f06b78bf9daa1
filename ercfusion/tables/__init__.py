"""What is computed from records: tables, their sentences and files."""
