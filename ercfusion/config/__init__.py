"""Settings: configuration groups, defaults, ranges and ``key=value`` arguments."""
