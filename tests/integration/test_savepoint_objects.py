"""Savepoints in an object store: taken by a running engine and by the command, restored on another machine's disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentflow import Engine
from agentflow.environment.savepoints import EmbeddedState, restore_savepoint, savepoint_at, verify_savepoint
from agentflow.errors import StateForbidden, StateUnavailable
from tests.engines import Counting
from tests.s3_server import S3Server

ROOT = Path(__file__).parents[2]
JOB = """\
job: counting
agent: tests.engines:Counting
key-by: k
source: {jsonl: {path: in.jsonl}}
sink: {jsonl: {path: out/}}
state.dir: state/
object-store: {endpoint: ENDPOINT, region: us-east-1, access-key-id: test, secret-access-key: test}
savepoint.dir: TARGET
"""


def config_of(s3: S3Server) -> dict[str, Any]:
    return {
        "object-store.endpoint": s3.endpoint,
        "object-store.region": "us-east-1",
        "object-store.access-key-id": "test",
        "object-store.secret-access-key": "test",
        "object-store.retry-timeout": "1s",
    }


async def test_what_an_older_savepoint_has_is_copied_by_the_store_and_each_stands_for_itself(
    s3: S3Server, tmp_path: Path
) -> None:
    target = f"{s3.new_bucket()}/backups"
    async with Engine(Counting(), state_dir=str(tmp_path / "state"), config=config_of(s3)) as engine:
        for n in range(50):
            await engine.submit(f"k{n}", n)
        first = await engine.savepoint(target)
        await engine.submit("k0", "again", request_id="r")
        s3.requests.clear()
        second = await engine.savepoint(target)
    assert first.startswith(f"{target}/")
    manifests = [savepoint_at(place, s3.settings).manifest for place in (first, second)]
    assert manifests[1].copied < manifests[1].size, "tables are shared"
    store = s3.store(target)
    store.delete([file.name for file in store.find(f"{first.rpartition('/')[2]}/")])
    savepoint = savepoint_at(second, s3.settings)
    assert verify_savepoint(savepoint).damage == []
    restore_savepoint(savepoint, EmbeddedState(tmp_path / "other", "job"))
    async with Engine(Counting(), state_dir=str(tmp_path / "other"), config={"job": "job"}) as engine:
        assert (await engine.submit("k0", "again", request_id="r"))[0]["n"] == 2
        assert engine.memory("k49").get("n") == 1


async def test_a_store_that_does_not_answer_and_a_bucket_that_is_not_there_are_errors_and_the_engine_goes_on(
    s3: S3Server, tmp_path: Path
) -> None:
    async with Engine(Counting(), state_dir=str(tmp_path / "state"), config=config_of(s3)) as engine:
        with pytest.raises((StateForbidden, StateUnavailable), match="no-such-bucket"):
            await engine.savepoint("s3://no-such-bucket/backups")
        url = s3.new_bucket()
        with (
            s3.troubled(lambda method, path: 503 if method in ("PUT", "POST") else None),
            pytest.raises(StateUnavailable, match="writing a savepoint"),
        ):
            await engine.savepoint(url)
        assert (await engine.submit("k", 1))[0]["n"] == 1
        assert verify_savepoint(savepoint_at(await engine.savepoint(url), s3.settings)).damage == []


def test_commands_take_list_check_restore_and_delete_them(s3: S3Server, tmp_path: Path) -> None:
    target = f"{s3.new_bucket()}/backups"
    text = JOB.replace("ENDPOINT", s3.endpoint).replace("TARGET", target)
    (tmp_path / "job.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text(text.replace("state/", "other/"))
    (tmp_path / "in.jsonl").write_text('{"k": "a"}\n' * 3)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AGENTFLOW_")}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "AWS_ENDPOINT": s3.endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }

    def agentflow(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "agentflow", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    agentflow("run", "job.yaml")
    place = json.loads(agentflow("savepoint", "create", "job.yaml", "--json"))["savepoint"]
    assert place.startswith(f"{target}/")
    for named in ("job.yaml", target):  # by the job's settings, and by the variables of the vendor
        assert [one["savepoint"] for one in json.loads(agentflow("savepoint", "list", named, "--json"))] == [place]
    assert "nothing is damaged" in agentflow("savepoint", "verify", place)
    assert agentflow("state", "get", place, "--key", "a", "n") == "3\n"
    agentflow("savepoint", "restore", place, "other.yaml")
    assert agentflow("state", "get", "other.yaml", "--key", "a", "n") == "3\n"
    agentflow("savepoint", "delete", place)
    assert json.loads(agentflow("savepoint", "list", target, "--json")) == []
