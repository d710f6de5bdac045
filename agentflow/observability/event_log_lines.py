"""From turns to records of the event log, fast: a line is put together from pieces that are made once.

A turn's lines become one list of pieces. What repeats (field names, names of actions and events, keys) is encoded once; values that
are proved to be free of secrets and short (`ValueForm`) are taken as they are, all others are marked, and rendered by the thread
that writes. What is rare (executions, failures) is in `event_log_executions`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from agentflow.api.codecs import JSON, MSGPACK
from agentflow.api.events import EventType
from agentflow.core.inputs import ActionCompleted, RecordReceived, RequestReceived, SentEvent
from agentflow.observability.event_log_levels import EventLogLevel, Selection
from agentflow.observability.event_log_values import NOT_PROVED, Truncation, ValueForm, refuse, shown_key
from agentflow.runtime.observation import monotonic_ns
from agentflow.runtime.redaction import Redaction

if TYPE_CHECKING:
    from agentflow.runtime.observation import Answer, Turn

_INPUT, _OUTPUT, _TIMER = EventType.InputEvent, EventType.OutputEvent, EventType.TimerEvent
_KEYS_MAX = 50_000  # some 12 MB
_TEXTS_MAX = 10_000
_INCARNATION_CHARS = 8
_END = b"}\n"
_EVENT_ID = b'"eventId":"'
_NO_ACTION = object()

Entry = tuple["Answer", int, int, int]
"""(answer, attempt, when the attempt began, when it answered)"""


class Rules(msgspec.Struct, frozen=True):
    """What all operators of a job have in common.

    Attributes:
        selection: What is written.
        redaction: What must not be seen.
        truncation: What level standard leaves out.
        has_trace: Whether executions are told.
    """

    selection: Selection
    redaction: Redaction
    truncation: Truncation
    has_trace: bool


def quoted(text: str) -> bytes:
    """Return a text as it stands between JSON's quotes."""
    return msgspec.json.encode(text)[1:-1]


class EventForm(msgspec.Struct, frozen=True):
    """How events of one type are written.

    Attributes:
        level: 0: standard, 1: verbose.
        value: How their values are shown.
        type: The type, as JSON has it.
    """

    level: int
    value: ValueForm
    type: bytes


class SentText(msgspec.Struct, frozen=True):
    """What is between the ids and the value of an event that an action has sent."""

    form: EventForm
    behind_event_id: bytes
    behind_upstream_id: bytes
    end: bytes


class TaskText:
    """What the lines of a task's events say of the task. Tasks with one path in their runs share it.

    Attributes:
        path: Path of the task in its run, as JSON has it, with a slash before it.
        event: Path of the event that triggered it.
        action: Name of the action.
        is_written: Whether records of the action are.
        sent: What stands around events, by type and place; None: they are not written.
        output: What stands around an output that is the first event; None: not known yet, or it is not written.
        below: Texts of tasks that its events trigger, by (place, action).
    """

    __slots__ = ("action", "below", "event", "is_written", "output", "path", "sent")

    def __init__(self, above: bytes, index: int, action: str, *, is_written: bool) -> None:
        self.event = b"%b/%d" % (above, index)
        self.action = quoted(action)
        self.path = b"%b:%b" % (self.event, self.action)
        self.is_written = is_written
        self.sent: dict[tuple[str | None, int], SentText | None] = {}
        self.output: SentText | None = None
        self.below: dict[tuple[int, str], TaskText] = {}


class EventLines:
    """Turns what happens to one operator into lines.

    Attributes:
        records: How many lines there are.
        pieces: The lines, in pieces.
        deferred: Places in ``pieces`` that hold values as they came, and how they are shown.
        now: Time of the turn.
        incarnation: Of the job's state, in short: ids of runs repeat where state is not kept.
        first_ms: Time of the first turn: runs that were admitted before have been restored. None: none came yet.

    Args:
        agent: Name of the agent.
        incarnation: Of the job's state.
        rules: What is written, and how.
    """

    def __init__(self, agent: str, incarnation: str, rules: Rules) -> None:
        self.records = 0
        self.pieces: list[bytes] = []
        self.deferred: list[tuple[int, ValueForm]] = []
        self._rules = rules
        self._is_selective = rules.selection.share < 1
        self.incarnation = incarnation[:_INCARNATION_CHARS]
        names = (quoted(agent), quoted(self.incarnation), _EVENT_ID)
        self._behind_key = b',"agentName":"%b","incarnation":"%b",%b' % names
        self._run_ids: dict[str, bytes] = {}
        self._keys: dict[bytes, bytes | None] = {}
        self._forms: dict[str, EventForm | None] = {}
        self._texts: dict[tuple[int, str], TaskText] = {}
        self._texts_known = 0
        self._codecs = (JSON, JSON)
        self._usual_action: tuple[Any, TaskText | None] = (None, None)
        self._heads = (b"", b"")
        self._second = -1
        self._second_text = ""
        self._clock_ns = 0
        self.now = ""
        self.first_ms: int | None = None

    def begin(self, turn: Turn, now_ms: int) -> None:
        """Begin with the lines of a turn."""
        if turn.input_codec is not self._codecs[0] or turn.output_codec is not self._codecs[1]:
            self._codecs = (turn.input_codec, turn.output_codec)
            self._forms.clear()
        self.now = self.time(now_ms * 1_000_000)
        if self.first_ms is None:
            self.first_ms = now_ms
        at = self.now.encode()
        self._heads = (
            b'{"timestamp":"%b","logLevel":"STANDARD","inputRunId":"' % at,
            b'{"timestamp":"%b","logLevel":"VERBOSE","inputRunId":"' % at,
        )
        self._clock_ns = 0

    def take(self) -> tuple[list[bytes], list[tuple[int, ValueForm]], int]:
        """Return and clear the lines."""
        taken = self.pieces, self.deferred, self.records
        self.pieces, self.deferred, self.records = [], [], 0
        return taken

    def time(self, epoch_ns: int) -> str:
        """Return a time as records have it: UTC, to the microsecond."""
        seconds, rest_ns = divmod(epoch_ns, 1_000_000_000)
        if seconds != self._second:
            self._second = seconds
            self._second_text = f"{datetime.fromtimestamp(seconds, tz=UTC):%Y-%m-%dT%H:%M:%S}"
        return f"{self._second_text}.{rest_ns // 1000:06d}Z"

    def time_of(self, at_ns: int) -> str:
        """Return the time of a reading of `monotonic_ns`."""
        if not self._clock_ns:
            self._clock_ns = time.time_ns() - monotonic_ns()
        return self.time(at_ns + self._clock_ns)

    # -- inputs, and events that actions send
    def add_records(
        self, records: Sequence[RecordReceived | RequestReceived], answers: Sequence[Entry]
    ) -> Sequence[Entry]:
        """Add the inputs of runs, each with what was sent by the task that answered it at once.

        Args:
            records: The inputs, in order.
            answers: The turn's answers; nearly always those to the records, in their order.

        Returns:
            The answers that are not those.
        """
        form = self.form(_INPUT)
        if self._is_selective:
            records = [one for one in records if self._rules.selection.has_run(one.record.run_id)]
        if form is None or not records:
            return answers
        first_record = records[0].record
        first = next((at for at, one in enumerate(answers) if one[0].task.run.record is first_record), 0)
        place = self._add_pairs(form, records, answers, first)
        return [*answers[:first], *answers[place:]] if place > first else answers

    def _add_pairs(
        self, form: EventForm, records: Sequence[RecordReceived | RequestReceived], answers: Sequence[Entry], place: int
    ) -> int:
        """Add inputs with the answers from ``place`` on that are theirs; return the place behind the last of these.

        It is long because it is the one loop that every record comes through: no call for what is usual, a value in JSON that is
        proved to be fit, and one output of that kind.
        """
        value_form, pieces, deferred = form.value, self.pieces, self.deferred
        proof, is_json = value_form.proof, value_form.is_json
        head, keys = self._heads[form.level], self._keys
        middle = b'/0","eventType":"%b","eventAttributes":%b' % (form.type, value_form.opening)
        end = value_form.closing + _END
        last, written, source, of_source = len(answers), 0, "", b""
        action, around, sent_head, sent_proof = self._usual()
        for received in records:
            record = received.record
            try:
                key = keys[received.key]
            except KeyError:
                key = self._key(received.key)
            if key is None:
                continue
            if record.source != source:
                source = record.source
                of_source = self._run_ids.get(source) or self._ids_of(source)
            run_id = of_source % record.offset
            value: Any = record.value  # bytes, from here to the line
            if is_json and value is not None and 92 not in value and 10 not in value:
                try:
                    proof(value)
                except NOT_PROVED:
                    if (shown := value_form.eager(value)) is None:
                        deferred.append((len(pieces) + 5, value_form))
                    else:
                        value, proof = shown, value_form.proof
            elif (shown := value_form.shown(value)) is not None:
                value = shown
            else:
                deferred.append((len(pieces) + 5, value_form))
            pieces += (head, run_id, key, run_id, middle, value, end)
            written += 1
            if place == last or (task := answers[place][0].task).run.record is not record:
                continue
            answer = answers[place][0]
            place += 1
            if type(answer) is not ActionCompleted or (sent := answer.sent) is None:
                continue
            kind, output = sent[0]
            if task.action is action and kind is None and output is not None and len(sent) == 1 and not task.emitted:
                try:
                    if 92 in output or 10 in output:
                        raise TypeError
                    sent_proof(output)
                except NOT_PROVED:
                    pass
                else:
                    pieces += (
                        sent_head, run_id, key, run_id, around.behind_event_id, run_id, around.behind_upstream_id, output, around.end,
                    )  # fmt: skip
                    written += 1
                    continue
            self.add_sent(run_id, key, self.text(task), sent, left=task.emitted)
            action, around, sent_head, sent_proof = self._usual(task)
        self.records += written
        return place

    def _usual(self, task: Any = None) -> tuple[Any, Any, bytes, Callable[[bytes], object]]:  # noqa: ANN401 (the operator's task)
        """Return what is usual from now on: the action, what stands around its output, and how that is proved."""
        if task is not None:
            self._usual_action = task.action, self.text(task)
        action, text = self._usual_action
        around = None if text is None else text.output
        if around is None or not around.form.value.is_json:
            return _NO_ACTION, None, b"", refuse
        return action, around, self._heads[around.form.level], around.form.value.proof

    def add_answers(self, answers: Sequence[Entry]) -> Sequence[Entry]:
        """Add what tasks have sent that run with others of this life; return the answers that more is to be said of."""
        others: list[Entry] = []
        keys, run_ids, is_selective = self._keys, self._run_ids, self._is_selective
        for entry in answers:
            answer = entry[0]
            task = answer.task
            if task.stored_path is not None or (task.parent is None and task.event_type is not _INPUT):
                others.append(entry)
            elif type(answer) is ActionCompleted and (sent := answer.sent) is not None:
                run = task.run
                key, of_source = keys.get(run.state.key), run_ids.get(run.record.source)
                if key is None or of_source is None or is_selective:
                    if (found := self.found(run)) is None:
                        continue
                    run_id, key = found
                else:
                    run_id = of_source % run.record.offset
                self.add_sent(run_id, key, self.text(task), sent, left=task.emitted)
        return others

    def add_root(self, task: Any) -> None:  # noqa: ANN401 (the operator's task, which this layer does not know)
        """Add the event that began a run, or its compensation, by a task that it triggered."""
        run = task.run
        found, form = self.found(run), self.form(task.event_type)
        if found is None or form is None:
            return
        index = task.event_id.rpartition("/")[2]
        upstream = b'","eventAttributes":'
        if task.event_type == _TIMER and (above := _registered_by(run.record.source)) is not None:
            upstream = b'","upstreamEventId":"%b","upstreamActionName":"%b%b' % (
                quoted(above[0]),
                quoted(above[1]),
                upstream,
            )
        shown = form.value.shown(task.payload) or form.value.render(task.payload)
        self.pieces += (
            self._heads[form.level], found[0], found[1], found[0], b'/%b","eventType":"%b' % (index.encode(), form.type), upstream,
            form.value.opening, shown, form.value.closing, _END,
        )  # fmt: skip
        self.records += 1

    def add_sent(
        self, run_id: bytes, key: bytes, text: TaskText, sent: Sequence[SentEvent], first: int = 0, *, left: int = 0
    ) -> None:
        """Add the events that a task has sent.

        Args:
            run_id: The run, as JSON has it.
            key: The piece behind it.
            text: Of the task.
            sent: The events.
            first: Place of the first one.
            left: Outputs before this place are not added: they have left before.
        """
        if not text.is_written:
            return
        pieces, heads = self.pieces, self._heads
        for index in range(first, len(sent)):
            event_type, payload = sent[index]
            try:
                around = text.sent[event_type, index]
            except KeyError:
                around = self._sent_text(text, event_type, index)
            if around is None or (index < left and event_type is None):
                continue
            value_form = around.form.value
            shown = value_form.shown(payload)
            if shown is None:
                assert payload is not None, "null is shown"
                shown = payload
                self.deferred.append((len(pieces) + 7, value_form))
            pieces += (
                heads[around.form.level], run_id, key, run_id, around.behind_event_id, run_id, around.behind_upstream_id, shown, around.end,
            )  # fmt: skip
            self.records += 1

    def add_outputs_before_wait(self, task: Any, sent: Sequence[SentEvent], first: int) -> None:  # noqa: ANN401 (as above)
        """Add the outputs that leave before a wait."""
        found = self.found(task.run)
        if found is not None:
            outputs = [(index, event) for index, event in enumerate(sent) if index >= first and event[0] is None]
            for index, _ in outputs:
                self.add_sent(*found, self.text(task), sent[: index + 1], index)

    def add_attempt(
        self,
        task: Any,  # noqa: ANN401 (the operator's task)
        attempt: int,
        how: str,
        status: str,
        level: str,
        at_ns: int,
        attributes: bytes,
    ) -> None:
        """Add that an attempt of an action has begun (``how`` is ``started``) or come to a good end (``finished``)."""
        found, text = self.found(task.run), self.text(task)
        if found is None or not text.is_written:
            return
        run_id, key = found
        path, action, kind = text.path, text.action, how.encode()
        self.pieces.append(
            b'{"timestamp":"%b","logLevel":"%b","inputRunId":"%b%b"executionId":"%b%b#%d","entityType":"action","entityName":"%b",'
            b'"eventId":"%b%b#%d:%b","eventType":"_execution_%b_event","upstreamEventId":"%b%b","upstreamActionName":"%b",'
            b'"status":"%b","eventAttributes":%b}\n'
            % (
                self.time_of(at_ns).encode(), level.encode(), run_id, key[: -len(_EVENT_ID)], run_id, path, attempt, action,
                run_id, path, attempt, kind, kind, run_id, text.event, action, status.encode(), attributes,
            )
        )  # fmt: skip
        self.records += 1

    def in_execution(self, key: bytes, run_id: bytes, text: TaskText, attempt: int) -> bytes:
        """Return the piece of a key for events that an execution has sent."""
        return b'%b"executionId":"%b%b#%d","entityType":"action","entityName":"%b",%b' % (
            key[: -len(_EVENT_ID)], run_id, text.path, attempt, text.action, _EVENT_ID,
        )  # fmt: skip

    # -- what is made once
    def found(self, run: Any) -> tuple[bytes, bytes] | None:  # noqa: ANN401 (the operator's run)
        """Return the id of a run as JSON has it, and the piece behind it; None: it is not written."""
        key = self._key(run.state.key)
        if key is None or (self._is_selective and not self._rules.selection.has_run(run.id)):
            return None
        record = run.record
        return (self._run_ids.get(record.source) or self._ids_of(record.source)) % record.offset, key

    def form(self, event_type: str) -> EventForm | None:
        """Return how events of a type are written; None: they are not."""
        try:
            return self._forms[event_type]
        except KeyError:
            pass
        rules = self._rules
        level = rules.selection.level(event_type)
        form = None
        if level is not EventLogLevel.OFF:
            codec, name = {_INPUT: (self._codecs[0], "input"), _OUTPUT: (self._codecs[1], "output")}.get(
                event_type, (MSGPACK, "")
            )
            truncation = rules.truncation if level is EventLogLevel.STANDARD else None
            value = ValueForm(codec, rules.redaction, truncation, name)
            form = EventForm(int(level is EventLogLevel.VERBOSE), value, quoted(event_type))
        if len(self._forms) >= _TEXTS_MAX:
            self._forms.clear()
        self._forms[event_type] = form
        return form

    def _sent_text(self, text: TaskText, event_type: str | None, index: int) -> SentText | None:
        form = self.form(_OUTPUT if event_type is None else event_type)
        around = None
        if form is not None:
            around = SentText(
                form,
                b'%b/%d","eventType":"%b","upstreamEventId":"' % (text.path, index, form.type),
                b'%b","upstreamActionName":"%b","eventAttributes":%b' % (text.event, text.action, form.value.opening),
                form.value.closing + _END,
            )
        if len(text.sent) >= _TEXTS_MAX:
            text.sent.clear()
        text.sent[event_type, index] = around
        if event_type is None and index == 0:
            text.output = around
        return around

    def key_json(self, key: bytes) -> bytes:
        """Return a key as it may be seen."""
        return shown_key(self._rules.redaction, key)

    def _key(self, key: bytes) -> bytes | None:
        """Return the piece of a key, and remember it; None: its runs are not written."""
        try:
            return self._keys[key]
        except KeyError:
            pass
        if len(self._keys) >= _KEYS_MAX:
            self._keys.clear()
        piece = None
        if self._rules.selection.has_key(msgspec.msgpack.decode(key)):
            piece = b'","businessKey":%b%b' % (self.key_json(key), self._behind_key)
        self._keys[key] = piece
        return piece

    def _ids_of(self, source: str) -> bytes:
        """Return the form of the ids of runs of a source, as JSON has them, to be filled in with an offset."""
        if len(self._run_ids) >= _TEXTS_MAX:  # of a chained agent each upstream task is a source
            self._run_ids.clear()
        form = self._run_ids[source] = quoted(source).replace(b"%", b"%%") + b"/%d"
        return form

    def text(self, task: Any) -> TaskText:  # noqa: ANN401 (the operator's task)
        """Return what lines say of a task."""
        stored = task.stored_path
        if stored is None and task.parent is not None:
            above = self.text(task.parent)
            below, slot, before = above.below, (task.index, task.action.name), above.path
        elif stored is None:
            below, slot, before = self._texts, (task.index, task.action.name), b""
        else:
            parent, _, own = stored.rpartition("/")
            below, before = self._texts, b"/" + quoted(parent) if parent else b""
            slot = (int(own.partition(":")[0]), f"{parent}/{task.action.name}" if parent else task.action.name)
        text = below.get(slot)
        if text is None:
            if self._texts_known >= _TEXTS_MAX:
                self._texts, self._texts_known = {}, 0
                return self.text(task)
            self._texts_known += 1
            is_written = self._rules.selection.has_action(task.action.name)
            text = below[slot] = TaskText(before, slot[0], task.action.name, is_written=is_written)
        return text


def _registered_by(source: str) -> tuple[str, str] | None:
    """Return event and action that have set the timer which began a run, by the label of its record; None: none has."""
    task_id, at, _ = source.partition("@")
    event_id, colon, action = task_id.rpartition(":")
    return (event_id, action) if at and colon else None
