"""Posters: one image of less than an image per class, whose overlapping windows are learnt from (PoDD)."""
