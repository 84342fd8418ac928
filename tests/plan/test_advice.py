"""What a plan advises, against plans of the recipes that follow the advice; and the command that prints it."""

import json

import pytest
from support import recipe, save_tiny

from vlm_r1.cli import main
from vlm_r1.config import Recipe
from vlm_r1.config_file import resolved_yaml
from vlm_r1.errors import ConfigError
from vlm_r1.plan.advice import GIB, USABLE, advise, card_bytes
from vlm_r1.plan.make import make_plan
from vlm_r1.plan.prompts import find_questions


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A recipe of two rows that takes some 10 MiB, most of it in the update."""
    folder = tmp_path_factory.mktemp("plan")
    rl = {"group_size": 8, "prompts_per_step": 4, "beta": 0.1, "token_budget": 1000}
    return recipe(save_tiny(folder / "model"), folder / "run", rollout={"max_new_tokens": 40}, rl=rl)


def changed(recipe: Recipe, settings) -> Recipe:
    values = recipe.model_dump()
    for key, value in settings.items():
        section, name = key.split(".")
        values[section][name] = value
    return Recipe.model_validate(values)


def test_the_changes_take_what_a_plan_of_the_changed_recipe_says(run):
    plan = make_plan(run)
    room = plan.peak / 3
    changes = list(advise(run, plan, find_questions(run), int(room / USABLE)))
    assert next(iter(changes[0].settings)) == "model.gradient_checkpointing"  # costs time alone, and saves most
    assert len(changes) > 1 and all(change.saves > 0 for change in changes)
    for change in changes:
        run = changed(run, change.settings)
    assert make_plan(run).peak == changes[-1].peak == plan.peak - sum(change.saves for change in changes)
    assert changes[-1].peak <= room < changes[-2].peak


def test_with_room_to_spare_it_says_what_is_faster(run):
    slow = changed(run, {"model.gradient_checkpointing": True, "rl.token_budget": 500})
    plan = make_plan(slow)
    quicker, wider = advise(slow, plan, find_questions(slow), 1 << 40)
    assert quicker.settings == {"model.gradient_checkpointing": False}
    assert wider.settings == {"rl.token_budget": sum(plan.rows)}
    assert wider.why == f"1 forward pass a step instead of {len(plan.rows)}"


@pytest.mark.parametrize(
    ("text", "gib"), [("24", 24), ("0.5", 0.5), ("H100", 80), ("rtx 4090", 24), ("4090", 24), ("NVIDIA L40S", 48)]
)
def test_cards_are_sizes_or_names(text, gib):
    assert card_bytes(text) == gib * GIB


@pytest.mark.parametrize(
    ("text", "said"), [("H1000", 'did you mean "H100"'), ("0", "above 0"), ("-3", "above 0"), ("nan", "above 0")]
)
def test_other_cards_are_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        card_bytes(text)


def call(*arguments) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *map(str, arguments)])
    return stopped.value.code or 0


def test_the_command_prints_a_table_or_json(run, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(resolved_yaml(run))
    assert call(file, "--json", "--card", "24") == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["fits"] and found["card"] == 24 * GIB and set(found["parameters"]) == {"vision", "connector", "language"}
    )
    assert found["peak"] == sum(found["phases"][found["peak_phase"]].values())
    card = f"{found['peak'] / GIB:.4f}"  # all of it, of which a tenth cannot be used
    assert call(file, "--card", card) == 0
    said = capsys.readouterr().out
    table = {line.split("  ")[0]: line.split()[-3:] for line in said.splitlines() if "  " in line}
    assert table["most at once"] == [f"{sum(phase.values()) / 2**20:.2f}" for phase in found["phases"].values()]
    assert "4 prompts of " in said and f"does not fit in {float(card):g} GiB" in said
    assert "model.gradient_checkpointing=true" in said


def test_a_wrong_card_and_a_missing_model_end_with_one_message(run, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(resolved_yaml(run))
    assert call(file, "--card", "big") == 2
    assert capsys.readouterr().err.startswith('error: --card "big"')
    assert call(file, f"model.path={tmp_path}") == 2
    assert "is no model folder" in capsys.readouterr().err
