"""The trackers (TensorBoard, Weights & Biases, Trackio) that a run reports to."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlm_r1.errors import ConfigError


class Trackers:
    """Those of `run.trackers`, on the main process; accelerate knows how to speak to each."""

    def __init__(self, names: Sequence[str] = (), run_dir: Path = Path()) -> None:
        """Start them. Raises `ConfigError` for one that is not installed."""
        check_trackers(names)
        self.trackers: list[Any] = []
        for name in names:
            from accelerate import PartialState
            from accelerate.tracking import LOGGER_TYPE_TO_CLASS

            PartialState()  # the trackers of W&B and Trackio log through it and do not make it
            kind = LOGGER_TYPE_TO_CLASS[name]
            folder = [str(run_dir)] if kind.requires_logging_directory else []
            self.trackers.append(kind(run_dir.name, *folder))
            self.trackers[-1].start()

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Send the numbers of a step."""
        for tracker in self.trackers:
            tracker.log({k: v for k, v in metrics.items() if isinstance(v, (int, float))}, step=step)

    def finish(self) -> None:
        """Close them."""
        for tracker in self.trackers:
            tracker.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Raise `ConfigError` for a tracker that is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"run.trackers: {name} is not installed; run: pip install {name}")


def track_images(trackers: Trackers, step: int, images: Sequence[Image.Image]) -> None:
    """Send RGB images to every tracker as `rollouts/1`, `rollouts/2`, ...; call it on the main process."""
    named = {f"rollouts/{place}": image for place, image in enumerate(images, start=1)}
    for tracker in trackers.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({name: np.asarray(p)[None] for name, p in named.items()}, step, dataformats="NHWC")
        elif tracker.name == "trackio":  # accelerate's tracker has no log_images for it
            import trackio

            tracker.log({name: trackio.Image(image) for name, image in named.items()}, step)
        else:
            tracker.log_images({name: [image] for name, image in named.items()}, step)


def track_table(trackers: Trackers, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Send rows that hold texts, numbers and RGB images to the trackers that have tables, as `rollouts/answers`.

    W&B and Trackio have them, TensorBoard does not. Call it on the main process.
    """
    for tracker in trackers.trackers:
        if not rows or tracker.name not in ("wandb", "trackio"):
            continue
        package: Any = importlib.import_module(tracker.name)
        told = [{k: package.Image(v) if isinstance(v, Image.Image) else v for k, v in row.items()} for row in rows]
        if tracker.name == "trackio":  # it ignores columns and data
            import pandas

            table = package.Table(dataframe=pandas.DataFrame(told))
        else:
            table = package.Table(columns=list(told[0]), data=[list(row.values()) for row in told])
        tracker.log({"rollouts/answers": table}, step)
