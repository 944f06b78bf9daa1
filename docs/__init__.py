"""The documentation: its pages, and the code that computes parts of them."""
