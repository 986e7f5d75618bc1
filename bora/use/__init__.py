"""Use a finished run: restore, generate, score, evaluate, adapt, export."""
