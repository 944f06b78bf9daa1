"""What every room uses and nobody imports from outside: errors, files, processes, progress, registries, schemas."""
