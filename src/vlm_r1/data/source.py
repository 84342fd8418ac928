"""A source of a recipe as a sequence of samples: generated scenes, a file, or a data set on the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_r1.config import DataSource
from vlm_r1.data.images import ImageFinder
from vlm_r1.data.jsonl import empty_file, iter_rows, row_name
from vlm_r1.data.lazy import SampleSequence
from vlm_r1.data.negatives import WithNegatives
from vlm_r1.data.parquet import IMAGE_COLUMNS, ParquetTable
from vlm_r1.data.rows import RowContext, read_row
from vlm_r1.data.sampling import sampled_indices
from vlm_r1.errors import ConfigError, DataError, Fault, RowError
from vlm_r1.records import Sample


def load_source(source: DataSource, *, base: Path | None = None, seed: int = 0) -> Sequence[Sample]:
    """The samples of a source, in file order; images stay undecoded.

    Relative paths start from `base` (default: the working folder), image paths from `image_root` (default: the
    data file's folder). All rows that `sampling` picks are checked before the first is used. Raises `DataError`
    naming file, line and remedy, and `ConfigError` for a wrong `sampling`.
    """
    samples: Sequence[Sample]
    if source.scenes is not None:
        # Only here: a run on files does not need the generator.
        from vlm_r1.data.scenes import load_scenes

        if source.negatives:
            raise ConfigError("negatives are for files and hub data sets; scenes have the question kind detect")
        samples = load_scenes(source.scenes)
        return samples if source.sampling == "all" else Picked(samples, source.sampling, seed)
    folder = base if base is not None else Path()
    if source.path is not None:
        samples = _load_file(folder / source.path, source, folder, seed)
    else:
        samples = _load_hub(source, folder, seed)
    return WithNegatives(samples, source.negatives, seed) if source.negatives else samples


class LazySamples(SampleSequence):
    """Rows of a table, read into samples when asked for. `get_row` takes a row's index from 0.

    `questions` and `rewards` (the names that rows ask for) are known without reading images.
    """

    def __init__(
        self,
        get_row: Callable[[int], Mapping[str, Any]],
        get_text: Callable[[int], Mapping[str, Any]],
        indices: Sequence[int],
        context: RowContext,
        name: str,
    ) -> None:
        """`get_text` gives a row without its images, `name` is what messages call the table. Raises `DataError` where a
        row has faults."""
        self._get_row, self._indices, self._context, self.name = get_row, indices, context, name
        self.questions: list[str] = []
        self.rewards: set[str] = set()
        for sample in _texts(get_text, indices, context, name):
            self.questions.append(sample.question)
            if sample.reward is not None:
                self.rewards.add(sample.reward)

    def __len__(self) -> int:
        return len(self._indices)

    def at(self, index: int) -> Sample:
        """The sample of a row. Raises `RowError` where the row has faults."""
        row = self._indices[index]
        sample, faults = read_row(self._get_row(row), self._context, row + 1)
        if sample is None:
            raise RowError(faults, f"{self._context.name} row {row + 1}")
        return sample


class Picked(SampleSequence):
    """The part of a sequence that a sampling string picks."""

    def __init__(self, samples: Sequence[Sample], sampling: str, seed: int) -> None:
        self.samples = samples
        self.indices = sampled_indices(sampling, len(samples), seed)

    def __len__(self) -> int:
        return len(self.indices)

    def at(self, index: int) -> Sample:
        """The sample at an index."""
        return self.samples[self.indices[index]]


def _load_file(path: Path, source: DataSource, folder: Path, seed: int) -> Sequence[Sample]:
    root = folder / source.image_root if source.image_root is not None else path.parent
    if not root.is_dir():
        raise DataError(f'image_root "{root}" is not a folder; correct it (relative to the working folder)')
    context = RowContext(name=path.name, finder=ImageFinder(root), task=source.task, max_frames=source.max_frames)
    if path.suffix == ".parquet" and path.is_file():
        return _load_parquet(path, source.sampling, context, seed)
    rows = list(iter_rows(path))
    if not rows:
        raise empty_file(path)
    picked = [rows[index] for index in sampled_indices(source.sampling, len(rows), seed)]
    samples, errors = [], []
    for number, row in picked:
        sample, faults = (None, [row]) if isinstance(row, Fault) else read_row(row, context, number)
        if sample is None:
            errors.append(str(RowError(faults, row_name(path, number))))
        else:
            samples.append(sample)
    _raise_first(errors, str(path))
    return samples


def _load_parquet(path: Path, sampling: str, context: RowContext, seed: int) -> Sequence[Sample]:
    table = ParquetTable(path)
    if len(table) == 0:
        raise empty_file(path)
    indices = sampled_indices(sampling, len(table), seed)
    return LazySamples(table.row, table.texts, indices, context, str(path))


def _load_hub(source: DataSource, folder: Path, seed: int) -> Sequence[Sample]:
    import datasets

    assert source.hub is not None
    root = folder / source.image_root if source.image_root is not None else folder
    context = RowContext(name=source.hub, finder=ImageFinder(root), task=source.task, max_frames=source.max_frames)
    try:
        table = datasets.load_dataset(source.hub, split=source.hub_split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f'data set "{source.hub}", split "{source.hub_split}" cannot be loaded ({error}); '
            "check the name, the split and the connection, or download it and set path"
        ) from None
    if len(table) == 0:
        raise DataError(f'data set "{source.hub}", split "{source.hub_split}" is empty; name another split')
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            table = table.cast_column(name, datasets.List(datasets.Image(decode=False)))
    indices = sampled_indices(source.sampling, len(table), seed)
    texts = table.remove_columns([name for name in IMAGE_COLUMNS if name in table.column_names])
    return LazySamples(table.__getitem__, texts.__getitem__, indices, context, source.hub)


def _texts(
    get_row: Callable[[int], Mapping[str, Any]], indices: Sequence[int], context: RowContext, name: str
) -> Iterator[Sample]:
    """Every row without its images: copying embedded images once to look at them would be slow."""
    without = RowContext(name=context.name, finder=context.finder, task=context.task, images=False)
    errors = []
    for index in indices:
        sample, faults = read_row(get_row(index), without, index + 1)
        if sample is None:
            errors.append(str(RowError(faults, f"{name} row {index + 1}")))
        else:
            yield sample
    _raise_first(errors, name)


def _raise_first(errors: list[str], name: str) -> None:
    if errors:
        more = f"{len(errors) - 1} more with faults. " if len(errors) > 1 else ""
        raise DataError(f"{errors[0]}. {more}List all faults with: vlm-r1 data check {name}")
