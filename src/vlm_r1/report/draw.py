"""Drawing lives in `vlm_r1.data.draw`."""

from vlm_r1.data.draw import PREDICTED_COLOR, TRUE_COLOR, draw_boxes, fitting_scale, font

__all__ = ["PREDICTED_COLOR", "TRUE_COLOR", "draw_boxes", "fitting_scale", "font"]
