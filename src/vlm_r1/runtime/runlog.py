"""What a run leaves behind for people to read: metrics, rollouts and evaluations in the run folder.

    metrics.jsonl                 one JSON object a step
    rollouts/step-000012.parquet  one row an answer (`ROLLOUT_COLUMNS`)
    eval.json                     {"before": {split: {n, mean_iou, acc@0.5, ...}}, "after": {...}}
    eval-before.parquet           one row a held-out question (`EVAL_COLUMNS`)
    environment.json              what the run was made with: versions, system, cores

Everything but `metrics.jsonl` is written aside and renamed, so a killed run leaves whole files; a line of
`metrics.jsonl` goes out in one write, and a line that was cut all the same is dropped on the next start.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_r1.errors import CheckpointError, writing_remedy
from vlm_r1.files import make_folder, remove, replacing, sweep, sync
from vlm_r1.records import LabelledBox

_WRITTEN = [("think", pa.string()), ("answer", pa.string()), ("failure", pa.string())]
_DRAWN = [
    ("true_boxes", pa.string()),
    ("pred_boxes", pa.string()),
    ("image", pa.binary()),
    ("image_width", pa.int32()),
    ("image_height", pa.int32()),
    ("calls", pa.string()),
    ("shown", pa.list_(pa.binary())),
]
_ASKED = [("sample_id", pa.string()), ("task", pa.string()), ("question", pa.string()), ("completion", pa.string())]

ROLLOUT_COLUMNS = pa.schema(
    [
        ("step", pa.int64()),
        ("group", pa.int32()),
        ("source", pa.string()),
        *_ASKED,
        *_WRITTEN,
        ("finish", pa.string()),
        ("n_tokens", pa.int32()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("version", pa.int64()),
        ("reward", pa.float64()),
        ("parts", pa.string()),
        ("advantage", pa.float64()),
        *_DRAWN,
    ]
)
"""`parts` is JSON, name -> value; boxes are JSON in original pixels (`boxes_to_json`); `image` holds PNG or JPEG bytes
on the first row of a group and null on the others; `failure` is the kind of a `ParseFailure`, or null; `logprobs` are
the sampler's and `version` that of the weights that wrote the answer: enough to replay it. `calls` is JSON, what was
asked of an environment (a `ToolCall`, with how many images it showed), and `shown` holds those images, made small."""

EVAL_COLUMNS = pa.schema(
    [
        ("split", pa.string()),
        ("source", pa.string()),
        *_ASKED,
        *_WRITTEN,
        ("iou", pa.float64()),
        ("score", pa.float64()),
        ("correct", pa.bool_()),
        ("well_formed", pa.bool_()),
        ("n_tokens", pa.int32()),
        *_DRAWN,
    ]
)
"""As in `ROLLOUT_COLUMNS`; `image` is held for the first images of a split only: the table
also names the data that holds the others (`write_eval_samples`). `score` is the plain accuracy of
the answer in [0, 1]; `correct` is null where there is nothing to compare with."""


_DATA = b"vlm_r1.data"

PACKAGES = ("vlm-r1", "torch", "transformers", "accelerate", "peft", "datasets", "pillow", "numpy")
"""The packages whose versions a run records."""


class RunLog:
    """Writes the readable part of a run folder.

    Example: `RunLog(Path("runs/demo")).metrics(3, {"reward": 0.41})`.
    """

    def __init__(self, run_dir: Path, repair: bool = True) -> None:
        """Make the folder, and (where `repair` is set) drop a metrics line that a killed run left half written."""
        self.run_dir = Path(run_dir)
        self._metrics_path = self.run_dir / "metrics.jsonl"
        with Writing(self.run_dir):
            make_folder(self.run_dir)
        if repair and self._metrics_path.is_file():
            _drop_cut_line(self._metrics_path)

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line of numbers, and of lists of sentences; NaN and infinity become null.

        Raises `CheckpointError` on a full disk.
        """
        kept = {name: value if isinstance(value, list) else _finite(value) for name, value in values.items()}
        line = {"step": int(step), **kept}
        data = (json.dumps(line) + "\n").encode()
        with Writing(self._metrics_path), open(self._metrics_path, "ab", buffering=0) as file:
            size = file.tell()
            try:
                written = file.write(data)
                if written != len(data):
                    file.write(data[written:])
            except OSError:
                if self._metrics_path.is_file():
                    os.truncate(self._metrics_path, size)
                raise

    def sync(self) -> None:
        """Have the lines so far outlive a power cut, as the checkpoint of their last step does."""
        if self._metrics_path.is_file():
            sync(self._metrics_path)

    def rollouts(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Write the answers of one step (`ROLLOUT_COLUMNS`; `step` is filled in). Raises `CheckpointError`."""
        table = _table([{**row, "step": int(step)} for row in rows], ROLLOUT_COLUMNS)
        _write_parquet(rollout_path(self.run_dir, step), table)

    def evaluation(
        self,
        phase: str,
        splits: Mapping[str, Mapping[str, float]],
        samples: list[dict[str, Any]] | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Put one evaluation into `eval.json` and its rows (`EVAL_COLUMNS`) into `eval-<phase>.parquet`.

        `phase` is "before", "after" or any other short name; an evaluation of the same phase is replaced. `data` is
        kept with the rows (`write_eval_samples`).
        """
        if samples is not None:
            write_eval_samples(eval_path(self.run_dir, phase), samples, data)
        merged = read_eval(self.run_dir)
        merged[phase] = {split: {k: _finite(v) for k, v in values.items()} for split, values in splits.items()}
        write_atomically(self.run_dir / "eval.json", (json.dumps(merged, indent=2) + "\n").encode())

    def copy_evaluation(self, phase: str, to: str) -> None:
        """Keep an evaluation under a second name. Raises `CheckpointError` on a full disk."""
        write_atomically(eval_path(self.run_dir, to), eval_path(self.run_dir, phase).read_bytes())
        self.evaluation(to, read_eval(self.run_dir)[phase])

    def environment(self) -> None:
        """Write `environment.json`: the versions of Python and the packages that matter, system, processor cores."""
        found = {"python": platform.python_version()}
        for name in PACKAGES:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(name)
        found |= {"system": f"{platform.system()} {platform.machine()}", "cores": str(os.cpu_count())}
        write_atomically(self.run_dir / "environment.json", (json.dumps(found, indent=2) + "\n").encode())

    def truncate_after(self, step: int) -> None:
        """Forget what later steps wrote: a run resumed from the checkpoint of `step` writes it again."""
        rows = read_metrics(self.run_dir)
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) < len(rows):
            write_atomically(self._metrics_path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        for later in rollout_steps(self.run_dir):
            if later > step:
                rollout_path(self.run_dir, later).unlink()
        sweep(self.run_dir)
        for left in self.run_dir.glob("rollouts/.step-*.tmp"):  # of a process that was killed, on any machine
            remove(left)


def check_writable(run_dir: Path) -> None:
    """Raise `CheckpointError` where a run folder can neither be written nor made; nothing is made."""
    place = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "cannot be written to" if place.is_dir() else "is not a folder"
        raise CheckpointError(f"run.dir {run_dir}: {place} {why}; set run.dir to a folder that you can write")


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` in order; empty where there is none. A last line that was cut is left out.

    Raises `CheckpointError` for a broken line elsewhere.
    """
    path = Path(run_dir) / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            row["step"]
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            text = line[:60].decode(errors="replace")
            raise CheckpointError(f"{path}:{number}: not a metrics line ({text!r}); remove that line") from None
        rows.append(row)
    return rows


def rollout_steps(run_dir: Path) -> list[int]:
    """The steps whose rollouts were kept, ascending."""
    names = (re.fullmatch(r"step-(\d+)\.parquet", path.name) for path in Path(run_dir).glob("rollouts/step-*.parquet"))
    return sorted(int(match[1]) for match in names if match)


def read_rollouts(run_dir: Path, step: int) -> list[dict[str, Any]]:
    """The answers of one step, as dicts with `ROLLOUT_COLUMNS`. Raises `CheckpointError` where there are none."""
    path = rollout_path(Path(run_dir), step)
    if not path.is_file():
        steps = rollout_steps(run_dir)
        kept = f"steps {steps[0]} to {steps[-1]} have one" if steps else "set run.log_rollouts_every to keep some"
        raise CheckpointError(f"{path}: no rollout table for step {step}; {kept}")
    return _read_parquet(path)


def read_eval(run_dir: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """`eval.json` as phase -> split -> metric -> value; empty where there is none. Raises `CheckpointError`."""
    path, remedy = Path(run_dir) / "eval.json", "remove it and evaluate again"
    found: Any = read_json(path, remedy)
    phases = found.values() if isinstance(found, dict) else [None]
    splits = [split for phase in phases for split in (phase.values() if isinstance(phase, dict) else [None])]
    if not all(isinstance(split, dict) for split in splits):
        raise CheckpointError(f"{path}: does not hold phases with splits with metrics; {remedy}")
    return found


def read_samples(path: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """The rows of a table of answers; only some columns that it has where asked for. Raises `CheckpointError`."""
    return _read_parquet(Path(path), columns)


def write_eval_samples(path: Path, samples: list[dict[str, Any]], data: Mapping[str, Any] | None = None) -> None:
    """Write rows of held-out questions (`EVAL_COLUMNS`) as Parquet. Raises `CheckpointError` on a full disk.

    `data` says where their images are: {"folder": where paths start, "seed": ..., "splits": {split: its source}}.
    """
    table = _table(samples, EVAL_COLUMNS)
    _write_parquet(Path(path), table if data is None else table.replace_schema_metadata({_DATA: json.dumps(data)}))


def read_eval_data(path: Path) -> dict[str, Any]:
    """The `data` of `write_eval_samples`; empty where a table holds none. Raises `CheckpointError`."""
    try:
        return json.loads((pq.read_schema(path).metadata or {}).get(_DATA, b"{}"))
    except (OSError, ValueError, RecursionError, pa.ArrowException) as error:
        raise CheckpointError(f"{path}: not a whole Parquet file ({error}); remove it") from None


def read_environment(run_dir: Path) -> dict[str, str]:
    """What `RunLog.environment` wrote; empty where there is none. Raises `CheckpointError`."""
    return read_json(Path(run_dir) / "environment.json", "remove it")


def boxes_to_json(boxes: Iterable[LabelledBox]) -> str:
    """Boxes as the tables hold them.

    >>> boxes_to_json([LabelledBox(box=(1, 2, 3, 4), label="cat")])
    '[{"box": [1, 2, 3, 4], "label": "cat"}]'
    """
    return json.dumps([{"box": [_finite(x) for x in item.box], "label": item.label} for item in boxes])


def boxes_from_json(text: str | None) -> list[LabelledBox]:
    """The boxes of one table cell; a box that is not four finite numbers is left out."""
    found = []
    for item in json.loads(text) if text else []:
        box, label = item["box"], item.get("label")
        if len(box) == 4 and all(isinstance(x, int | float) and abs(x) < math.inf for x in box):
            found.append(LabelledBox(box=tuple(box), label=label if isinstance(label, str) else ""))
    return found


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: aside, then renamed over `path`. Raises `CheckpointError` on a full disk."""
    with Writing(path), replacing(path) as aside:
        aside.write_bytes(data)


class Writing:
    """Turns the system's refusal to write into a message with the path and the remedy."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise CheckpointError(
                f"{self.path}: cannot be written ({error.strerror or error}); {writing_remedy(error)}, "
                "then start the same command again: the run continues from its last checkpoint, if it has one"
            ) from error


def _finite(value: Any) -> float | int | None:
    number = value if isinstance(value, int) else None if value is None else float(value)
    return number if number is None or math.isfinite(number) else None


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    unknown = {name for row in rows for name in row} - set(schema.names)
    if unknown:
        raise ValueError(f"unknown columns {sorted(unknown)}; the table has {schema.names}")
    return pa.Table.from_pylist(rows, schema=schema)


def _write_parquet(path: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes())


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON file; empty where there is none. Raises `CheckpointError`, with the remedy, for what is not JSON."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({error}); {remedy}") from None


def _read_parquet(path: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    try:
        known = None if columns is None else [name for name in pq.read_schema(path).names if name in columns]
        return pq.read_table(path, columns=known).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise CheckpointError(f"{path}: not a whole Parquet file ({error}); remove it") from None


def rollout_path(run_dir: Path, step: int) -> Path:
    """The table of one step's answers."""
    return run_dir / "rollouts" / f"step-{step:06d}.parquet"


def eval_path(run_dir: Path, phase: str) -> Path:
    """The table of one evaluation's questions."""
    if not re.fullmatch(r"[\w.-]+", phase):
        raise ValueError(f"phase {phase!r} is part of a file name: letters, digits, dot, dash and underscore only")
    return run_dir / f"eval-{phase}.parquet"


def _drop_cut_line(path: Path) -> None:
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with Writing(path):
            os.truncate(path, whole)
