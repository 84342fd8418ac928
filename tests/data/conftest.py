"""A folder with images of known sizes, and a writer of JSONL."""

import json
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`a.png` is 64x48 and `b.jpg` 100x80 pixels."""
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    Image.new("RGB", (100, 80), "blue").save(tmp_path / "b.jpg")
    return tmp_path


@pytest.fixture
def write(folder):
    def _write(*rows, name="data.jsonl") -> Path:
        path = folder / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return _write
