"""Soft labels: how they are made, stored and read (docs/methods/soft_labels.md)."""
