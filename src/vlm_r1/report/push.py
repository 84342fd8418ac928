"""`vlm-r1 push`: a run's final model, with its card, to the Hugging Face hub; huggingface_hub does the work."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_r1.errors import ModelError, UserError
from vlm_r1.report.model_card import CARD, PLACE, write_card


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """What is sent where: files of `folder` by name with their bytes, the card among them.

    Example: `Upload(repo="me/mine", private=True, folder=Path("runs/x/final"), sizes={"README.md": 2100}, card="...")`.
    """

    repo: str
    private: bool
    folder: Path
    sizes: dict[str, int]
    card: str


def prepare(source: Path, repo: str, *, private: bool = True, licence: str | None = None) -> Upload:
    """Check a run folder or model folder and say what would be sent. Asks no network.

    The card is that of the folder, with `repo` filled in and, where given, `licence` (an identifier of the hub, such as
    apache-2.0). Raises `UserError` for a folder without a model, a wrong name, an adapter whose base nobody else has,
    and a public model without a licence.
    """
    from huggingface_hub import ModelCard
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f'"{repo}": is not a name on the hub ({error}); write OWNER/NAME') from None
    folder = source / "final" if (source / "final").is_dir() else source
    _check_model(folder)
    if not (folder / CARD).is_file():
        if not (folder.parent / "config.yaml").is_file():
            raise ModelError(f"{folder}: has no model card; write {CARD}, or push the folder of a run")
        write_card(folder.parent, folder)
    card = ModelCard((folder / CARD).read_text(encoding="utf-8").replace(PLACE, repo), ignore_metadata_errors=True)
    data: Any = card.data
    if licence is not None:
        data.license, data.license_name, data.license_link = licence, None, None
    if not private and not data.license:
        raise UserError(f"{folder / CARD}: names no licence; give one that the base allows: --license apache-2.0")
    text = str(card)
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in _files(folder)}
    return Upload(repo=repo, private=private, folder=folder, sizes=sizes | {CARD: len(text.encode())}, card=text)


def push(upload: Upload) -> str:
    """Make the repository where it is missing, and send everything as one commit; returns its address.

    Raises `UserError` where it exists and others can see it though `private` is set, and where the hub refuses or
    cannot be reached.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi(library_name="vlm-r1")
    try:
        url = api.create_repo(upload.repo, private=upload.private, exist_ok=True)
        if upload.private and not api.model_info(url.repo_id).private:
            raise UserError(f"{url}: exists and is public; push to another name, or add --public")
        with _staged(upload) as folder:
            api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="Add the model of a VLM-R1 run")
    except (HfHubHTTPError, LocalTokenNotFoundError, httpx.HTTPError, ConnectionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{upload.repo}: could not be pushed ({reason}). Is the network there, HF_HUB_OFFLINE unset, and are you "
            "logged in with a token that may write? Log in: hf auth login"
        ) from error
    return str(url)


@contextmanager
def _staged(upload: Upload) -> Iterator[Path]:
    """A folder of links to the files, with the card that is sent."""
    with tempfile.TemporaryDirectory() as aside:
        for name in upload.sizes:
            target = Path(aside, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if name == CARD:
                target.write_text(upload.card, encoding="utf-8")
            else:
                target.symlink_to((upload.folder / name).resolve())
        yield Path(aside)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))


def _check_model(folder: Path) -> None:
    """Raise `ModelError` where a folder holds no whole model and no adapter that others could load."""
    if (folder / "config.json").is_file():
        return
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise ModelError(f"{folder}: holds no model to push; name a finished run, or a model folder")
    base = str(json.loads(file.read_bytes()).get("base_model_name_or_path"))
    if Path(base).exists() or base.startswith(("/", ".", "~")):
        raise ModelError(
            f"{file}: names its base by a folder of this machine ({base}), which nobody else has; write the base's hub "
            "id there, or push a merged model: vlm-r1 export RUN --merge --out FOLDER"
        )
