"""Generated training text: every conversation follows from a seed, nothing is downloaded."""
