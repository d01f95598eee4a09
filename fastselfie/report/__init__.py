"""Floor 4: what a person looks at. Pictures, curves and the run's page."""
