"""From a study to its runs: bases, searches for settings, and arms over seeds, each with a folder of its own."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm_r1.config import Recipe
from vlm_r1.config_file import load_config
from vlm_r1.errors import ConfigError
from vlm_r1.lab.study import Arm, Study, Tuning

COMMANDS = {"grpo": "train", "sft": "sft"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run: its name, its folder, and the recipe with all overrides but the folder and the number of threads.

    Example: `Job(name="size/rl-small/seed-1", folder=Path("runs/lab/size/rl-small/seed-1"), recipe="a.yaml")`.
    """

    name: str
    folder: Path
    recipe: str
    overrides: tuple[str, ...] = ()
    arm: str = ""
    seed: int = 0

    def settings(self) -> Recipe:
        """The recipe that is run. Raises `ConfigError`."""
        try:
            return load_config(self.recipe, self.overrides)
        except ConfigError as error:
            raise ConfigError(f"{self.name}, a run of the lab: {error}") from None

    def command(self, threads: int) -> list[str]:
        """What follows `vlm-r1`: `train RECIPE KEY=VALUE ...`."""
        here = [f"run.dir={self.folder.as_posix()}", f"run.threads={threads}"]
        return [COMMANDS[self.settings().method], self.recipe, *self.overrides, *here]

    def fingerprint(self) -> str:
        """A hash of every setting that can change the result: two runs with the same one are the same run."""
        # Without defaults: a setting that the package gets later leaves finished runs as they are.
        values = self.settings().model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def base_jobs(study: Study, runs: Path, reduced: bool) -> list[list[Job]]:
    """The stages of the bases that the study's arms start from: the first stage of all, then the second.

    The folder is named after a hash of the commands up to there: studies that share a stage share its run.
    """
    if reduced:
        return []
    used = {arm.base for arm in study.arms.values()} - {None}
    levels: list[dict[Path, Job]] = []
    for name in (name for name in study.bases if name in used):
        for number, job in enumerate(_stages(study.bases[name], runs)):
            levels += [{}] if number == len(levels) else []
            levels[number][job.folder] = job
    return [list(level.values()) for level in levels]


def _stages(commands: Sequence[str], runs: Path) -> list[Job]:
    jobs: list[Job] = []
    for number in range(len(commands)):
        recipe, *overrides = shlex.split(commands[number])
        digest = hashlib.sha256("\n".join(commands[: number + 1]).encode()).hexdigest()[:8]
        folder = runs / "bases" / f"{Path(recipe).stem}-{digest}"
        before = [f"model.path={(jobs[-1].folder / 'final').as_posix()}"] if jobs else []
        name = f"bases/{folder.name}"
        jobs.append(Job(name=name, folder=folder, recipe=recipe, overrides=(*before, *overrides), arm=name))
    return jobs


def tuning_jobs(name: str, study: Study, runs: Path, reduced: bool) -> dict[str, dict[float, list[Job]]]:
    """Search -> value -> its runs; none for the reduced grid, which takes the recipes' own settings."""
    if reduced:
        return {}
    used = {arm.tune for arm in study.arms.values()}
    return {
        search: {value: _search(name, study, search, tuning, value, runs) for value in tuning.values}
        for search, tuning in study.tune.items()
        if search in used
    }


def _search(name: str, study: Study, search: str, tuning: Tuning, value: float, runs: Path) -> list[Job]:
    arm = study.arms[tuning.arm]
    jobs = []
    for seed in tuning.seeds:
        job_name = f"{name}/tune-{search}/{value:g}/seed-{seed}"
        overrides = (*_start(study, arm, runs), *_seeded(arm.set, seed), *_seeded(tuning.set, seed))
        overrides = (*overrides, f"{tuning.key}={value!r}")
        jobs.append(
            Job(name=job_name, folder=runs / job_name, recipe=arm.recipe, overrides=overrides, arm=search, seed=seed)
        )
    return jobs


def arm_jobs(name: str, study: Study, runs: Path, reduced: bool, tuned: Mapping[str, float]) -> list[Job]:
    """The runs that are compared, seed by seed: where time runs out, every arm has the same seeds.

    `tuned` holds the value that each search found best.
    """
    root = runs / "reduced" if reduced else runs
    seeds = study.reduced.seeds if reduced else study.seeds
    chosen = {a: study.arms[a] for a in study.reduced.arms} if reduced else study.arms
    jobs = []
    for seed in seeds:
        for arm_name, arm in chosen.items():
            overrides = _start(study, arm, runs)
            if reduced:
                overrides = (f"model.path={study.reduced.model}",)
            overrides = (*overrides, *_seeded(arm.set, seed))
            if arm.tune is not None and not reduced:
                overrides = (*overrides, f"{study.tune[arm.tune].key}={tuned[arm.tune]!r}")
            if reduced:
                overrides = (*overrides, *_seeded(study.reduced.arms[arm_name], seed))
            folder = root / name / arm_name / f"seed-{seed}"
            job_name = folder.relative_to(runs).as_posix()
            jobs.append(
                Job(name=job_name, folder=folder, recipe=arm.recipe, overrides=overrides, arm=arm_name, seed=seed)
            )
    return jobs


def _start(study: Study, arm: Arm, runs: Path) -> tuple[str, ...]:
    """The model an arm starts from."""
    if arm.base is None:
        return ()
    return (f"model.path={(_stages(study.bases[arm.base], runs)[-1].folder / 'final').as_posix()}",)


def _seeded(overrides: Sequence[str], seed: int) -> tuple[str, ...]:
    return (*(text.replace("{seed}", str(seed)) for text in overrides), f"run.seed={seed}")
