"""Write and read what a run leaves on disk."""
