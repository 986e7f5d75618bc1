"""Ground that everything stands on: files, the cache, names, this machine, signals."""
