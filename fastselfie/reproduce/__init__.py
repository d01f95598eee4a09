"""Floor 4: the paper's Table 1 by one command. Which runs, how they are done, what they show."""
