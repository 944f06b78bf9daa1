"""Settings: composed from groups of configuration and from what a user types."""
