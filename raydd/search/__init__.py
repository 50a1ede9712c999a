"""Searches over jobs: spaces, who proposes what, who stops, and what is kept of it; plain Python."""
