"""A model sent to the hub. There is no network here: a stand-in takes the calls, with huggingface_hub's signatures."""

import json
import types
from pathlib import Path
from unittest import mock

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from support import save_tiny

from vlm_r1.cli import main
from vlm_r1.errors import UserError
from vlm_r1.report.push import prepare, push

CARD = "---\nlicense: mit\n---\nfrom_pretrained('FOLDER_OR_HUB_ID')\n"


@pytest.fixture
def model(tmp_path):
    folder = save_tiny(tmp_path / "run" / "final")
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def hub(monkeypatch):
    """What the hub got: the calls, and the files as they were when they were sent."""
    api = mock.create_autospec(huggingface_hub.HfApi, instance=True)
    api.create_repo.return_value = huggingface_hub.RepoUrl("https://huggingface.co/me/mine")
    api.model_info.return_value = types.SimpleNamespace(private=True)
    api.files = {}

    def upload_folder(*, folder_path, **_):
        api.files |= {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}

    api.upload_folder.side_effect = upload_folder
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: api)
    return api


def call(*arguments) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["push", *map(str, arguments)])
    return stopped.value.code or 0


def test_a_run_is_pushed_in_private_with_its_card(model, hub, capsys):
    assert call(model.parent, "me/mine") == 0
    assert capsys.readouterr().out == f"pushed {model} to https://huggingface.co/me/mine (private)\n"
    hub.create_repo.assert_called_once_with("me/mine", private=True, exist_ok=True)
    assert hub.upload_folder.call_args.kwargs["repo_id"] == "me/mine"
    assert hub.files.keys() == {file.name for file in model.iterdir()}
    assert hub.files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert b"from_pretrained('me/mine')" in hub.files["README.md"]
    assert (model / "README.md").read_text() == CARD


def test_a_dry_run_sends_nothing_and_shows_everything(model, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: pytest.fail("a dry run asks the hub"))
    assert call(model, "me/mine", "--dry-run") == 0
    out = capsys.readouterr().out
    assert f"{(model / 'model.safetensors').stat().st_size:,} bytes  model.safetensors" in out
    assert "from_pretrained('me/mine')" in out and "nothing was sent to me/mine (private)" in out


def test_a_licence_is_put_into_the_card(model, hub):
    assert call(model, "me/mine", "--public", "--license", "apache-2.0") == 0
    assert ModelCard(hub.files["README.md"].decode()).data.license == "apache-2.0"
    hub.create_repo.assert_called_once_with("me/mine", private=False, exist_ok=True)


def test_nothing_becomes_public_unasked(model, hub):
    hub.model_info.return_value = types.SimpleNamespace(private=False)
    with pytest.raises(UserError, match="exists and is public; push to another name, or add --public"):
        push(prepare(model, "me/mine"))
    hub.upload_folder.assert_not_called()


def test_without_network_it_says_what_to_do(model):
    with pytest.raises(UserError, match=r"me/mine: could not be pushed \(.*\)\. Is the network there, HF_HUB_OFFLINE"):
        push(prepare(model, "me/mine"))


def test_what_cannot_be_pushed_is_refused(model, tmp_path):
    with pytest.raises(UserError, match='"not a name": is not a name on the hub'):
        prepare(model, "not a name")
    with pytest.raises(UserError, match="holds no model to push"):
        prepare(tmp_path, "me/mine")
    (model / "README.md").write_text("# no metadata\n")
    with pytest.raises(UserError, match="names no licence; give one that the base allows: --license"):
        prepare(model, "me/mine", private=False)
    (model / "README.md").unlink()
    with pytest.raises(UserError, match=r"has no model card; write README\.md"):
        prepare(model, "me/mine")


def test_an_adapter_of_a_local_base_is_refused(tmp_path):
    file = tmp_path / "adapter_config.json"
    (tmp_path / "README.md").write_text(CARD)
    file.write_text(json.dumps({"base_model_name_or_path": "/models/mine"}))
    with pytest.raises(UserError, match=r"names its base by a folder of this machine \(/models/mine\)"):
        prepare(tmp_path, "me/mine")
    file.write_text(json.dumps({"base_model_name_or_path": "Qwen/Qwen2.5-VL-3B-Instruct"}))
    assert set(prepare(tmp_path, "me/mine").sizes) == {"README.md", "adapter_config.json"}
