"""What a rehearsal saw: as data, and as text."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import msgspec

from agentflow.cli.verify.witness import AttemptSeen, DeadLetterSeen, WaitSeen, Witness
from agentflow.core.records import Record
from agentflow.errors import AgentflowError

_VALUE_CHARS = 300
_NAME_WIDTH = 11
_TIME_WIDTH = 10


class Verdict(enum.StrEnum):
    """How it went."""

    OK = "ok"
    """Outputs came."""
    NO_OUTPUT = "no output"
    """Every run ended, and sent none: that is the agent's business."""
    WAITING = "waiting"
    """What did not end waits for time or a signal, as it should."""
    FAILED = "failed"


class Stage(msgspec.Struct, frozen=True):
    """One step on the way.

    Attributes:
        name: What it is.
        what: What came of it.
        milliseconds: How long it took; None: that was not measured.
    """

    name: str
    what: str
    milliseconds: float | None


class Rehearsal(msgspec.Struct):
    """Everything that is told.

    Attributes:
        job: Name of the job.
        agent: As the job file names it.
        place: Where it ran.
        origin: Where the records came from.
        records: They, as they were given.
        stages: In order.
        keys: Record → key.
        attempts: Attempts of actions.
        outputs: Decoded outputs; bytes as text.
        dead_letters: Records whose run failed for good.
        skipped: Tasks that were dropped by their policy.
        waits: What still waits.
        problem: What failed; empty: nothing.
        fix: What to do about it.
        left_behind: What could not be removed again.
    """

    job: str
    agent: str
    place: str
    origin: str
    records: list[Record]
    stages: list[Stage] = []
    keys: dict[str, object] = {}
    attempts: list[AttemptSeen] = []
    outputs: list[Any] = []
    dead_letters: list[DeadLetterSeen] = []
    skipped: list[str] = []
    waits: list[WaitSeen] = []
    problem: str = ""
    fix: str = ""
    left_behind: list[str] = []

    def take(self, witness: Witness, names: Mapping[str, str] | None = None) -> None:
        """Take what a witness has seen.

        Args:
            witness: The witness.
            names: Record as it ran → as it was given; None: they are the same.
        """
        given = names or {}
        renamed = msgspec.structs.replace
        self.keys = {given.get(record, record): key for record, key in witness.keys.items()}
        self.attempts = [renamed(one, record=given.get(one.record, one.record)) for one in witness.attempts]
        self.dead_letters = [renamed(one, record=given.get(one.record, one.record)) for one in witness.dead]
        self.waits = [renamed(one, record=given.get(one.record, one.record)) for one in witness.waits.values()]
        self.skipped = witness.skipped
        if self.problem:
            return
        if self.dead_letters:
            first = self.dead_letters[0]
            who = f"action '{first.action}' failed" if first.action else "the record cannot be processed"
            tries = f" {first.attempts} times" if first.attempts > 1 else ""
            self.problem = f"{who}{tries}: {first.error}"
            self.fix = "correct the action, or the record: --value gives another one"
        elif self.skipped:
            self.problem, self.fix = self.skipped[0], "correct the action, or the record: --value gives another one"

    def fail(self, failure: AgentflowError, fix: str) -> None:
        """Take an error of the engine; ``fix`` is for one that knows none."""
        problem, _, known = str(failure).partition("\nhelp: ")
        self.problem, self.fix = problem, failure.fix or known or fix
        if user_traceback := getattr(failure, "user_traceback", ""):  # of an action that failed the job
            self.problem += "\n" + user_traceback.rstrip()

    @property
    def verdict(self) -> Verdict:
        """How it went, all in all."""
        if self.problem or self.left_behind:
            return Verdict.FAILED
        if self.waits:
            return Verdict.WAITING
        return Verdict.OK if self.outputs else Verdict.NO_OUTPUT

    def to_json(self) -> dict[str, Any]:
        """Return it for ``--json``."""
        rounded = [msgspec.structs.replace(stage, milliseconds=_rounded(stage.milliseconds)) for stage in self.stages]
        plain: dict[str, Any] = msgspec.to_builtins(
            {
                "result": self.verdict.value,
                "job": self.job,
                "agent": self.agent,
                "place": self.place,
                "origin": self.origin,
                "records": [{"record": one.run_id, "key": self.keys.get(one.run_id)} for one in self.records],
                "stages": rounded,
                "actions": [
                    {
                        "record": one.record,
                        "action": one.action,
                        "task": one.task,
                        "attempt": one.attempt,
                        "error": one.error,
                        "milliseconds": _rounded(one.milliseconds),
                        "steps": [
                            msgspec.structs.replace(step, milliseconds=round(step.milliseconds, 3))
                            for step in one.steps
                        ],
                    }
                    for one in self.attempts
                ],
                "outputs": self.outputs,
                "dead_letters": self.dead_letters,
                "waits": self.waits,
                "problem": self.problem or None,
                "fix": self.fix or None,
                "left_behind": self.left_behind,
            },
            builtin_types=(),
            enc_hook=repr,
        )
        return plain

    def to_text(self, *, is_colored: bool) -> str:
        """Return it for people."""
        lines = [f"job '{self.job}', agent {self.agent}, {self.place}", ""]
        for stage in self.stages:
            if stage.name == "run":
                lines += self._attempt_lines()
            lines.append(_line(stage.name, stage.what, stage.milliseconds))
        lines += [_line("output", _short(value), None) for value in self.outputs]
        lines += [_line("dead letter", f"{one.record}: {one.error}", None) for one in self.dead_letters]
        lines += [
            _line("waits", f"{one.record}: action '{one.action}' waits for {one.what}", None) for one in self.waits
        ]
        lines += [_line("left behind", one, None) for one in self.left_behind]
        return "\n".join([*lines, "", *self._last_words(is_colored)])

    def _attempt_lines(self) -> list[str]:
        lines = []
        for one in self.attempts:
            tries = f", attempt {one.attempt}" if one.attempt > 1 or one.error else ""
            lines.append(
                _line("action", f"{one.action}{tries}{f': {one.error}' if one.error else ''}", one.milliseconds)
            )
            for step in one.steps:
                call = "answered from the journal" if step.call == 0 else f"call {step.call}"
                ended = f": {step.error}" if step.error else ""
                lines.append(_line("", f"  step {step.function}, {call}{ended}", step.milliseconds))
        return lines

    def _last_words(self, is_colored: bool) -> list[str]:  # noqa: FBT001 (as given)
        verdict = self.verdict
        word = (
            f"\x1b[{'31;1' if verdict is Verdict.FAILED else '32'}m{verdict.value}\x1b[0m"
            if is_colored
            else verdict.value
        )
        count = len(self.records)
        of = f"{count} record{'s' if count != 1 else ''}"
        outputs = f"{len(self.outputs)} output{'s' if len(self.outputs) != 1 else ''}"
        if verdict is Verdict.FAILED:
            problem = self.problem or "what was made for this could not be removed again"
            first, *rest = problem.splitlines()
            traceback = next((one.traceback for one in reversed(self.attempts) if one.traceback), "")
            rest = rest or (traceback.rstrip().splitlines() if self.problem else [])
            return [f"{word}: {first}", *(f"  {line}" for line in rest), f"help: {self.fix}"]
        if verdict is Verdict.WAITING:
            return [f"{word}: {of}, {outputs} so far; what is left waits, as the agent says"]
        if verdict is Verdict.OK:
            return [f"{word}: {of}, {outputs}"]
        ran = ", ".join(dict.fromkeys(one.action for one in self.attempts))
        return [
            f"{word}: {of}, and the agent sent nothing ({f'it ran {ran}' if ran else 'no action takes it'}); nothing failed"
        ]


def _line(name: str, what: str, milliseconds: float | None) -> str:
    took = ""
    if milliseconds is not None:
        took = f"{milliseconds:.1f} ms" if milliseconds >= 1 else f"{milliseconds * 1000:.0f} µs"
    return f"{name:<{_NAME_WIDTH}}{took:>{_TIME_WIDTH}}  {what.splitlines()[0] if what else what}".rstrip()


def _short(value: Any) -> str:  # noqa: ANN401 (any output)
    text = msgspec.json.encode(value, enc_hook=repr).decode()
    return text if len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]}…"


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 3)


def decoded(value: bytes | None, codec_name: str) -> Any:  # noqa: ANN401 (any output)
    """Return an output as it can be shown: by its codec where that is a known one, else as text."""
    if value is None:
        return None
    try:
        if codec_name == "json":
            return msgspec.json.decode(value)
        if codec_name == "msgpack":
            return msgspec.to_builtins(msgspec.msgpack.decode(value), str_keys=True)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    return value.decode("utf-8", "backslashreplace")
