"""A study: what is asked, what is run, what is measured, and the rule by which its claims are called.

A study is a YAML file (recipes/lab/*.yaml with a key `question`). It is committed before it is run, so that the result
cannot choose the rule.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from vlm_r1.config_file import load_section
from vlm_r1.config_section import Section
from vlm_r1.errors import ConfigError, nearest

STUDIES = Path("recipes/lab")

CONDITION = re.compile(r"(?P<quantity>[\w-]+) (?P<sign>[<>]) (?P<bound>-?\d+(?:\.\d+)?)")
"""A condition of a rule: `rl_minus_sft > 0.02` holds where the whole interval of the quantity lies above 0.02."""

BEFORE = "@before"
"""The end of a term that is measured before training."""


class Arm(Section):
    """One way to train: a recipe with overrides, over the study's seeds."""

    recipe: str = Field(description="the recipe that is run")
    base: str | None = Field(None, description="a name of `bases`: the model it starts from; default: the recipe's")
    tune: str | None = Field(None, description="a name of `tune`: the setting that was found best there is used")
    set: list[str] = Field(
        default_factory=list, description="overrides of the recipe; {seed} stands for the seed, which begins at 1"
    )


class Tuning(Section):
    """A search for the best value of one setting, on a split and with seeds of its own."""

    arm: str = Field(description="the arm that is tuned; others may use the result")
    key: str = Field("optim.lr", description="the setting")
    values: list[float] = Field(description="what is tried", min_length=2)
    split: str = Field("tune", description="the held-out split that decides")
    metric: str = Field("mean_iou", description="the metric that decides; the highest mean over the seeds wins")
    seeds: list[int] = Field(description="seeds of the search; none of the study's", min_length=1)
    set: list[str] = Field(default_factory=list, description="overrides for the search, such as its held-out split")


class Measure(Section):
    """A number that a run has at each of its evaluations."""

    metric: str = Field(
        description="of the held-out answers (lab/measures.py), or log:NAME, the mean of the last ten lines"
    )
    splits: list[str] = Field(default_factory=list, description="the mean over these; none for a metric of the log")
    means: str = Field("", description="what it is, for the page")


class Quantity(Section):
    """A sum of measured numbers over arms, with an interval over seeds and questions, paired where they share them.

    `{"rl": 1, "sft": -1}` is the difference of two arms; `{"rl": 1, "rl@before": -1}` what training gained.
    """

    measure: str = Field(description="a name of `measures`")
    terms: dict[str, float] = Field(description="arm, or ARM@before -> its weight", min_length=1)
    at: Literal["end", "equal_samples", "equal_seconds", "equal_tokens"] = Field(
        "end", description="the last evaluation, or each arm's last one within what the shortest arm used"
    )
    means: str = Field("", description="what it is, for the page")


class When(Section):
    """Conditions on quantities, all or any of which must hold.

    For `any` of k conditions the intervals are wider (of level 1 - 0.05 / k), as one of many is easily met by chance.
    """

    all: list[str] = Field(
        default_factory=list, description="conditions such as `quantity > 0`, all of which must hold"
    )
    any: list[str] = Field(default_factory=list, description="conditions of which one must hold")

    @field_validator("all", "any")
    @classmethod
    def _readable(cls, conditions: list[str]) -> list[str]:
        for condition in conditions:
            if not CONDITION.fullmatch(condition):
                raise ValueError(f'"{condition}" is not a condition; write QUANTITY > NUMBER or QUANTITY < NUMBER')
        return conditions

    @model_validator(mode="after")
    def _one_way(self) -> When:
        if bool(self.all) == bool(self.any):
            raise ValueError("give either all or any, with at least one condition")
        return self

    @property
    def conditions(self) -> list[str]:
        """The conditions, whichever way they are joined."""
        return self.all or self.any


class Claim(Section):
    """A finding that is tested: shown, else refuted, else not shown, where neither rule is met."""

    claim: str
    paper: str = Field(description="the paper's number, with its table")
    shown: When
    refuted: When


class Plot(Section):
    """A chart of a measure during training, one line an arm with a band over its seeds."""

    measure: str
    arms: list[str] = Field(min_length=1, max_length=8)
    x: Literal["step", "samples", "tokens", "seconds"] = "samples"


class Reduced(Section):
    """The grid that `--reduced` runs: fewer arms, seeds and steps, from a model that is shipped."""

    arms: dict[str, list[str]] = Field(description="arm -> overrides that come after its own")
    seeds: list[int] = Field(min_length=2)
    model: str = Field("tiny", description="what all arms start from")


class Study(Section):
    """One study."""

    title: str
    question: str
    bases: dict[str, list[str]] = Field(
        default_factory=dict,
        description="name -> the stages of its training, each a recipe with overrides, starting from the one before",
    )
    arms: dict[str, Arm]
    seeds: list[int] = Field(min_length=2)
    tune: dict[str, Tuning] = Field(default_factory=dict)
    measures: dict[str, Measure]
    quantities: dict[str, Quantity]
    claims: list[Claim] = Field(min_length=1)
    plots: list[Plot] = Field(default_factory=list)
    images: dict[str, str] = Field(
        default_factory=dict, description="arm -> split whose questions are shown before and after, of its first seed"
    )
    reduced: Reduced
    limits: list[str] = Field(default_factory=list, description="what the comparison cannot say")

    @model_validator(mode="after")
    def _names(self) -> Study:
        for name, arm in self.arms.items():
            _known(f"arms.{name}.base", arm.base, self.bases)
            _known(f"arms.{name}.tune", arm.tune, self.tune)
        for name, tuning in self.tune.items():
            _known(f"tune.{name}.arm", tuning.arm, self.arms)
            if shared := set(tuning.seeds) & {*self.seeds, *self.reduced.seeds}:
                raise ValueError(f"tune.{name}.seeds: {sorted(shared)} are seeds of the study too; use others")
        for name, quantity in self.quantities.items():
            _known(f"quantities.{name}.measure", quantity.measure, self.measures)
            for term in quantity.terms:
                _known(f"quantities.{name}.terms", term.removesuffix(BEFORE), self.arms)
        for claim in self.claims:
            for condition in (*claim.shown.conditions, *claim.refuted.conditions):
                _known(f'claims: "{condition}"', condition.split(" ")[0], self.quantities)
        for plot in self.plots:
            _known("plots.measure", plot.measure, self.measures)
            for arm_name in plot.arms:
                _known("plots.arms", arm_name, self.arms)
        for name in (*self.images, *self.reduced.arms):
            _known("reduced.arms and images", name, self.arms)
        if min(*self.seeds, *self.reduced.seeds) < 1:
            raise ValueError("seeds: begin at 1: {seed} also stands before zeros, as in start={seed}00000")
        return self


def _known(where: str, name: str | None, valid: dict[str, object] | dict) -> None:
    if name is not None and name not in valid:
        raise ValueError(f'{where}: unknown name "{name}": {nearest(name, valid)}')


def load_study(path: Path) -> Study:
    """The study in a file. Raises `ConfigError` with file, line and key."""
    return load_section(Study, path)


def study_files(folder: Path = STUDIES) -> dict[str, Path]:
    """Study name -> its file, in the order of the names. Raises `ConfigError` where there is none.

    The recipes that studies run stand in the same folder; a study is the file with a key `question`.
    """
    files = sorted(folder.glob("*.yaml"))
    found = {f.stem: f for f in files if re.search(r"^question:", f.read_text(encoding="utf-8"), re.MULTILINE)}
    if not found:
        raise ConfigError(f"{folder}: holds no study; run this in the folder of the repository, or give --studies")
    return found


def chosen_studies(names: list[str], folder: Path = STUDIES) -> dict[str, Study]:
    """The studies of these names, all for none. Raises `ConfigError` for an unknown name."""
    files = study_files(folder)
    for name in names:
        if name not in files:
            raise ConfigError(f'no study "{name}" in {folder}: {nearest(name, files)}')
    return {name: load_study(file) for name, file in files.items() if not names or name in names}
