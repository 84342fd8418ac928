"""Data: a file, a hub data set or the scene generator becomes `Sample`s."""
