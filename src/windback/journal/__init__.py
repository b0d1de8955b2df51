"""Events on disk: segments that are written through a mapping, and what is known of those in them."""
