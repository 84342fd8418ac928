"""What a run leaves behind for people while it trains: metrics, warnings, rollout tables, images, evaluations."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch

from vlm_r1.rl.experience import Experience
from vlm_r1.rl.images import MAX_GROUPS, answer_rows, rollout_images
from vlm_r1.rl.metrics import Monitor
from vlm_r1.runtime.progress import Progress
from vlm_r1.runtime.rows import rollout_rows
from vlm_r1.runtime.session import Session
from vlm_r1.runtime.trackers import track_images, track_table

SHOWN = (
    *("reward", "completions/mean_length", "frac_reward_zero_std", "time/rollout_s", "time/update_s"),
    *("perf/completion_tokens_per_s", "perf/mfu"),
)
"""What the panel and the lines of a run show, where it is known."""


class Journal:
    """`with Journal(session) as journal: journal.write(...)`; every process calls it, the main one writes."""

    def __init__(self, session: Session) -> None:
        self.session, self.run = session, session.recipe.run
        self.monitor = Monitor(session.recipe)
        if session.state:
            self.monitor.load_state_dict(session.state["monitor"])
        self.progress = Progress(self.run.steps, session.start, session.world.is_main, self.run.dir)

    def __enter__(self) -> Journal:
        self.progress.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.progress.__exit__(kind, error, tb)

    def write(self, step: int, metrics: dict[str, float], experience: Experience) -> None:
        """A line of metrics for `step` (from 1); rollouts and their images where the recipe asks for them."""
        session, world = self.session, self.session.world
        world.beat("writing")
        warnings = self.monitor.observe(step, metrics)
        session.track(step, {**metrics, **({"warnings": warnings} if warnings else {})})
        self.progress.show(step, metrics, SHOWN, warnings)
        if self.run.track_images_every and step % self.run.track_images_every == 0:
            images = sorted(world.collect(rollout_images(experience)), key=lambda pair: pair[0])
            told = sorted(world.collect(answer_rows(experience)), key=lambda pair: pair[0])
            kept = {number for number, _ in images[:MAX_GROUPS]}
            track_images(session.trackers, step, [image for _, image in images[:MAX_GROUPS]])
            track_table(session.trackers, step, [row for number, row in told if number in kept])
        if self.run.log_rollouts_every and step % self.run.log_rollouts_every == 0:
            advantages = torch.nan_to_num(experience.advantages_PG).tolist()
            rows = world.collect(rollout_rows(experience.groups, experience.answers, experience.scores, advantages))
            if world.is_main:
                session.log.rollouts(step, sorted(rows, key=lambda row: row["group"]))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return self.monitor.state_dict()
