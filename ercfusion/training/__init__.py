"""Training and run folders."""
