"""What a plan advises, against plans of the recipes that follow the advice; and the command that prints it."""

import json

import pytest
from support import recipe, save_tiny

from vlm_r1.cli import main
from vlm_r1.config_file import resolved_yaml
from vlm_r1.errors import ConfigError
from vlm_r1.plan.advice import advise, changed_recipe, more_gpus
from vlm_r1.plan.fit import resolve
from vlm_r1.plan.machine import GIB, USABLE, Machine, gpu_bytes
from vlm_r1.plan.make import make_plan
from vlm_r1.plan.prompts import find_questions


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A recipe of two rows that takes some 10 MiB, most of it in the update."""
    folder = tmp_path_factory.mktemp("plan")
    rl = {"group_size": 8, "prompts_per_step": 4, "beta": 0.1, "token_budget": 1000}
    return recipe(save_tiny(folder / "model"), folder / "run", rollout={"max_new_tokens": 40}, rl=rl)


def with_room(room: float, processes: int = 1) -> Machine:
    """GPUs that tensors can fill up to this."""
    return Machine(processes=processes, memory=int(room / USABLE) + 1)


def test_the_changes_take_what_a_plan_of_the_changed_recipe_says(run):
    plan = make_plan(run)
    room = plan.peak / 3
    changes = list(advise(run, plan, find_questions(run), with_room(room)))
    assert next(iter(changes[0].settings)) == "model.gradient_checkpointing"  # costs time alone, and saves most
    assert len(changes) > 1 and all(change.saves > 0 for change in changes)
    for change in changes:
        run = changed_recipe(run, change.settings)
    assert make_plan(run, machine=with_room(room)).peak == changes[-1].peak
    assert plan.peak - sum(change.saves for change in changes) == changes[-1].peak
    assert changes[-1].peak <= room < changes[-2].peak


def test_a_rollout_that_does_not_fit_is_cut(run):
    long = changed_recipe(run, {"rollout.max_new_tokens": 400, "model.gradient_checkpointing": True})
    long = changed_recipe(long, {"rl.token_budget": 500, "rl.group_size": 16})
    plan = make_plan(long)
    assert plan.peak_phase == "rollout" and plan.sequences == 64
    change = next(advise(long, plan, find_questions(long), with_room(plan.peak - 1)))
    assert change.settings == {"rollout.kv_cache_gb": pytest.approx(0.01, abs=0.01)}
    assert make_plan(changed_recipe(long, change.settings)).sequences < 64


def test_the_cache_is_bounded_by_the_gpu(run):
    """As many answers at once as half of what a GPU has left beside weights is room for (`rollout.concurrency`)."""
    plan = make_plan(run)
    tight = make_plan(run, machine=with_room(plan.phases["optimizer step"].total() + 2**18))
    assert tight.sequences < plan.sequences == 32


def test_a_vllm_server_takes_its_share_while_it_is_awake(run):
    """Named servers take nothing here; one that does not fit beside the trainer is made smaller."""
    machine = Machine(memory=2**27)
    served = changed_recipe(run, {"rollout.engine": "vllm", "rollout.server_memory": 0.9})
    plan = make_plan(served, machine=machine)
    assert plan.peak_phase == "rollout" and plan.phases["rollout"]["vLLM server"] == int(0.9 * 2**27)
    assert plan.phases["update"] == make_plan(run, machine=machine).phases["update"]
    change = next(advise(served, plan, find_questions(served), machine))
    assert change.settings == {"rollout.server_memory": 0.675}
    elsewhere = changed_recipe(served, {"rollout.servers": ["http://127.0.0.1:8000"]})
    assert "rollout" not in make_plan(elsewhere, machine=machine).phases


def test_more_gpus_share_the_states(run):
    plan = make_plan(run)
    wider = make_plan(run, machine=Machine(processes=4))
    assert len(wider.prompts) == 1 and wider.shard_size == 4
    change = more_gpus(run, plan, find_questions(run), with_room(wider.peak))
    assert change.settings == {"--gpus": 4} and change.saves == plan.peak - change.peak
    assert more_gpus(run, plan, find_questions(run), with_room(1000)) is None


def test_with_room_to_spare_it_says_what_is_faster(run):
    slow = changed_recipe(run, {"model.gradient_checkpointing": True, "rl.token_budget": 500})
    plan = make_plan(slow)
    quicker, wider = advise(slow, plan, find_questions(slow), Machine(memory=1 << 40))
    assert quicker.settings == {"model.gradient_checkpointing": False}
    assert wider.settings == {"rl.token_budget": sum(plan.rows)}
    assert wider.why == f"1 forward pass a step instead of {len(plan.rows)}"


@pytest.mark.slow
def test_automatic_checkpointing_is_on_where_it_is_needed(run):
    assert run.model.gradient_checkpointing == "auto"
    without = make_plan(run).peak
    checkpointed = make_plan(changed_recipe(run, {"model.gradient_checkpointing": True})).peak
    on_cpu = resolve(run, 1, None)
    large = resolve(run, 1, with_room(without).memory)
    small = resolve(run, 1, with_room(without - 1).memory)
    assert [r.model.gradient_checkpointing for r in (on_cpu, large, small)] == [False, False, True]
    with pytest.raises(ConfigError) as refused:
        resolve(run, 1, with_room(0.9 * checkpointed).memory)
    said = str(refused.value).splitlines()
    assert said[0].startswith("peak memory 0.0") and "(update) does not fit in a GPU with" in said[0]
    assert said[1].startswith("  rl.token_budget=") and said[-1].startswith("All advice: vlm-r1 plan RECIPE --gpus 1")


@pytest.mark.parametrize(
    ("text", "gib"), [("24", 24), ("0.5", 0.5), ("H100", 80), ("rtx 4090", 24), ("4090", 24), ("NVIDIA L40S", 48)]
)
def test_gpus_are_sizes_or_names(text, gib):
    assert gpu_bytes(text) == gib * GIB


@pytest.mark.parametrize(
    ("text", "said"), [("H1000", 'did you mean "H100"'), ("0", "above 0"), ("-3", "above 0"), ("nan", "above 0")]
)
def test_other_gpus_are_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        gpu_bytes(text)


def call(*arguments) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *map(str, arguments)])
    return stopped.value.code or 0


@pytest.fixture
def file(run, tmp_path):
    """The recipe as a file."""
    path = tmp_path / "recipe.yaml"
    path.write_text(resolved_yaml(run))
    return path


def test_the_command_prints_a_table_or_json(file, capsys):
    assert call(file, "--json", "--gpu-memory", "24") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["gpu_memory"] == 24 * GIB
    assert set(found["parameters"]) == {"vision", "connector", "language"}
    assert found["peak"] == sum(found["phases"][found["peak_phase"]].values())
    memory = f"{found['peak'] / GIB / 3:.5f}"
    assert call(file, "--gpu-memory", memory) == 0
    said = capsys.readouterr().out
    assert "4 prompts of " in said and f"does not fit in a GPU with {float(memory):g} GiB" in said
    assert "gradient checkpointing on" in said and "rl.token_budget=" in said and "--gpus" in said


def test_the_command_speaks_of_one_of_several_processes(file, capsys):
    assert call(file, "--json", "--gpus", "4") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["processes"], found["shard_size"], len(found["prompts"])) == (4, 4, 1)
    assert call(file, "--gpus", "4", "--gpu-memory", "H100") == 0
    said = capsys.readouterr().out
    table = {line.split("  ")[0]: line.split()[-3:] for line in said.splitlines() if "  " in line}
    assert table["peak memory"] == [f"{sum(phase.values()) / 2**20:.2f}" for phase in found["phases"].values()]
    assert "4, 4 hold one copy of the weights" in said and "fits in each of 4 GPUs with 80 GiB" in said


def test_the_old_name_of_the_memory_is_understood(file, capsys):
    with pytest.warns(FutureWarning, match="write --gpu-memory"):
        assert call(file, "--card", "24") == 0
    assert "fits in a GPU with 24 GiB" in capsys.readouterr().out


def test_a_wrong_gpu_and_a_missing_model_end_with_one_message(file, tmp_path, capsys):
    assert call(file, "--gpu-memory", "big") == 2
    assert capsys.readouterr().err.startswith('error: --gpu-memory "big"')
    assert call(file, f"model.path={tmp_path}") == 2
    assert "model folder" in capsys.readouterr().err
