"""Data sets: catalog, sources, shards, class-indexed memory."""
