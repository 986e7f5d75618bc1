"""The settings of a run: their types, the rules between them, and how values are checked."""
