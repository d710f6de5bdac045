"""`agentflow verify`: a record goes through the job, from its source to its output, beside everything that is real but the actions."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from agentflow.cli.output import EXIT_DONE, EXIT_PROBLEMS_FOUND, is_colored, print_json
from agentflow.cli.verify.report import Rehearsal, Stage, Verdict
from agentflow.core.records import Record
from agentflow.errors import AgentflowError, ConfigError
from agentflow.runtime.codecs import RECORD_KEY

if TYPE_CHECKING:
    from agentflow.api.codecs import Codec
    from agentflow.cli.job_file import JobFile
    from agentflow.cli.loading import Program
    from agentflow.plan.plan import AgentPlan

_READ_S = 5.0
_MS = 1_000_000
_KEY = "verify"
_KEYS_SHOWN = 5


def verify(chosen: argparse.Namespace) -> int:
    """Run the rehearsal, print what it saw, and return the exit status that says it."""
    from agentflow.cli.config_file import load_job_file
    from agentflow.cli.loading import load_program
    from agentflow.cli.run import configured_logs, loop_factory
    from agentflow.plan.plan import AgentPlan

    job_file = load_job_file(chosen.config, profile=chosen.profile, settings=chosen.settings)
    seen = Rehearsal(job_file.settings.job, job_file.composition.agent, "", "", [])
    with contextlib.redirect_stdout(sys.stderr):  # what user code prints is no part of the report
        program = load_program(job_file)
        plan = AgentPlan.from_agent(program.agent, job_file.config)
        _check_key(chosen, program)
        if not _may_run(plan, is_asked=not chosen.yes):
            print("nothing was run")
            return 128 + signal.SIGINT
        configured_logs(job_file, is_live_wanted=False)
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what its warnings mean is told, or is nothing
        with asyncio.Runner(loop_factory=loop_factory(is_uvloop_wanted=True)) as runner:
            received = runner.run(_interruptible(_rehearse(chosen, job_file, program, plan, seen)))
        if received is not None:
            print(f"interrupted by {received.name}")
            for one in seen.left_behind:
                print(f"left behind: {one}")
            return 128 + received
    if chosen.json:
        print_json(seen.to_json())
    else:
        print(seen.to_text(is_colored=is_colored(sys.stdout)))
    return EXIT_PROBLEMS_FOUND if seen.verdict is Verdict.FAILED else EXIT_DONE


def _check_key(chosen: argparse.Namespace, program: Program) -> None:
    """Refuse a key where records have none of their own."""
    if chosen.key is None:
        return
    if program.key_by != RECORD_KEY:
        raise ConfigError(
            [f"--key: the key of this job comes from the value (key-by: {program.key_by})\nhelp: put it into --value"]
        )
    if chosen.records is not None:
        raise ConfigError(["--key: records of the source have their own keys\nhelp: leave out --records, or --key"])


def _may_run(plan: AgentPlan, *, is_asked: bool) -> bool:
    """Say that actions run for real; on a terminal, ask whether they may."""
    warning = f"the actions of agent '{plan.name}' run for real: what they call is called, what they send is sent"
    if not is_asked or not sys.stdin.isatty():
        print(f"note: {warning}", file=sys.stderr)
        return True
    print(f"note: {warning}\ngo on? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


async def _interruptible(work: Any) -> signal.Signals | None:  # noqa: ANN401 (a coroutine)
    """Run a coroutine; the first SIGINT or SIGTERM lets it clean up, the second one interrupts that. Return the first."""
    received: list[signal.Signals] = []
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)

    def take(number: signal.Signals) -> None:
        received.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, take, number)
    try:
        await asyncio.wait([task])
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    if not task.cancelled():
        task.result()
    return received[0] if received else None


async def _rehearse(
    chosen: argparse.Namespace, job_file: JobFile, program: Program, plan: AgentPlan, seen: Rehearsal
) -> None:
    from agentflow.cli.job_file import KafkaSource

    is_kafka = isinstance(job_file.composition.source, KafkaSource)
    began_ns = time.perf_counter_ns()
    try:
        async with asyncio.timeout(chosen.timeout / 1000):
            seen.records, seen.origin, codec = await _records(chosen, job_file, program, plan)
    except ConfigError:
        raise
    except TimeoutError:
        seen.problem = f"{job_file.composition.source.described} did not answer within {chosen.timeout / 1000:g} s"
        seen.fix = "agentflow doctor says what is wrong with it; --value gives a record without reading it"
        return
    except AgentflowError as failure:
        seen.fail(failure, "agentflow doctor says more")
        return
    took = None if chosen.value is not None else (time.perf_counter_ns() - began_ns) / _MS
    seen.stages.append(Stage("read", f"{len(seen.records)} from {seen.origin}", took))
    seen.stages.append(_key_stage(seen.records, program, codec))
    with tempfile.TemporaryDirectory(prefix="agentflow-verify-") as directory:
        if is_kafka:
            from agentflow.cli.verify.kafka import run_on_kafka

            seen.place = f"a worker on {job_file.settings.kafka.brokers}, topics of its own"
            await run_on_kafka(job_file, program, plan, seen, Path(directory), chosen.timeout)
        else:
            from agentflow.cli.verify.embedded import run_embedded

            seen.place = "embedded, in a temporary directory"
            await run_embedded(job_file, program, plan, seen, codec, Path(directory), chosen.timeout)


def _key_stage(records: Sequence[Record], program: Program, codec: Codec) -> Stage:
    """Read the keys of the records, as the job will; what is wrong with one is told by the job, which ends it by its policy."""
    from agentflow.runtime.codecs import KeyReader

    reader, keys = KeyReader(program.key_by, codec), []
    began_ns = time.perf_counter_ns()
    for record in records:
        try:
            keys.append(repr(msgspec.msgpack.decode(reader.read(record))))
        except Exception as error:  # noqa: BLE001 (key-by may be user code)
            keys.append(f"none: {getattr(error, 'what', None) or f'{type(error).__name__}: {error}'}")
    took = (time.perf_counter_ns() - began_ns) / _MS
    shown = ", ".join(keys[:_KEYS_SHOWN]) + (f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else "")
    by = program.key_by if isinstance(program.key_by, str) else getattr(program.key_by, "__qualname__", "a function")
    return Stage("key", f"{shown} (key-by: {by})", took)


async def _records(
    chosen: argparse.Namespace, job_file: JobFile, program: Program, plan: AgentPlan
) -> tuple[list[Record], str, Codec]:
    """Return the records of the rehearsal, where they come from, and the codec of their values."""
    from agentflow.cli.verify.examples import made_up_value

    codec = _codec(job_file, program)
    if chosen.value is None and chosen.key is None:
        found = await _first_records(job_file, program, chosen.records or 1)
        if found:
            return found, job_file.composition.source.described, codec
        if chosen.records is not None:
            raise ConfigError(
                [f"--records: {job_file.composition.source.described} has no record\nhelp: --value gives one"]
            )
    if chosen.value is None:
        return [_made(made_up_value(plan, program.key_by, codec), chosen, program, codec)], "a made-up value", codec
    try:
        value = msgspec.json.decode(chosen.value)
    except msgspec.DecodeError as error:
        raise ConfigError(
            [f"--value is no JSON ({error}): {chosen.value}\nhelp: texts have quotes: '\"yes\"'"]
        ) from None
    return [_made(value, chosen, program, codec)], "--value", codec


def _made(value: object, chosen: argparse.Namespace, program: Program, codec: Codec) -> Record:
    try:
        encoded = codec.encode(value)
    except Exception as error:
        raise ConfigError([f"the value cannot be encoded by codec '{codec.name}': {error}"]) from error
    key = (chosen.key or _KEY).encode() if program.key_by == RECORD_KEY else None
    return Record("verify", 0, 1, encoded, key, time.time_ns() // _MS)


def _codec(job_file: JobFile, program: Program) -> Codec:
    from agentflow.cli.connections import source_opener
    from agentflow.cli.job_file import KafkaSource

    source = job_file.composition.source
    if isinstance(source, KafkaSource):
        return program.input_codec
    return source_opener(source, job_file.settings, program.connectors)().codec


async def _first_records(job_file: JobFile, program: Program, count: int) -> list[Record]:
    """Return the first records of the job's source, which is only read; none of one that cannot be read twice, or waits for senders."""
    from agentflow.cli.connections import source_opener
    from agentflow.cli.job_file import HttpSource, KafkaSource, StdinSource

    source = job_file.composition.source
    if isinstance(source, StdinSource | HttpSource):
        return []
    if isinstance(source, KafkaSource):
        from agentflow.connectors.kafka.rehearsal import first_records

        return await first_records(job_file.settings.kafka, source.topics, count)
    opened = source_opener(source, job_file.settings, program.connectors)()
    if not opened.is_replayable:
        return []
    found: list[Record] = []
    try:
        async with asyncio.timeout(_READ_S):  # a source that follows its files waits for records
            await opened.open({})
            while len(found) < count and (records := await opened.fetch(count - len(found))):
                found += records
    except TimeoutError:
        pass
    finally:
        await opened.close()
    return found
