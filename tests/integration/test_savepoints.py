"""Savepoints of embedded jobs: taken running and stopped, restored elsewhere, and going on as if nothing had happened."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agentflow.connectors.signal_spool import SignalSpool
from agentflow.environment.savepoints import (
    EmbeddedState,
    create_savepoint,
    restore_savepoint,
    savepoint_at,
    verify_savepoint,
)
from agentflow.errors import StateMismatch
from agentflow.runtime.signals import encode_signal
from tests.savepoint_world import PAID, Life, by_id

FIRST = [
    {"k": "a", "id": "a1", "does": "count"},
    {"k": "a", "id": "a2", "does": "ask"},
    {"k": "a", "id": "a3", "does": "count"},
    {"k": 2, "id": "b1", "does": "sleep", "for": "1500ms"},
    {"k": 2, "id": "b2", "does": "count"},
    {"k": 3.5, "id": "c1", "does": "timer", "for": "1500ms"},
    {"k": "d", "id": "d1", "does": "large"},
]
REST = [
    {"k": "a", "id": "a4", "does": "count"},
    {"k": "c", "id": "c2", "does": "count"},
    {"k": "d", "id": "d2", "does": "ask", "about": "early"},
    {"k": "e", "id": "e1", "does": "count"},
]
FIRST_OUTPUTS = 5  # a1, c1, d1, and what a2 and b1 say before they wait


@pytest.fixture(autouse=True)
def paid() -> list[str]:
    PAID.clear()
    return PAID


async def first_half(state: Path) -> None:
    """Run until nothing but time and signals moves it; a signal is early, another one is on its way."""
    async with Life(state, FIRST) as life:
        await life.job.signal("d", "approval", "early bird", correlation="early")
        await life.outputs.until(FIRST_OUTPUTS)
        assert sorted(by_id(life.outputs.values)) == ["a1", "a2", "b1", "c1", "d1"]
    await SignalSpool(state / "signals").append(encode_signal("a", "approval", {"by": "ann"}))


async def the_rest(state: Path, job: str = "orders") -> dict[str, list[Any]]:
    async with Life(state, FIRST + REST, job=job) as life:
        # a2 twice, a3, a4, b1 twice, b2, c1 fires, c2, e1, d2 three times
        return by_id(await life.outputs.until(13))


async def savepoint_of(state: Path, target: Path) -> Any:
    return await create_savepoint(EmbeddedState.at(state), str(target))


async def test_a_restored_job_goes_on_exactly_as_the_original(tmp_path: Path, paid: list[str]) -> None:
    await first_half(tmp_path / "state")
    savepoint = await savepoint_of(tmp_path / "state", tmp_path / "backups")
    assert sorted(paid) == ["a2", "b1"]
    original = await the_rest(tmp_path / "state")
    restored = savepoint_at(savepoint.place)
    restore_savepoint(restored, EmbeddedState(tmp_path / "elsewhere", "another-name"))
    assert await the_rest(tmp_path / "elsewhere", "another-name") == original
    assert sorted(paid) == ["a2", "b1", "d2", "d2"], "d2 was not in the savepoint; what was is not paid for again"
    assert len(original) == 9
    assert verify_savepoint(restored) == []


async def test_a_savepoint_never_overwrites_state(tmp_path: Path) -> None:
    await first_half(tmp_path / "state")
    savepoint = await savepoint_of(tmp_path / "state", tmp_path / "backups")
    with pytest.raises(StateMismatch, match="never overwrites"):
        await asyncio.to_thread(restore_savepoint, savepoint, EmbeddedState(tmp_path / "state", "orders"))
    await SignalSpool(tmp_path / "other" / "signals").append(encode_signal("a", "approval"))
    await SignalSpool(tmp_path / "other" / "signals").append(encode_signal("a", "approval"))
    with pytest.raises(StateMismatch, match="never overwrites"):
        restore_savepoint(savepoint, EmbeddedState(tmp_path / "other", "orders"))
    assert not (tmp_path / "other" / "subtask-0").exists()
