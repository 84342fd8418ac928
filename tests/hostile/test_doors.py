"""There is one door for images, one reader of YAML, and no model is read with the question whether to run its code."""

import ast
from pathlib import Path

import vlm_r1

PACKAGE = Path(vlm_r1.__file__).parent
CALLS = [
    (file.relative_to(PACKAGE).as_posix(), ast.unparse(node.func), {keyword.arg for keyword in node.keywords})
    for file in sorted(PACKAGE.rglob("*.py"))
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    if isinstance(node, ast.Call)
]
"""File, what is called, and the names of its keyword arguments."""


def callers(*names: str) -> set[str]:
    return {file for file, called, _ in CALLS if called in names}


def test_images_come_in_by_one_door():
    assert callers("Image.open", "PIL.Image.open", "ImageOps.exif_transpose") == {"image_file.py", "video_file.py"}


def test_yaml_is_read_by_one_loader():
    assert callers("_Loader", "yaml.SafeLoader") == {"config_file.py"}
    assert callers("yaml.load", "yaml.safe_load", "yaml.load_all", "yaml.safe_load_all", "yaml.full_load") == set()


def test_pickles_are_read_without_running_anything():
    assert callers("pickle.load", "pickle.loads") == set()
    assert [file for file, called, keywords in CALLS if called == "torch.load" and "weights_only" not in keywords] == []


def test_transformers_is_told_whether_to_run_a_models_code():
    plain = ("GenerationConfig.", "PeftConfig.", "peft.")  # these run none
    asked = {
        (file, called)
        for file, called, keywords in CALLS
        if called.endswith((".from_pretrained", ".from_config"))
        and not called.startswith(plain)
        and "trust_remote_code" not in keywords
    }
    assert asked == {("models/scratch.py", "AutoModelForImageTextToText.from_config")}  # a configuration made here
