"""The settings of evaluation and of the run folder."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from vlm_r1.config_section import Section


class EvalConfig(Section):
    """Greedy evaluation on the held-out splits."""

    batch_size: int = Field(32, gt=0, description="questions decoded at once")
    max_new_tokens: int = Field(512, gt=0, le=1 << 20, description="tokens after which an answer is cut")
    every: int = Field(0, ge=0, description="evaluate every so many steps; 0: before and after only")
    keep_best: str | None = Field(
        None,
        description="SPLIT/metric, as in held_out/mean_iou: the checkpoint of the evaluation where it is highest stays "
        "beside the last run.keep; needs eval.every",
    )
    early_stopping_patience: int | None = Field(
        None, gt=0, description="stop after so many evaluations in a row without a higher keep_best"
    )
    load_best_at_end: bool = Field(False, description="final/ is the keep_best checkpoint instead of the last step's")
    suites: dict[str, Literal["rec", "ref_l4", "ovd", "ovdeval", "accuracy"]] = Field(
        default_factory=dict, description="split name -> what to measure; default: what its samples' tasks ask for"
    )
    resamples: int = Field(1000, ge=0, description="bootstrap resamples of the 95 % intervals; 0: none")

    @model_validator(mode="after")
    def _best_of_something(self) -> EvalConfig:
        if self.keep_best is None:
            if self.early_stopping_patience or self.load_best_at_end:
                raise ValueError("early_stopping_patience and load_best_at_end need keep_best: SPLIT/metric")
            return self
        if not all(self.keep_best.partition("/")):
            raise ValueError(f'keep_best: "{self.keep_best}" must be SPLIT/metric, as in held_out/mean_iou')
        if not self.every:
            raise ValueError("keep_best compares evaluations during the run; set eval.every")
        return self


class RunConfig(Section):
    """The run folder and what is kept in it."""

    old_names: ClassVar[dict[str, str]] = {"track_pictures_every": "track_images_every"}

    dir: str = Field("runs/run", description="run folder; if it holds checkpoints, the run continues")
    seed: int = Field(0, ge=0, lt=1 << 32, description="of scratch weights, data order, sampled answers and intervals")
    steps: int = Field(100, gt=0, description="steps in all, those before a restart included")
    epochs: float | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="in the place of steps: as many as it takes to draw so many times the number of training rows "
        "(sft: of their images)",
    )
    threads: int | None = Field(None, gt=0, description="CPU threads; default: all cores")
    save_every: int = Field(50, gt=0, description="steps between checkpoints")
    keep: int = Field(2, gt=0, description="checkpoints kept")
    skip_damaged: bool = Field(
        False, description="continue from the checkpoint before one whose checksums do not fit; false: stop and name it"
    )
    shard_size: int | None = Field(
        None,
        gt=0,
        description="processes that hold one copy of the weights together; default: all; with several machines, those "
        "of one: gradients alone then travel between machines",
    )
    hang_timeout_s: float = Field(
        100.0, gt=0, le=1e8, description="seconds without any sign of work by one of several processes that end the run"
    )
    log_rollouts_every: int = Field(1, ge=0, description="steps between rollout tables; 0: none")
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default_factory=list, description="also send every metric to these; each must be installed"
    )
    track_images_every: int = Field(
        0,
        ge=0,
        description="steps between images of rollouts sent to the trackers, 4 questions each time, to wandb and "
        "trackio with a table of the answers; 0: none, because images show your data to whoever sees the tracker, "
        "and take room there",
    )

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> RunConfig:
        if self.epochs is not None and "steps" in self.model_fields_set:
            raise ValueError("steps and epochs both say how long the run is; remove one of them")
        return self

    @model_validator(mode="after")
    def _images_go_somewhere(self) -> RunConfig:
        if self.track_images_every and not self.trackers:
            raise ValueError("track_images_every sends images to trackers, and there are none; set run.trackers")
        return self
