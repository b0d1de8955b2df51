"""Where accepted events wait. `base` is the seam; each backend is a module beside it."""
