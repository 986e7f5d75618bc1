"""Helpers that do not depend on models: files, the cache, names, this machine, signals."""
