"""(Sample, Answer) -> Score: the rewards, and the rubric that combines them."""
