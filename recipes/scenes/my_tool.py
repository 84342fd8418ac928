"""A tool of one's own: a function of what was seen so far, and of what the model asks for."""

from vlm_r1.envs import Reply


def brighten(seen, box, factor=2.0):
    """Shows a part of the image, box [x1, y1, x2, y2], with its brightness times factor."""
    part = seen.image.crop(tuple(round(side) for side in box))
    brighter = part.point(lambda level: min(255, round(level * float(factor))))
    return Reply(image=brighter, text=f"brightness x {factor:g}", box=box)
