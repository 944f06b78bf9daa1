"""Internal parts shared by all packages of the library: errors, files, processes, progress, registries, schemas."""
