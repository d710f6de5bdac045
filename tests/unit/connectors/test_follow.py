"""Files that are followed: growth, new files, rotation, truncation, and what may be wrong with them."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import shutil
import sys
from pathlib import Path
from typing import Self

import pytest

from agentflow.connectors.follow.kept import KeptPositions
from agentflow.connectors.jsonl import JsonlSource
from agentflow.core.records import Record
from agentflow.errors import NotConfigured, SourceError, SourceUnavailable


class Job:
    """A source as an engine uses it: fetch, apply, checkpoint, start again from there."""

    def __init__(self, path, **options) -> None:
        self.options = {"follow": True, "poll_interval": "5ms", **options}
        self.path = str(path)
        self.positions: dict[str, int] = {}
        self.saved: dict[str, int] = {}
        self.records: list[Record] = []

    async def __aenter__(self) -> Self:
        self.source = JsonlSource(self.path, **self.options)
        self.positions = dict(self.saved)
        await self.source.open(self.positions)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.source.close()

    async def read(self, count: int) -> list[bytes]:
        """Apply so many records."""
        values = []
        async with asyncio.timeout(30):
            while len(values) < count:
                for record in await self.source.fetch(count - len(values)):
                    values.append(record.value)
                    self.records.append(record)
                    self.positions[record.source] = record.next_offset
        return values

    async def checkpoint(self) -> None:
        self.positions = dict(self.source.barrier(self.positions))
        self.saved = dict(self.positions)
        await self.source.release(self.positions)

    async def is_quiet(self) -> bool:
        """Whether nothing comes within some looks."""
        fetching = asyncio.ensure_future(self.source.fetch(1))
        done, _ = await asyncio.wait([fetching], timeout=0.1)
        fetching.cancel()
        await asyncio.wait([fetching])
        return not done

    @property
    def labels(self) -> list[str]:
        return [name for name in self.saved if not name.endswith(("!", ":"))]


def append(path: Path, *lines: str, end: str = "\n") -> None:
    with path.open("a") as file:
        file.write("".join(f"{line}\n" for line in lines[:-1]) + lines[-1] + end)


async def test_a_growing_file_is_read_on(tmp_path):
    log = tmp_path / "app.log"
    append(log, "1")
    async with Job(log, poll_interval=None) as job:  # watched, as the system tells of changes
        assert await job.read(1) == [b"1"]
        append(log, "2", "3")
        assert await job.read(2) == [b"2", b"3"]
        append(log, "4")
        assert await job.read(1) == [b"4"]
    assert [record.source for record in job.records] == [job.records[0].source] * 4
    assert job.records[0].headers == (("agentflow-file", str(log).encode()),)


async def test_a_line_without_newline_is_no_record_until_that_comes_also_across_restarts(tmp_path):
    log = tmp_path / "app.log"
    append(log, "1", "2", end="")
    async with Job(log) as job:
        assert await job.read(1) == [b"1"]
        assert await job.is_quiet()
        await job.checkpoint()
    append(log, "2", end="")
    async with job:
        assert await job.is_quiet()
        append(log, "2")
        assert await job.read(1) == [b"222"]


async def test_a_file_of_which_no_line_is_complete_gets_no_position(tmp_path):
    append(tmp_path / "a", "1", end="")
    async with Job(tmp_path) as job:
        assert await job.is_quiet()
        await job.checkpoint()
        assert job.labels == []
        append(tmp_path / "a", "2")
        assert await job.read(1) == [b"12"]


async def test_new_files_are_read_in_the_order_in_which_they_were_changed(tmp_path):
    async with Job(tmp_path / "*.jsonl") as job:
        assert await job.is_quiet()
        for number, name in enumerate(("c", "a", "b")):
            append(tmp_path / f".{name}", name)
            os.utime(tmp_path / f".{name}", (number, number))
        append(tmp_path / "none.txt", "none")
        for name in ("a", "b", "c"):
            (tmp_path / f".{name}").rename(tmp_path / f"{name}.jsonl")
        values = await job.read(3)
        if values[0] == b"c":  # one look has seen them all
            assert values == [b"c", b"a", b"b"]
        assert sorted(values) == [b"a", b"b", b"c"]


@pytest.mark.parametrize("ticks", [(0, 1, 2, 3), (0, 0, 0, 0)])
async def test_files_that_are_there_are_read_oldest_change_first_and_as_rotation_numbers_them(tmp_path, ticks):
    names = ["app.log.10", "app.log.2", "app.log.1", "app.log"]
    for name, tick in zip(names, ticks, strict=True):
        append(tmp_path / name, name)
        os.utime(tmp_path / name, (tick, tick))
    async with Job(tmp_path / "app.log*") as job:
        assert await job.read(4) == [name.encode() for name in names]


async def test_a_directory_is_all_its_files_but_staging_and_compressed_ones(tmp_path):
    for name in ("_staging", ".hidden", "old.gz", "seen"):
        append(tmp_path / name, name)
    (tmp_path / "folder").mkdir()
    async with Job(tmp_path) as job:
        assert await job.read(1) == [b"seen"]
        assert await job.is_quiet()


@pytest.mark.parametrize("poll_interval", [None, "5ms"])
async def test_a_directory_may_appear_later(tmp_path, poll_interval, caplog):
    caplog.set_level(logging.INFO)
    async with Job(tmp_path / "logs" / "**" / "*.jsonl", poll_interval=poll_interval) as job:
        assert await job.is_quiet()
        assert "there is no file yet" in caplog.text
        (tmp_path / "logs" / "deep").mkdir(parents=True)
        append(tmp_path / "logs" / "deep" / "a.jsonl", "1")
        assert await job.read(1) == [b"1"]


@pytest.mark.parametrize("pattern", ["app.log", "app.log*"])
@pytest.mark.parametrize("is_down", [False, True])
async def test_a_renamed_file_is_read_to_its_end_and_not_again(tmp_path, pattern, is_down):
    log = tmp_path / "app.log"
    append(log, "1")
    job = Job(tmp_path / pattern)
    async with job:
        await job.read(1)
        await job.checkpoint()
        if not is_down:
            append(log, "2", "3")
            log.rename(tmp_path / "app.log.1")
            append(log, "4")
            assert await job.read(3) == [b"2", b"3", b"4"]
            append(tmp_path / "app.log.1", "late")  # its writer has not yet opened the new file
            assert await job.read(1) == [b"late"]
            assert await job.is_quiet()
    if is_down:
        append(log, "2", "3")
        log.rename(tmp_path / "app.log.1")
        append(log, "4")
        async with job:
            assert await job.read(3) == [b"2", b"3", b"4"]
            assert await job.is_quiet()


@pytest.mark.parametrize("pattern", ["app.log", "app.log*"])
@pytest.mark.parametrize("is_down", [False, True])
async def test_a_copied_and_truncated_file_goes_on_in_the_copy(tmp_path, pattern, is_down, caplog):
    caplog.set_level(logging.INFO)
    log = tmp_path / "app.log"
    append(log, "1")
    job = Job(tmp_path / pattern)

    def rotate() -> None:
        append(log, "2", "3")
        shutil.copy(log, tmp_path / "app.log.1")
        os.truncate(log, 0)
        append(log, "4")

    async with job:
        await job.read(1)
        await job.checkpoint()
        if not is_down:
            rotate()
            assert await job.read(3) == [b"2", b"3", b"4"]
            assert await job.is_quiet()
            assert "app.log was truncated, 2 bytes of it had been read: it starts again at 0" in caplog.text
    if is_down:
        rotate()
        async with job:
            assert await job.read(3) == [b"2", b"3", b"4"]
            assert await job.is_quiet()
    assert job.records[1].source == job.records[0].source != job.records[3].source


@pytest.mark.parametrize("again", ["1", "other"])
async def test_a_truncated_file_starts_again_at_0_under_another_label(tmp_path, again):
    log = tmp_path / "app.log"
    append(log, "1", "2", "3")
    async with Job(log) as job:
        await job.read(3)
        log.write_text(f"{again}\n")
        assert await job.read(1) == [again.encode()]
        await job.checkpoint()
        log.write_text("")
        assert await job.is_quiet()
        append(log, again)
        assert await job.read(1) == [again.encode()]
    assert [record.offset for record in job.records[3:]] == [0, 0]
    assert len({record.source for record in job.records}) == 3


async def test_files_that_begin_alike_are_different_files(tmp_path):
    append(tmp_path / "a", '{"version":1}', "1")
    append(tmp_path / "b", '{"version":1}', "2")
    async with Job(tmp_path) as job:
        assert sorted(await job.read(4)) == [b"1", b"2", b'{"version":1}', b'{"version":1}']
        append(tmp_path / "c", '{"version":1}', "3")
        assert await job.read(2) == [b'{"version":1}', b"3"]
        await job.checkpoint()
    assert len(job.labels) == 3


async def test_a_file_that_stays_a_copy_is_read_as_one_of_its_own(tmp_path):
    append(tmp_path / "a", "refresh")
    async with Job(tmp_path, rotate_wait="300ms") as job:
        await job.read(1)
        shutil.copy(tmp_path / "a", tmp_path / "b")
        assert await job.is_quiet()
        assert await job.read(1) == [b"refresh"]
        await job.checkpoint()
        assert len(job.labels) == 2
    async with job:
        assert await job.is_quiet()


async def test_positions_of_deleted_files_are_forgotten(tmp_path):
    job = Job(tmp_path)
    async with job:
        for number in range(20):
            append(tmp_path / str(number), str(number))
            await job.read(1)
            await job.checkpoint()
            (tmp_path / str(number)).unlink()
            assert await job.is_quiet()
        await job.checkpoint()
        assert job.labels == []
    append(tmp_path / "last", "last")
    async with job:
        assert await job.read(1) == [b"last"]
        (tmp_path / "last").unlink()
        await job.checkpoint()  # the file is gone, and its record is applied
    async with job:
        assert await job.is_quiet()
        await job.checkpoint()
    assert job.labels == []
    assert len({record.run_id for record in job.records}) == 21


async def test_a_position_is_kept_until_what_was_read_is_applied(tmp_path):
    append(tmp_path / "a", "1", "2")
    async with Job(tmp_path) as job:
        await job.read(1)
        (tmp_path / "a").unlink()
        fetched = await job.source.fetch(1)
        assert await job.is_quiet()
        await job.checkpoint()  # its second record is read and not applied
        assert [job.saved[label] for label in job.labels] == [2]
        job.positions[fetched[0].source] = fetched[0].next_offset
        await job.checkpoint()
    assert job.labels == []


def test_a_label_is_not_given_again_to_what_took_over_an_inode():
    kept = KeptPositions()
    first = kept.begin(7, "0" * 12, b"refresh\n")
    kept.forget(first, 8)
    kept.keep({first: 8})
    assert kept.begin(7, "0" * 12, b"refresh\n") not in ("", first)


async def test_a_new_file_waits_for_the_end_of_a_checkpoint(tmp_path):
    append(tmp_path / "a", "1")
    async with Job(tmp_path) as job:
        await job.read(1)
        job.source.barrier(job.positions)
        append(tmp_path / "a", "2")
        assert await job.read(1) == [b"2"]
        append(tmp_path / "b", "3")
        assert await job.is_quiet()
        await job.source.release(job.positions)
        assert await job.read(1) == [b"3"]


async def test_more_files_than_are_kept_open_are_read_on(tmp_path):
    job = Job(tmp_path)
    async with job:
        for turn in range(3):
            for number in range(200):
                append(tmp_path / str(number), f"{turn}.{number}", "begun", end="" if turn < 2 else "\n")
            expected = {f"{turn}.{number}".encode() for number in range(200)} if not turn else set()
            values = await job.read(200 if turn == 0 else 200 if turn == 1 else 400)
            if expected:
                assert set(values) == expected
            await job.checkpoint()
    by_file: dict[str, list[bytes]] = {}
    for record in job.records:
        by_file.setdefault(record.source, []).append(record.value)
    assert len(by_file) == 200
    for values in by_file.values():
        number = values[0].split(b".")[1]
        assert values == [b"0." + number, b"begun1." + number, b"begun2." + number, b"begun"]


async def test_files_are_found_again_with_few_descriptors(tmp_path):
    job = Job(tmp_path)
    for number in range(400):
        append(tmp_path / str(number), str(number))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 250), hard))
    try:
        async with job:
            await job.read(400)
            await job.checkpoint()
        async with job:
            assert await job.is_quiet()
            await job.checkpoint()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(job.labels) == 400


async def test_a_file_that_was_rotated_away_while_the_job_was_down_is_forgotten_when_it_stays_quiet(tmp_path):
    log = tmp_path / "app.log"
    append(log, "1")
    job = Job(log, rotate_wait="200ms")
    async with job:
        await job.read(1)
        await job.checkpoint()
    log.rename(tmp_path / "app.log.1")
    async with job:
        assert await job.is_quiet()
        await job.checkpoint()
        assert len(job.labels) == 1
        append(tmp_path / "app.log.1", "2")
        assert await job.read(1) == [b"2"]
        for _ in range(4):
            assert await job.is_quiet()
        await job.checkpoint()
    assert job.labels == []


async def test_positions_of_a_job_that_did_not_follow_are_taken_over(tmp_path):
    log = tmp_path / "app.log"
    append(log, "1", "2", end="")
    job = Job(log, follow=False, poll_interval=None)
    async with job:
        assert await job.read(2) == [b"1", b"2"]
        job.saved = dict(job.positions)
    job.options = {"follow": True, "poll_interval": "5ms"}
    async with job:
        assert await job.is_quiet()
        append(log, "")
        append(log, "3")
        assert await job.read(1) == [b"3"]
        await job.checkpoint()
    assert len(job.labels) == 1
    job.options = {"follow": False, "poll_interval": None}
    with pytest.raises(SourceError, match="followed"):
        await JsonlSource(str(log)).open(job.saved)


async def test_a_missing_package_is_told_with_both_ways_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    source = JsonlSource(str(tmp_path), follow=True)
    with pytest.raises(NotConfigured, match="watchfiles") as caught:
        await source.open({})
    assert "agentflow[follow]" in caught.value.fix
    assert "poll-interval" in caught.value.fix
    await source.close()
    append(tmp_path / "a", "1")
    async with Job(tmp_path) as job:  # looks regularly
        assert await job.read(1) == [b"1"]


async def test_directories_that_cannot_be_watched_fail_the_source(tmp_path, monkeypatch):
    import watchfiles

    def watch(*_: object, **__: object) -> list[object]:
        raise OSError(28, "no space left on device (os error 28)")

    monkeypatch.setattr(watchfiles, "watch", watch)
    async with Job(tmp_path, poll_interval=None) as job:
        with pytest.raises(SourceError, match="cannot be watched") as caught:
            await job.read(1)
    assert "poll-interval" in caught.value.fix


async def test_a_file_that_may_not_be_read_is_told_and_tried_again(tmp_path, monkeypatch, caplog):
    append(tmp_path / "a", "1")
    may_read, open_file = False, os.open

    def refuse(path: object, *rest: object, **options: object) -> int:
        if not may_read and str(path) == str(tmp_path / "a"):
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    async with Job(tmp_path) as job:
        append(tmp_path / "b", "2")
        assert await job.read(1) == [b"2"]
        assert caplog.text.count("may not be read") == 1
        may_read = True
        assert await job.read(1) == [b"1"]


async def test_a_disk_that_fails_may_work_again(tmp_path, monkeypatch):
    append(tmp_path / "a", "1")
    job = Job(tmp_path)
    with monkeypatch.context() as patched:

        def fail(*_: object) -> bytes:
            raise OSError(5, "Input/output error")

        patched.setattr(os, "pread", fail)
        with pytest.raises(SourceUnavailable, match="Input/output error"):
            await JsonlSource(str(tmp_path), follow=True, poll_interval="5ms").open({})
    async with job:
        assert await job.read(1) == [b"1"]


async def test_what_is_no_file_is_refused_at_open(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="not a regular file"):
        await JsonlSource(str(tmp_path / "pipe"), follow=True, poll_interval="1s").open({})


def test_a_poll_interval_is_for_files_that_are_followed():
    with pytest.raises(ValueError, match="follow=True"):
        JsonlSource("a", poll_interval="1s")
