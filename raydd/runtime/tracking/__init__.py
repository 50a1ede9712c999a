"""What a tracking server learns of a run."""
