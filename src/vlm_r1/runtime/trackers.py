"""Pictures for the trackers (TensorBoard, Weights & Biases, Trackio) that a run reports to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from accelerate import Accelerator
from PIL import Image


def track_pictures(accelerator: Accelerator, step: int, pictures: Sequence[Image.Image]) -> None:
    """Send RGB pictures to every tracker as `rollouts/1`, `rollouts/2`, ...; call it on the main process."""
    named = {f"rollouts/{place}": picture for place, picture in enumerate(pictures, start=1)}
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({name: np.asarray(p)[None] for name, p in named.items()}, step, dataformats="NHWC")
        elif tracker.name == "trackio":  # accelerate's tracker has no log_images for it
            import trackio

            tracker.log({name: trackio.Image(picture) for name, picture in named.items()}, step)
        else:
            tracker.log_images({name: [picture] for name, picture in named.items()}, step)
