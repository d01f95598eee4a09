"""`fastselfie profile`: where the time of a step goes, which part binds, and what would help."""
