"""Rows of tables as values of records: one msgpack map per row."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from agentflow.errors import SourceError

_encode = msgspec.msgpack.Encoder().encode


class RowEncoder:
    """Encodes rows that are given column by column.

    Args:
        names: Names of the columns, each one once.
    """

    def __init__(self, names: Sequence[str]) -> None:
        fields = [(f"f{index}", Any) for index in range(len(names))]
        # A struct made for these columns is encoded in two thirds of the time of a dict per row.
        self._row = msgspec.defstruct(
            "Row", fields, rename={field: name for (field, _), name in zip(fields, names, strict=True)}, gc=False
        )

    def encode(self, columns: Iterable[Iterable[Any]]) -> list[bytes]:
        """Return one value per row; there is at least one column."""
        return list(map(_encode, map(self._row, *columns)))


def chosen_columns(names: Sequence[str], wanted: Sequence[str] | None, file: str) -> list[int]:
    """Return the places of the wanted columns (None: of all) among those of a file.

    Raises:
        SourceError: One is not there, or a name is there twice.
    """
    places = []
    for name in names if wanted is None else wanted:
        count = names.count(name)
        if count != 1:
            near = difflib.get_close_matches(name, names, n=1)
            raise SourceError(
                f"the input file has {count} columns '{name}'" if count else f"the input file has no column '{name}'",
                where={"file": file},
                expected=f"one of {', '.join(names)}" if not count else "names that are there once",
                fix=f"Did you mean '{near[0]}'?" if near and not count else "Name others in `columns`.",
            )
        places.append(names.index(name))
    return places
