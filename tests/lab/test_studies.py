"""Every study of the repository parses, its runs resolve to valid recipes, and a wrong study is named."""

from pathlib import Path

import pytest

from vlm_r1.config_file import load_config
from vlm_r1.errors import ConfigError
from vlm_r1.lab.grid import arm_jobs, base_jobs, tuning_jobs
from vlm_r1.lab.measures import HELD_OUT
from vlm_r1.lab.results import LOG
from vlm_r1.lab.study import Study, chosen_studies, load_study, study_files
from vlm_r1.models.load import load_policy

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes" / "lab"
NAMES = sorted(study_files(FOLDER))
SIZES = {"small": 0.7e6, "medium": 2.6e6, "large": 8e6}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_six_studies_are_there():
    assert NAMES == ["data", "reward-hacking", "rl-vs-sft", "settings", "size", "thinking"]


def jobs_of(name: str, reduced: bool):
    study = load_study(FOLDER / f"{name}.yaml")
    tuned = {search: tuning.values[0] for search, tuning in study.tune.items()}
    found = [job for stage in base_jobs(study, Path("runs"), reduced) for job in stage]
    for values in tuning_jobs(name, study, Path("runs"), reduced).values():
        found += [job for jobs in values.values() for job in jobs]
    return study, found, arm_jobs(name, study, Path("runs"), reduced, tuned)


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_run_of_a_study_is_a_valid_recipe_of_its_own(name, reduced):
    _, before, arms = jobs_of(name, reduced)
    everything = [*before, *arms]
    assert len({job.folder for job in everything}) == len(everything)
    assert len({job.fingerprint() for job in everything}) == len(everything), "two runs are the same"
    for job in everything:
        job.command(1)
        recipe = job.settings()
        assert recipe.run.seed == job.seed or job in before
        assert recipe.data.eval


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_an_arm_is_measured_on_the_splits_it_has_and_pairs_share_their_questions(name, reduced):
    study, _, arms = jobs_of(name, reduced)
    splits = {job.arm: job.settings().data.eval for job in arms}
    for key, quantity in study.quantities.items():
        measure = study.measures[quantity.measure]
        names = [term.removesuffix("@before") for term in quantity.terms]
        if not set(names) <= splits.keys():
            assert reduced
            continue
        for split in measure.splits:
            sources = {splits[arm][split].model_dump_json() for arm in names}
            assert len(sources) == 1, f"{key}: {names} are asked different questions in {split}"


@pytest.mark.parametrize("name", NAMES)
def test_measures_exist_and_everything_is_used(name):
    study = load_study(FOLDER / f"{name}.yaml")
    assert all(m.metric in HELD_OUT or m.metric.startswith(LOG) for m in study.measures.values())
    assert all(m.means for m in study.measures.values())
    assert {arm.base for arm in study.arms.values()} == set(study.bases)
    assert {arm.tune for arm in study.arms.values()} - {None} == set(study.tune)
    assert len(study.seeds) >= 5, "a claim needs five seeds"
    used = {term.removesuffix("@before") for q in study.quantities.values() for term in q.terms}
    drawn = {arm for plot in study.plots for arm in plot.arms}
    assert set(study.arms) == used | (drawn & set(study.arms)), "an arm that nothing uses"


def test_searches_do_not_look_at_what_is_reported():
    for name in NAMES:
        _, before, arms = jobs_of(name, False)
        reported = {s.model_dump_json() for job in arms for s in job.settings().data.eval.values()}
        for job in before:
            held_out = job.settings().data.eval
            assert all(source.scenes.split == "tune" for source in held_out.values())
            assert not {s.model_dump_json() for s in held_out.values()} & reported


@pytest.mark.parametrize("size", SIZES)
def test_the_bases_are_one_architecture_in_three_sizes(size):
    recipes = {name: load_config(FOLDER / f"base-{name}.yaml") for name in SIZES}
    loaded = load_policy(recipes[size].model, recipes[size].prompt, seed=0)
    parameters = sum(p.numel() for p in loaded.policy.parameters())
    assert parameters == pytest.approx(SIZES[size], rel=0.05)
    header = (FOLDER / f"base-{size}.yaml").read_text().split("\n")[0]
    assert f"{parameters:,}" in header
    ours, medium = (recipes[name].model_dump() for name in (size, "medium"))
    for part in ("data", "sft", "optim", "prompt"):
        assert ours[part] == medium[part]
    width = {"hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "num_heads"}
    for part in ("text_config", "vision_config"):
        a, b = (found["model"]["scratch"][part] for found in (ours, medium))
        assert {key for key in a if a[key] != b[key]} <= width | {"out_hidden_size"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("base: b, tune: lr", "base: c, tune: lr", r'arms.rl.base: unknown name "c".*valid: b'),
        ("terms: {rl: 1, sft: -1}", "terms: {rl: 1, stf: -1}", r'unknown name "stf": did you mean "sft"'),
        ("difference > 0, gain", "diference > 0, gain", r'unknown name "diference": did you mean "difference"'),
        ("seeds: [11, 12]", "seeds: [1, 12]", r"\[1\] are seeds of the study too"),
        ("measure: iou, arms", "measure: iuo, arms", r'plots.measure: unknown name "iuo"'),
        ("arms: {rl: [", "arms: {xx: [", r'reduced.arms and images: unknown name "xx"'),
        ("seeds: [1, 2, 3]", "seeds: [0, 2, 3]", r"seeds: begin at 1"),
        ("paper: table 2", "papr: table 2", r'study.yaml:\d+: unknown key "claims.0.papr": did you mean "paper"'),
        ("claims:", "claim:", r'unknown key "claim"'),
    ],
)
def test_a_wrong_study_is_named_with_its_place(study, tmp_path, old, new, message):
    file = tmp_path / "study.yaml"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        load_study(file)


def test_an_unknown_study_and_a_folder_without_any_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r'no study "sizes".*did you mean "size"'):
        chosen_studies(["sizes"], FOLDER)
    with pytest.raises(ConfigError, match="holds no study"):
        study_files(tmp_path)


def test_the_page_of_the_lab_names_every_key_of_a_study():
    from pages import first_column

    assert sorted(first_column("lab.md", "key of a study")) == sorted(Study.model_fields)
