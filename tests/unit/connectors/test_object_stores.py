"""Sources and sinks in object stores, against a server that speaks S3: its troubles, crashes, and what must not be lost."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agentflow.connectors.arrow_source import ArrowSource, ParquetSource
from agentflow.connectors.csv_source import CsvSource
from agentflow.connectors.jsonl import JsonlSource
from agentflow.connectors.jsonl_sink import JsonlSink
from agentflow.connectors.object_store import ObjectStore
from agentflow.errors import (
    NotConfigured,
    OutputExists,
    OutputLocked,
    Recovery,
    SinkError,
    SinkForbidden,
    SourceError,
    SourceUnavailable,
)
from agentflow.runtime.ports import Staged
from agentflow.runtime.settings import ObjectStoreSettings
from agentflow.testing.conformance.sink import staged_epoch
from agentflow.testing.conformance.source import read_all
from tests.unit.connectors.part_kinds import KINDS
from tests.unit.connectors.sink_victim import load, recover

ROOT = Path(__file__).parents[3]
MIB = 2**20


def keys(store):
    return [file.name for file in store.find()]


def content(store, name):
    reader = store.open(name)
    return reader.read(0, reader.size)


def lines(store):
    return [line for name in keys(store) for line in content(store, name).splitlines()]


# -- sources
def parquet(table):
    target = pa.BufferOutputStream()
    pq.write_table(table, target, row_group_size=1000)
    return target.getvalue().to_pybytes()


def arrow(table):
    target = pa.BufferOutputStream()
    with pa.ipc.new_file(target, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    return target.getvalue().to_pybytes()


ROWS = 5000
TABLE = pa.table({"n": range(ROWS), "text": [f"text {n}" for n in range(ROWS)]})
SOURCES = {
    "jsonl": (JsonlSource, b"".join(b'{"n":%d,"text":"text %d"}\n' % (n, n) for n in range(ROWS))),
    "csv": (CsvSource, b"n,text\n" + b"".join(b"%d,text %d\n" % (n, n) for n in range(ROWS))),
    "parquet": (ParquetSource, parquet(TABLE)),
    "arrow": (ArrowSource, arrow(TABLE)),
}


@pytest.fixture(params=SOURCES)
def kind(request):
    return request.param


def values(records):
    decode = msgspec.json.decode if records[0].value.startswith(b"{") else msgspec.msgpack.decode
    return [decode(record.value) for record in records]


async def test_objects_are_read_by_pattern_and_go_on_behind_every_position(s3, kind):
    new_source, body = SOURCES[kind]
    url = s3.new_bucket()
    store = s3.store(f"{url}/in")
    for name in (f"b.{kind}", f"a.{kind}", f"deep/c.{kind}", f"_staging/x.{kind}", f".hidden.{kind}", "other"):
        store.put(name, [body])
    records = await read_all(new_source(f"{url}/in/*.{kind}", store=s3.settings), records_max=1000)
    labels = list(dict.fromkeys(record.source for record in records))
    assert [label.rpartition("#")[0] for label in labels] == [f"{url}/in/a.{kind}", f"{url}/in/b.{kind}"]
    assert values(records) == TABLE.to_pylist() * 2
    assert len(await read_all(new_source(f"{url}/in/**/*.{kind}", store=s3.settings), records_max=1000)) == 3 * ROWS
    one = new_source([f"{url}/in/deep/c.{kind}", f"{url}/in/[ab].{kind}"], store=s3.settings)
    assert len(await read_all(one, records_max=1000)) == 3 * ROWS
    for count in (1, 1500, ROWS, ROWS + 1, 2 * ROWS):
        positions = {record.source: record.next_offset for record in records[:count]}
        rest = await read_all(new_source(f"{url}/in/*.{kind}", store=s3.settings), positions, records_max=1000)
        assert rest == records[count:]


async def test_object_that_was_replaced_between_two_runs_is_refused(s3, kind):
    new_source, body = SOURCES[kind]
    url = s3.new_bucket()
    s3.store(url).put("in", [body])
    (record, *_) = await read_all(new_source(f"{url}/in", store=s3.settings), records_max=1000)
    other = TABLE.slice(0, 100)
    changed_body = {"parquet": parquet, "arrow": arrow}.get(kind, lambda table: body.replace(b"text 7", b"TEXT 7"))(
        other
    )
    s3.store(url).put("in", [changed_body])
    for position in (record.next_offset, len(body)):
        with pytest.raises(SourceError, match="has changed since it was read") as changed:
            await new_source(f"{url}/in", store=s3.settings).open({record.source: position})
        assert changed.value.recovery is Recovery.FAIL_JOB


async def test_object_that_is_replaced_while_it_is_read_fails_the_source(s3):
    url = s3.new_bucket()
    s3.store(url).put("in", [b"1\n" * 10 * MIB])
    source = JsonlSource(f"{url}/in", store=s3.settings)
    await source.open({})
    assert await source.fetch(1)
    s3.store(url).put("in", [b"2\n" * 10 * MIB])
    with pytest.raises(SourceError, match="changed or replaced while it was read"):
        await fetch_all(source)
    await source.close()


async def fetch_all(source):
    count = 0
    while records := await source.fetch(10**6):
        count += len(records)
    return count


async def test_objects_are_read_by_ranges_of_bounded_size(s3):
    url = s3.new_bucket()
    s3.store(url).put("in", [b"x" * 99 + b"\n"] * 400_000)
    s3.requests.clear()
    assert len(await read_all(JsonlSource(f"{url}/in", store=s3.settings), records_max=10**6)) == 400_000
    reads = [method for method, _ in s3.requests if method == "GET"]
    assert len(reads) == 5  # of 8 MiB


async def test_what_was_read_to_its_end_costs_no_request_but_the_listing(s3):
    url = s3.new_bucket()
    for name in "abc":
        s3.store(url).put(f"{name}.jsonl", [b"1\n"])
    records = await read_all(JsonlSource(f"{url}/*.jsonl", store=s3.settings))
    s3.requests.clear()
    done = {record.source: record.next_offset for record in records}
    assert await read_all(JsonlSource(f"{url}/*.jsonl", store=s3.settings), done) == []
    assert len(s3.requests) == 1


async def test_throttled_requests_are_repeated(s3):
    url = s3.new_bucket()
    s3.store(url).put("in.jsonl", [b"1\n2\n"])
    answers = itertools.cycle([503, 500, None])
    with s3.troubled(lambda method, path: next(answers)):
        assert len(await read_all(JsonlSource(f"{url}/*.jsonl", store=s3.settings))) == 2


async def test_store_that_does_not_answer_restarts_the_subtask(s3, kind):
    new_source, body = SOURCES[kind]
    url = s3.new_bucket()
    s3.store(url).put("in", [body])
    settings = msgspec.structs.replace(s3.settings, retry_timeout_ms=200)
    source = new_source(f"{url}/in", store=settings)
    await source.open({})
    with s3.troubled(lambda method, path: 503), pytest.raises(SourceUnavailable) as away:
        await fetch_all(source)
    await source.close()
    assert away.value.recovery is Recovery.RESTART_SUBTASK
    assert away.value.where["file"] == f"{url}/in"
    with s3.troubled(lambda method, path: 500), pytest.raises(SourceUnavailable):
        await new_source(f"{url}/*", store=settings).open({})


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("s3://no-such-bucket/*.jsonl", "NoSuchBucket"),
        ("s3://no-such-bucket/in", "does not exist"),
        ("{url}/missing", "does not exist"),
        ("{url}/*.none", "no file matches"),
        ("s4://bucket/in", "names no bucket"),
        ("s3://", "names no bucket"),
        ("{url}/in/", "is a prefix"),
        ("{url}", "is a prefix"),
    ],
)
async def test_input_that_is_not_there_fails_the_job_at_once(s3, path, said):
    path = path.format(url=s3.new_bucket())
    source = JsonlSource(path, store=s3.settings)
    with pytest.raises(SourceError, match=said) as missing:
        await source.open({})
    await source.close()
    assert missing.value.recovery is Recovery.FAIL_JOB


async def test_input_that_may_not_be_read_fails_the_job_at_once(s3):
    url = s3.new_bucket()
    s3.store(url).put("in", [b"1\n"])
    with s3.troubled(lambda method, path: 403), pytest.raises(SourceError, match="may not be read"):
        await JsonlSource(f"{url}/in", store=s3.settings).open({})


async def test_object_that_a_pattern_found_before_must_still_be_there(s3):
    url = s3.new_bucket()
    for name in "ab":
        s3.store(url).put(f"{name}.jsonl", [b"1\n2\n"])
    records = await read_all(JsonlSource(f"{url}/*.jsonl", store=s3.settings))
    s3.store(url).delete(["a.jsonl"])
    with pytest.raises(SourceError, match="does not exist"):
        await JsonlSource(f"{url}/*.jsonl", store=s3.settings).open({records[0].source: 2})


# -- sinks
async def test_reader_sees_whole_objects_and_no_staging_by_any_pattern(s3):
    url = s3.new_bucket()
    sink = JsonlSink(f"{url}/out", store=s3.settings)
    await sink.open(None)
    staged = await staged_epoch(sink, 1, b"1")
    names = [entry.name for entry in s3.store(url)._list("")]
    assert sum(name.endswith(".jsonl") for name in names) == 0
    await sink.publish(1, staged)
    await sink.close()
    assert keys(s3.store(url)) == ["out/part-00000-0000000001.jsonl"]
    assert [entry.name for entry in s3.store(url)._list("")] == [
        "out/_staging/owner-00000",
        "out/part-00000-0000000001.jsonl",
    ]


async def test_epoch_that_is_larger_than_one_object_may_be_becomes_several_in_order(s3, monkeypatch):
    monkeypatch.setattr(ObjectStore, "part_max_bytes", MIB)
    url = s3.new_bucket()
    sink = JsonlSink(url, store=s3.settings)
    await sink.open(None)
    outputs = [b'"%06d %b"' % (n, b"x" * 1000) for n in range(4000)]
    await sink.publish(1, await staged_epoch(sink, 1, *outputs))
    await sink.close()
    assert keys(s3.store(url)) == [f"part-00000-0000000001-{n:05d}.jsonl" for n in range(3)]
    assert lines(s3.store(url)) == outputs


async def test_publishing_that_fails_half_way_is_finished_by_the_next_life(s3, monkeypatch):
    monkeypatch.setattr(ObjectStore, "part_max_bytes", MIB)
    url = s3.new_bucket()
    settings = msgspec.structs.replace(s3.settings, retry_timeout_ms=0)
    sink = JsonlSink(url, store=settings)
    await sink.open(None)
    outputs = [b'"%06d %b"' % (n, b"x" * 1000) for n in range(4000)]
    staged = await staged_epoch(sink, 1, *outputs)
    for allowed in range(6):  # three copies, twice the owner object, the deletion
        requests = itertools.count()
        trouble = s3.troubled(lambda method, path: None if next(requests) < allowed else 503)  # noqa: B023 (of this round)
        with trouble, pytest.raises(SinkError) as away:
            await sink.publish(1, staged)
        assert away.value.recovery is Recovery.RESTART_SUBTASK
        await sink.close()
        sink = JsonlSink(url, store=settings)
        await sink.open((1, staged))
    await sink.publish(1, staged)
    await sink.close()
    assert lines(s3.store(url)) == outputs
    assert [entry.name for entry in s3.store(url)._list("_staging/")] == ["_staging/owner-00000"]


class Life:
    """One life of a job: what it has decided outlives it, and it starts as the engine does."""

    def __init__(self, url, settings, decided):
        self.sink = JsonlSink(url, store=settings)
        self.decided = decided  # staged names by checkpoint, None where it is complete

    async def run(self, until):
        last = max(self.decided, default=0)
        staged = self.decided.get(last)
        await self.sink.open(None if staged is None else (last, staged))
        if staged is not None:
            await self.publish(last, staged)
        for checkpoint in range(last + 1, until + 1):
            self.decided[checkpoint] = await staged_epoch(
                self.sink, checkpoint, b"%d" % checkpoint, b"-%d" % checkpoint
            )
            await self.publish(checkpoint, self.decided[checkpoint])

    async def publish(self, checkpoint, staged):
        await self.sink.publish(checkpoint, staged)
        self.decided[checkpoint] = None


@pytest.mark.parametrize("status", [503, -503], ids=["request is lost", "answer is lost"])
async def test_every_request_may_be_the_last_one_of_a_life(s3, status):
    settings = msgspec.structs.replace(s3.settings, retry_timeout_ms=0)
    lives = 0
    for last in itertools.count():
        url, decided = s3.new_bucket(), {}
        requests = itertools.count()
        life = Life(url, settings, decided)
        trouble = s3.troubled(lambda method, path: status if next(requests) >= last else None)  # noqa: B023 (of this round)
        with trouble, contextlib.suppress(SinkError):
            await life.run(2)
        await life.sink.close()
        lives += 1
        is_whole = decided.get(2, 0) is None
        life = Life(url, settings, decided)
        await life.run(3)
        await life.sink.close()
        assert lines(s3.store(url)) == [b"%d" % number for n in range(1, 4) for number in (n, -n)], f"request {last}"
        assert [entry.name for entry in s3.store(url)._list("_staging/")] == ["_staging/owner-00000"]
        if is_whole:
            break
    assert lives > 15


async def test_staging_of_an_earlier_life_that_arrives_late_changes_nothing(s3):
    url = s3.new_bucket()
    late = s3.store(url)
    late.acquire("00000")
    sink = JsonlSink(url, store=s3.settings)
    await sink.open(None)
    staged = await staged_epoch(sink, 1, b'"mine"')
    late._client.put(f"_staging/part-00000-0000000001.jsonl.{late._owner.life}", b'"late"\n')
    await sink.publish(1, staged)
    await sink.close()
    assert lines(s3.store(url)) == [b'"mine"']


async def test_job_whose_prefix_another_one_has_taken_is_told_and_loses_nothing_in_silence(s3):
    url = s3.new_bucket()
    first, second = JsonlSink(url, store=s3.settings), JsonlSink(url, store=s3.settings)
    await first.open(None)
    decided = await staged_epoch(first, 1, b'"first"')
    await second.open(None)
    with pytest.raises(SinkError) as swept:
        await first.publish(1, decided)
    assert "removed" in swept.value.fix
    with pytest.raises(OutputLocked):
        await staged_epoch(first, 2, b'"x"')
    await first.close()
    await second.close()
    again = JsonlSink(url, store=s3.settings)
    await again.open((1, decided))
    with pytest.raises(SinkError, match="not found"):
        await again.publish(1, decided)
    await again.close()


async def test_outputs_of_another_life_are_never_overwritten(s3):
    url = s3.new_bucket()
    s3.store(url).put("part-00000-0000000001.jsonl", [b"old\n"])
    sink = JsonlSink(url, store=s3.settings)
    await sink.open(None)
    with pytest.raises(OutputExists):
        await staged_epoch(sink, 1, b"1")
    await sink.close()


async def test_decided_outputs_are_looked_for_where_they_were_staged(s3):
    url = s3.new_bucket()
    sink = JsonlSink(f"{url}/elsewhere", store=s3.settings)
    with pytest.raises(SinkError, match="does not exist"):
        await sink.open((1, Staged(names=("_staging/part-00000-0000000001.jsonl.12345678",))))
    await sink.close()


@pytest.mark.parametrize(("url", "said"), [("s3://no-such-bucket/out", "NoSuchBucket"), ("{url}/out", "403")])
async def test_place_that_cannot_be_written_fails_the_job_at_once(s3, url, said):
    sink = JsonlSink(url.format(url=s3.new_bucket()), store=s3.settings)
    trouble = (lambda method, path: 403 if method == "PUT" else None) if said == "403" else lambda method, path: None
    with s3.troubled(trouble), pytest.raises(SinkForbidden, match=said) as forbidden:
        await sink.open(None)
    await sink.close()
    assert "object-store" in forbidden.value.fix or "right" in forbidden.value.fix


async def test_credentials_and_endpoint_come_from_the_vendors_variables(s3, monkeypatch):
    url = s3.new_bucket()
    for name, value in environment(s3).items():
        monkeypatch.setenv(name, value)
    store = ObjectStore(url)
    store.put("a", [b"1"])
    assert content(store, "a") == b"1"


def test_missing_package_is_told_with_the_extra_that_has_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(NotConfigured) as missing:
        JsonlSink("s3://bucket/out")
    assert missing.value.fix == "pip install 'agentflow[object-store]'"


async def test_urls_of_this_machine_are_paths(tmp_path):
    sink = JsonlSink(f"file://{tmp_path}/out")
    await sink.open(None)
    await sink.publish(1, await staged_epoch(sink, 1, b"1"))
    await sink.close()
    assert len(await read_all(JsonlSource(f"file://{tmp_path}/out/*.jsonl"))) == 1
    assert len(await read_all(JsonlSource([f"file://{tmp_path}/out/*.jsonl", tmp_path / "out/*.jsonl"]))) == 1


def test_settings_show_no_secret():
    settings = ObjectStoreSettings(
        access_key_id="id", secret_access_key="hidden", session_token="hidden", account_key="hidden"
    )
    assert "hidden" not in repr(settings)


def environment(s3):
    return {
        "AWS_ENDPOINT_URL": s3.endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }


# -- crashes
def numbers(kind, body):
    """The numbers of whole lines or rows; fails on a torn one."""
    found = []
    for record in kind.rows(body):
        assert zlib.crc32(record["text"].encode()) == record["crc"]
        found.append(record["number"])
    return found


@pytest.mark.chaos
@pytest.mark.parametrize("name", ["jsonl", "parquet"])
def test_killed_writer_never_shows_a_torn_or_doubled_line_and_loses_none(s3, name, tmp_path, monkeypatch):
    kind, url, ledger = KINDS[name], s3.new_bucket(), tmp_path / "ledger"
    store = s3.store(url)
    draw = random.Random(20)
    first_seen = {}
    for _ in range(4):
        mark = load(ledger).checkpoint + draw.randint(1, 6)
        command = [sys.executable, "-m", "tests.unit.connectors.sink_victim", name, url, str(ledger)]
        variables = os.environ | environment(s3) | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, env=variables, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"ready\n"
            while load(ledger).checkpoint < mark:
                assert process.poll() is None, "the victim died by itself"
                for key in keys(store):
                    if key not in first_seen:
                        first_seen[key] = content(store, key)
            process.send_signal(signal.SIGKILL)
    for variable, value in environment(s3).items():
        monkeypatch.setenv(variable, value)
    asyncio.run(recover(kind.new_sink(url), ledger))
    found = {key: content(store, key) for key in keys(store)}
    assert {key: found[key] for key in first_seen} == first_seen, "an object changed after it was visible"
    written = list(itertools.chain.from_iterable(numbers(kind, found[key]) for key in sorted(found)))
    assert written == list(range(load(ledger).next_number))
    assert [entry.name for entry in store._list("_staging/part")] == []


VICTIM = """
import asyncio, os, signal, sys
from agentflow.testing.conformance.sink import output, staged_epoch
from tests.unit.connectors.part_kinds import KINDS

async def main():
    sink = KINDS[sys.argv[1]].new_sink(sys.argv[2])
    await sink.open(None)
    await sink.publish(1, await staged_epoch(sink, 1, b"1"))
    staged = await staged_epoch(sink, 2, b"2")
    sink.write(output(b"3" * 2**20))
    print(*staged.names, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.parametrize("name", KINDS)
async def test_what_was_staged_before_a_kill_is_published_where_it_is_decided_and_swept_where_not(s3, name):
    kind, url = KINDS[name], s3.new_bucket()
    store = s3.store(url)
    for is_decided in (True, False):
        place = f"{url}/{is_decided}"
        variables = os.environ | environment(s3) | {"PYTHONPATH": str(ROOT)}
        killed = subprocess.run(  # noqa: ASYNC221 - nothing else runs in this loop
            [sys.executable, "-c", VICTIM, name, place],
            env=variables,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert killed.returncode == -9, killed.stderr
        staged = Staged(names=tuple(killed.stdout.split()))
        sink = kind.new_sink(place, store=s3.settings)
        await sink.open((2, staged) if is_decided else None)
        if is_decided:
            await sink.publish(2, staged)
        await sink.close()
        files = [file.name for file in store.find(f"{is_decided}/")]
        assert [row for name in files for row in kind.rows(content(store, name))] == ([1, 2] if is_decided else [1])
        assert [entry.name for entry in store._list(f"{is_decided}/_staging/part")] == []


@pytest.mark.parametrize("url", ["s3://bucket/x", "gs://bucket/x", "az://container/x"])
def test_every_setting_is_one_that_the_store_knows(url):
    settings = ObjectStoreSettings(
        endpoint="http://localhost:1", region="r", access_key_id="a", secret_access_key="b", session_token="c",
        account="d", account_key="Zm9v", anonymous=True, path_style=False,
    )  # fmt: skip
    assert ObjectStore(url, settings).place == url


def test_bucket_goes_into_the_host_name_where_it_is_not_in_the_path():
    settings = ObjectStoreSettings(endpoint="https://s3.example.com:9000", region="r", path_style=False)
    config = ObjectStore("s3://bucket/x", settings)._client.config
    assert config["endpoint"] == "https://bucket.s3.example.com:9000"
