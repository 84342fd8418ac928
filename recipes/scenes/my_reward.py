"""A reward of one's own, in TRL's signature: how near the answered box's centre is to the true one's."""

import math


def near_centre(completions, samples, answers, **columns):
    """1 where the centres meet, falling to 0 at one diagonal of the true box; None where no box is asked for."""

    def score(true, found):
        gap = math.dist((true[0] + true[2], true[1] + true[3]), (found[0] + found[2], found[1] + found[3])) / 2
        return max(0.0, 1.0 - gap / math.dist(true[:2], true[2:]))

    return [
        None if not s.truth.boxes else score(s.truth.boxes[0].box, a.value[0].box) if a.value else 0.0
        for s, a in zip(samples, answers, strict=True)
    ]
