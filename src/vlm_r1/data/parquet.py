"""Parquet files, row by row; whatever is damaged in them is a `DataError` that names the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_r1.errors import DataError

if TYPE_CHECKING:
    import pyarrow

IMAGE_COLUMNS = ("image", "images")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what pyarrow raises on a damaged file into one message."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({error}); write it again") from None


class ParquetTable:
    """The rows of a Parquet file by index, mapped into memory and turned into Python values one at a time.

    Raises `DataError` for a file that is none or is damaged.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet

        self._path = path
        with _readable(path):
            self._table: pyarrow.Table = pyarrow.parquet.read_table(path, memory_map=True)
            names = self._table.column_names
            self._texts: pyarrow.Table = self._table.drop_columns([name for name in IMAGE_COLUMNS if name in names])

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def row(self, index: int) -> dict[str, Any]:
        """A whole row; `index` from 0."""
        return self._get(self._table, index)

    def texts(self, index: int) -> dict[str, Any]:
        """A row without its images: nothing large is copied."""
        return self._get(self._texts, index)

    def _get(self, table: pyarrow.Table, index: int) -> dict[str, Any]:
        with _readable(self._path):
            row: dict[str, Any] = table.slice(index, 1).to_pylist()[0]
            return row


def iter_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """All rows in order, a few in memory at a time. Raises `DataError` for a damaged file."""
    import pyarrow.parquet

    with _readable(path):
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=64):
            yield from batch.to_pylist()
