"""One run with Lightning: build, fit, checkpoint, test."""
