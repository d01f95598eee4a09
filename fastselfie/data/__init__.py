"""Floor 2: from files to batches. sources -> (subsets) -> loaders."""
