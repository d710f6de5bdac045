"""A source function over a file of the examples: its position is the number of the line behind."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "data" / "product_reviews.jsonl"


async def reviews(position: int | None, *, last: int) -> AsyncIterator[tuple[Any, int]]:
    """Yield the first ``last`` reviews."""
    lines = FILE.read_text(encoding="utf-8").splitlines()[:last]
    for number, line in enumerate(lines[position or 0 :], position or 0):
        yield json.loads(line), number + 1
