"""A local page over run folders, live while they are written: curves, answers, questions over time, evaluations."""
