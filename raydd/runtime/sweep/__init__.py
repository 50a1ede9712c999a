"""Runs a sweep: its trials, what they share, and the test of the winner."""
