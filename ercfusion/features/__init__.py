"""From raw media or text to feature packs, and reading packs."""
