"""Speed and memory compared with literal implementations of the published algorithms; see README.md."""
