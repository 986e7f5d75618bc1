"""Helpers that know nothing of models: files, the cache, names, this machine, signals."""
