"""Errors, keyed randomness, registry, storage, units: what every other room stands on."""
