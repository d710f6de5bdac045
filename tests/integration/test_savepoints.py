"""Savepoints of embedded jobs: taken running and stopped, restored elsewhere, and going on as if nothing had happened."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentflow import AgentsExecutionEnvironment
from agentflow.api.memory_codec import encode_value
from agentflow.connectors.jsonl_sink import JsonlSink
from agentflow.connectors.signal_spool import SignalSpool
from agentflow.core.delta import Table
from agentflow.core.journal_records import WAIT, decode_record
from agentflow.environment.savepoints import (
    EmbeddedState,
    create_savepoint,
    restore_savepoint,
    savepoint_at,
    storage_of,
    verify_savepoint,
)
from agentflow.errors import NotConfigured, StateMismatch, StateUnavailable
from agentflow.runtime.codecs import encode_key
from agentflow.runtime.ports import Staged, StateFacts
from agentflow.runtime.settings import JobSettings
from agentflow.runtime.signals import encode_export, encode_signal
from agentflow.state.exports import WantedExport
from agentflow.state.layout import storage_key
from agentflow.state.rocksdb import RocksDBKeyedState
from agentflow.state.rocksdb_rows import StateView
from agentflow.state.savepoint_format import SubtaskSavepoint
from agentflow.state.savepoints import write_savepoint
from tests.savepoint_world import PAID, Life, Orders, by_id

FIRST = [
    {"k": "a", "id": "a1", "does": "count"},
    {"k": "a", "id": "a2", "does": "ask"},
    {"k": "a", "id": "a3", "does": "count"},
    {"k": 2, "id": "b1", "does": "sleep", "for": "1s"},
    {"k": 2, "id": "b2", "does": "count"},
    {"k": 3.5, "id": "c1", "does": "timer", "for": "1s"},
    {"k": "d", "id": "d1", "does": "large"},
]
FIRST_OUTPUTS = 5  # a1, c1, d1, and what a2 and b1 say before they wait; b1 and c1 say more when their time has come
REST = [
    {"k": "a", "id": "a4", "does": "count"},
    {"k": "c", "id": "c2", "does": "count"},
    {"k": "d", "id": "d2", "does": "ask", "about": "early"},
    {"k": "e", "id": "e1", "does": "count"},
]
TOTAL_OUTPUTS = 18  # ask and sleep three, timer two, the others one


@pytest.fixture(autouse=True)
def paid() -> list[str]:
    PAID.clear()
    return PAID


async def first_half(state: Path) -> int:
    """Run until nothing but time and signals moves it; a signal is early, another one is on its way. Return its outputs."""
    async with Life(state, FIRST) as life:
        await life.job.signal("d", "approval", "early bird", correlation="early")
        await life.outputs.until(FIRST_OUTPUTS)
    await SignalSpool(state / "signals").append(encode_signal("a", "approval", {"by": "ann"}))
    return len(life.outputs.values)


async def the_rest(state: Path, outputs: int, job: str = "orders") -> dict[str, list[Any]]:
    """Run on until there are so many outputs."""
    async with Life(state, FIRST + REST, job=job) as life:
        await life.outputs.until(outputs)
    return by_id(life.outputs.values)


async def savepoint_of(state: Path, target: Path) -> Any:
    return await create_savepoint(EmbeddedState.at(state), str(target))


async def test_a_restored_job_goes_on_exactly_as_the_original(tmp_path: Path, paid: list[str]) -> None:
    outputs = TOTAL_OUTPUTS - await first_half(tmp_path / "state")
    savepoint = await savepoint_of(tmp_path / "state", tmp_path / "backups")
    assert sorted(paid) == ["a2", "b1"]
    original = await the_rest(tmp_path / "state", outputs)
    assert sum(map(len, original.values())) == outputs >= 10
    restored = savepoint_at(savepoint.place)
    restore_savepoint(restored, EmbeddedState(tmp_path / "elsewhere", "another-name"))
    assert await the_rest(tmp_path / "elsewhere", outputs, "another-name") == original
    assert sorted(paid) == ["a2", "b1", "d2", "d2"], "d2 was not in the savepoint; what was is not paid for again"
    assert verify_savepoint(restored).damage == []


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


async def test_from_every_savepoint_of_a_running_job_the_same_follows(tmp_path: Path) -> None:
    """Taken by another process's way and by code, whatever the job is doing."""
    state, savepoints = tmp_path / "state", []
    async with Life(state, FIRST + REST) as life:
        for outputs in (0, 3, 10):
            await life.outputs.until(outputs)
            if outputs == 3:
                await life.job.signal("a", "approval", {"by": "ann"})
                await life.job.signal("d", "approval", "late", correlation="early")
            savepoints.append(await savepoint_of(state, tmp_path / "backups"))
            savepoints.append(savepoint_at(await life.job.savepoint(tmp_path / "backups")))
        await life.outputs.until(TOTAL_OUTPUTS)
        assert (life.job.status.state, life.job.status.restarts) == ("running", 0)
    checkpoints = [savepoint.manifest.checkpoint for savepoint in savepoints]
    assert checkpoints == sorted(checkpoints)
    assert list((state / "subtask-0" / "exports").iterdir()) == []
    for number, savepoint in enumerate(savepoints):
        assert not any("/journal/" in file.name for file in savepoint.manifest.files)
        assert verify_savepoint(savepoint).damage == []
        elsewhere = tmp_path / f"elsewhere-{number}"
        restore_savepoint(savepoint, EmbeddedState(elsewhere, "orders"))
        if number < 2:  # those that were sent later
            spool = SignalSpool(elsewhere / "signals")
            await spool.append(encode_signal("a", "approval", {"by": "ann"}))
            await spool.append(encode_signal("d", "approval", "late", correlation="early"))
        expected = by_id(life.outputs.behind(savepoint.manifest.checkpoint))
        assert await the_rest(elsewhere, sum(map(len, expected.values()))) == expected


async def test_signals_before_the_request_are_in_and_it_harms_nobody_where_it_is_restored(tmp_path: Path) -> None:
    """Also those that the job has not read yet: the request stands behind them."""
    state = tmp_path / "state"
    async with Life(state, FIRST) as life:
        spool = SignalSpool(state / "signals")
        for _ in range(30):
            await spool.append(encode_signal("x", "approval"))
        await spool.append(encode_signal("a", "approval", "ann"))
        savepoint = await savepoint_of(state, tmp_path / "backups")
        await life.outputs.until(12)
    restore_savepoint(savepoint, EmbeddedState(tmp_path / "elsewhere", "orders"))
    expected = by_id(life.outputs.behind(savepoint.manifest.checkpoint))
    async with Life(tmp_path / "elsewhere", FIRST) as life:
        await life.outputs.until(sum(map(len, expected.values())))
        await savepoint_of(tmp_path / "elsewhere", tmp_path / "backups")
        assert life.job.status.restarts == 0
    assert by_id(life.outputs.values) == expected


class Killed(Life):
    """A job that is killed at the end of the block: no last checkpoint."""

    async def __aexit__(self, *_: object) -> None:
        assert self._running is not None
        self._running.cancel()
        await asyncio.wait([self._running])


async def test_the_records_of_a_killed_job_are_in_its_savepoint(tmp_path: Path, paid: list[str]) -> None:
    state = tmp_path / "state"
    async with Killed(state, FIRST, interval_ms=3_600_000) as life:
        await life.job.signal("d", "approval", "early bird", correlation="early")
        await until(lambda: len(paid) >= 2 and waits_recorded(state) >= 2)
        assert life.job.status.checkpoint == 1, "the one before the first record"
    await SignalSpool(state / "signals").append(encode_signal("a", "approval", {"by": "ann"}))
    savepoint = await savepoint_of(state, tmp_path / "backups")
    assert savepoint.manifest.checkpoint == 1
    assert any("/journal/" in file.name for file in savepoint.manifest.files)
    assert verify_savepoint(savepoint).damage == []
    outputs = TOTAL_OUTPUTS - len(life.outputs.values)
    original = await the_rest(state, outputs)
    restore_savepoint(savepoint, EmbeddedState(tmp_path / "elsewhere", "orders"))
    assert await the_rest(tmp_path / "elsewhere", outputs) == original
    assert (paid.count("a2"), paid.count("b1")) == (1, 1)


async def until(holds: Callable[[], Any]) -> None:
    """Wait for what another process or thread would see."""
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 (nobody would tell)
            await asyncio.sleep(0.01)


def waits_recorded(state: Path) -> int:
    view = StateView(state / "subtask-0")
    try:
        return sum(decode_record(record).kind == WAIT for _, record in view.journal)
    finally:
        view.close()


@pytest.mark.parametrize("has_sinks", [True, False])
async def test_a_decided_checkpoint_is_completed_and_its_outputs_are_published_first(
    tmp_path: Path, *, has_sinks: bool
) -> None:
    state, out = tmp_path / "state", tmp_path / "out"
    keyed = RocksDBKeyedState.open(state / "subtask-0", job="orders", free_min_bytes=0)
    out.mkdir()
    (out / ".part-00000-0000000001.jsonl").write_bytes(b'{"id": "a1"}\n')
    staged = {"sink": Staged(names=(".part-00000-0000000001.jsonl",))}
    await keyed.prepare(1, iter([[(Table.MEMORY, 0, b"\xa1a", "n", encode_value(1, None))]]), staged)
    keyed.close()  # here it was killed
    if not has_sinks:
        with pytest.raises(StateUnavailable, match="outputs are not written yet"):
            await savepoint_of(state, tmp_path / "backups")
        return
    savepoint = await create_savepoint(
        EmbeddedState.at(state), str(tmp_path / "backups"), open_sinks=lambda: {"sink": JsonlSink(str(out))}
    )
    assert (out / "part-00000-0000000001.jsonl").read_bytes() == b'{"id": "a1"}\n'
    restore_savepoint(savepoint, EmbeddedState(tmp_path / "elsewhere", "orders"))
    for directory in (state, tmp_path / "elsewhere"):
        with contextlib.closing(
            RocksDBKeyedState.open(directory / "subtask-0", job="orders", free_min_bytes=0)
        ) as opened:
            assert (opened.checkpoint, opened.prepared) == (1, None)
            assert opened.get(0, b"\xa1a", "n") == encode_value(1, None)


async def test_outputs_that_are_in_the_decision_itself_are_left_to_the_job(tmp_path: Path) -> None:
    keyed = RocksDBKeyedState.open(tmp_path / "state" / "subtask-0", job="orders", free_min_bytes=0)
    await keyed.prepare(1, iter([]), {"sink": Staged(outputs=(b"1",))})
    keyed.close()
    with pytest.raises(StateUnavailable, match="start the job"):
        await create_savepoint(EmbeddedState.at(tmp_path / "state"), str(tmp_path / "backups"), open_sinks=dict)
    assert not (tmp_path / "backups").exists()


async def test_a_job_that_never_completed_a_checkpoint_has_no_savepoint(tmp_path: Path) -> None:
    with pytest.raises(StateUnavailable, match="there is no state"):
        await create_savepoint(EmbeddedState(tmp_path / "state", "orders"), str(tmp_path / "backups"))
    assert not (tmp_path / "state").exists()
    RocksDBKeyedState.open(tmp_path / "state" / "subtask-0", job="orders", free_min_bytes=0).close()
    with pytest.raises(StateUnavailable, match="no completed checkpoint"):
        await savepoint_of(tmp_path / "state", tmp_path / "backups")


async def test_a_copy_of_a_changelog_is_no_state_of_its_own(tmp_path: Path) -> None:
    keyed = RocksDBKeyedState.open(tmp_path / "state" / "subtask-0", job="orders", free_min_bytes=0)
    keyed.note_changelog(3, 100, 0)
    keyed.close()
    with pytest.raises(StateMismatch, match="changelog of a Kafka job"):
        await savepoint_of(tmp_path / "state", tmp_path / "backups")


async def test_a_job_that_does_not_answer_is_given_up_and_is_not_asked_again(tmp_path: Path) -> None:
    """Its owner is alive and reads no signals: an older version, or one that hangs."""
    state = tmp_path / "state"
    outputs = TOTAL_OUTPUTS - await first_half(state)
    with contextlib.closing(RocksDBKeyedState.open(state / "subtask-0", job="orders", free_min_bytes=0)):
        with pytest.raises(StateUnavailable, match="does not hand its state out"):
            await create_savepoint(EmbeddedState.at(state), str(tmp_path / "backups"), answer_s=0.1)
        assert list((state / "subtask-0" / "exports").iterdir()) == []
    assert await the_rest(state, outputs), "the request that is left among the signals means nothing any more"


async def test_a_job_that_stops_while_it_is_asked_is_taken_as_stopped(tmp_path: Path) -> None:
    state = tmp_path / "state"
    await first_half(state)
    owner = RocksDBKeyedState.open(state / "subtask-0", job="orders", free_min_bytes=0)
    asked_before = len(list((state / "signals").glob("*.json")))
    asking = asyncio.create_task(savepoint_of(state, tmp_path / "backups"))
    await until(lambda: len(list((state / "signals").glob("*.json"))) > asked_before)
    owner.close()
    assert verify_savepoint(await asking).damage == []


async def test_an_export_whose_process_died_is_swept_and_one_that_is_wanted_is_not(tmp_path: Path) -> None:
    state = tmp_path / "state"
    await first_half(state)
    exports = state / "subtask-0" / "exports"
    with WantedExport(state / "subtask-0") as wanted:
        (exports / ("0" * 32)).mkdir(parents=True)
        (exports / ("0" * 32) / "000012.sst").touch()
        RocksDBKeyedState.open(state / "subtask-0", job="orders", free_min_bytes=0).close()
        assert [found.name for found in exports.iterdir()] == [wanted.request]
    assert list(exports.iterdir()) == []


async def test_an_export_that_fails_is_told_and_the_job_goes_on(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with Life(state, FIRST) as life:
        await life.outputs.until(FIRST_OUTPUTS)
        with WantedExport(state / "subtask-0") as wanted:
            (wanted.path / "rocksdb").mkdir()  # in the way
            await SignalSpool(state / "signals").append(encode_export(wanted.request))
            await until(lambda: wanted.is_answered)
            with pytest.raises(StateUnavailable, match="linking the state"):
                wanted.facts()
        for nonsense in ("", "../..", "f" * 32):
            await SignalSpool(state / "signals").append(encode_export(nonsense))
        assert verify_savepoint(await savepoint_of(state, tmp_path / "backups")).damage == []
        assert life.job.status.restarts == 0


async def test_a_job_that_starts_meanwhile_waits_for_who_takes_the_savepoint(tmp_path: Path) -> None:
    state = tmp_path / "state"
    outputs = TOTAL_OUTPUTS - await first_half(state)
    owner = RocksDBKeyedState.open(state / "subtask-0", job="orders", free_min_bytes=0, is_momentary=True)
    threading.Timer(0.2, owner.close).start()
    assert await the_rest(state, outputs)


async def test_a_check_reads_every_row_of_every_table_and_every_record(tmp_path: Path) -> None:
    state = tmp_path / "state"
    await first_half(state)
    good = verify_savepoint(await savepoint_of(state, tmp_path / "backups"))
    assert good.damage == []
    bad = [(table, 0, encode_key("bad"), "bad", b"\xc1") for table in Table if table is not Table.META]
    bad += [(Table.META, 1, b"", "operator", b"\xc1"), (Table.MEMORY, 0, b"\xc1", "n", encode_value(1, None))]
    bad += [(Table.MEMORY, 0, encode_key("bad"), "truncated", encode_value({"a": 1}, None)[:-1])]
    with contextlib.closing(RocksDBKeyedState.open(state / "subtask-0", job="orders", free_min_bytes=0)) as keyed:
        keyed.apply_changes((table, storage_key(agent, key, name), value) for table, agent, key, name, value in bad)
        await keyed.journal.append([(0, b"\xc1")])
        with WantedExport(state / "subtask-0") as wanted:
            await keyed.export(wanted.request, StateFacts(keyed.checkpoint, {}, [], ""), has_journal=True)
            savepoint = write_savepoint(
                storage_of(str(tmp_path / "backups")),
                {f"subtask-0/{name}": path for name, path in wanted.files().items()},
                job="orders",
                kind="embedded",
                subtasks=[SubtaskSavepoint(keyed.checkpoint, {}, [], "", subtask=0)],
                ttl_ms=None,
            )
    found = verify_savepoint(savepoint)
    assert found.rows == good.rows + len(bad) + 1
    assert sorted(one.file.split(" ")[0] for one in found.damage) == sorted(
        ["subtask-0/journal", *(f"subtask-0/{table.name.lower()}" for table, *_ in bad)]
    )
    assert all(one.problem for one in found.damage)


async def test_a_job_in_memory_and_one_that_does_not_run_refuse(tmp_path: Path) -> None:
    life = Life(tmp_path / "state", FIRST)
    with pytest.raises(NotConfigured, match="not running"):
        await life.job.savepoint(tmp_path / "backups")
    environment = AgentsExecutionEnvironment.get_execution_environment(JobSettings())
    environment.from_list([]).key_by("k").apply(Orders()).to_list()
    with pytest.raises(NotConfigured, match="in no directory"):
        await environment.job().savepoint(tmp_path / "backups")
