"""Records, statistics, reports and pictures of runs."""
