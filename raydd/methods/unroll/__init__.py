"""Unrolled training: distilled data moved by the gradient of a loss through the training on them (RaT-BPTT and kin)."""
