"""The lineage of events in files: flat and nested records, what does not fit, and what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from agentflow.cli.main import main
from agentflow.observability.trace_tree import Edge, EventRecord, build_forest, forest_text, read_forest


def event(event_id, kind="next", upstream=None, action=None, content=None):
    return EventRecord(event_id, kind, None, Edge(upstream, action), content or {})


def root(event_id):
    return event(event_id, "_input_event")


def codes(forest):
    return [(warning.code, warning.event_id) for warning in forest.warnings]


def flat(event_id, kind="next", upstream=None, action=None, **attributes):
    record = {"timestamp": "t", "eventId": event_id, "eventType": kind, "eventAttributes": attributes}
    return record | {"upstreamEventId": upstream, "upstreamActionName": action}


def nested(event_id, kind="next", upstream=None, action=None, **attributes):
    inner = {"id": event_id, "attributes": attributes, "upstreamEventId": upstream, "upstreamActionName": action}
    return {
        "timestamp": "t",
        "eventType": kind,
        "event": {name: value for name, value in inner.items() if value is not None},
    }


@pytest.fixture
def log(tmp_path):
    def write(*records, name="events-x-0.log", indent=None):
        path = tmp_path / name
        texts = [record if isinstance(record, str) else json.dumps(record, indent=indent) for record in records]
        path.write_text("\n".join(texts) + "\n")
        return path

    return write


@pytest.mark.parametrize("form", [flat, nested])
@pytest.mark.parametrize("indent", [None, 2])
def test_events_are_read_from_flat_and_nested_records_in_one_line_or_more(log, form, indent):
    path = log(form("1", "_input_event", input={"a": "{\n"}), form("2", "next", "1", "act"), indent=indent)
    forest = read_forest([path])
    assert forest.warnings == []
    assert forest_text(forest) == "Trace Tree 1\n  _input_event (1)\n    [Action: act]\n      next (2)"


def test_events_whose_ids_came_again_with_new_state_are_trees_of_their_own(log):
    def life(incarnation, *events):
        return [event | {"incarnation": incarnation} for event in events]

    files = [
        log(
            *life("one", flat("1", "_input_event"), flat("2", "next", "1", "act"), flat("3", "more", "2", "act")),
            name="a.log",
        ),
        log(*life("two", flat("1", "_input_event"), flat("2", "next", "1", "other")), name="b.log"),
    ]
    forest = read_forest(files)
    assert forest.warnings == []
    assert forest_text(forest).split("\n") == [
        "Trace Tree 1", "  _input_event (1@one)", "    [Action: act]", "      next (2@one)", "        [Action: act]", "          more (3@one)",
        "", "Trace Tree 2", "  _input_event (1)", "    [Action: other]", "      next (2)",
    ]  # fmt: skip


def test_events_of_several_files_are_one_forest(log):
    files = [
        log(flat("2", "next", "1", "act"), name="events-b.log"),
        log(flat("1", "_input_event"), name="events-a.log"),
    ]
    forest = read_forest(files)
    assert (forest.roots, forest.warnings) == (["1"], [])
    assert [action.children for action in forest.nodes["1"].actions] == [["2"]]


def test_records_about_executions_are_left_out(log):
    started = {"executionId": "e", "entityType": "action", "entityName": "a", "status": "started"}
    retry = flat("r", "_task_retry_event", "1", "act") | {"status": "retrying"}
    path = log(flat("1", "_input_event"), flat("s", "_execution_started_event", "1", "act") | started, retry)
    forest = read_forest([path])
    assert (list(forest.nodes), forest.warnings) == (["1"], [])


def test_an_event_that_is_written_twice_is_one_and_counted(log):
    twice = flat("2", "next", "1", "act", n=1)
    forest = read_forest([log(flat("1", "_input_event"), twice, twice | {"timestamp": "later"})])
    assert forest.warnings == []
    assert forest.nodes["2"].observation_count == 2
    assert forest.nodes["1"].actions[0].children == ["2"]


CONFLICTS = {
    "EVENT_ID_CONFLICT": [root("1"), event("2", "next", "1", "a", {"n": 1}), event("2", "next", "1", "b", {"n": 2})],
    "INVALID_ROOT_LINEAGE": [root("1"), event("2", "_input_event", "1", "a")],
    "UNLINKED_EVENT": [root("1"), event("2")],
    "MISSING_ACTION_NAME": [root("1"), event("2", "next", "1")],
    "MISSING_PARENT": [root("1"), event("2", "next", "0", "a")],
    "CYCLE_DETECTED": [root("1"), event("2", "next", "3", "a"), event("3", "next", "2", "b")],
}


@pytest.mark.parametrize(("code", "records"), CONFLICTS.items(), ids=CONFLICTS)
def test_what_does_not_fit_is_warned_of_and_links_nothing(code, records):
    forest = build_forest(records)
    assert codes(forest) == [(code, "2")]
    assert forest.roots == ["1"]
    if code not in ("EVENT_ID_CONFLICT", "CYCLE_DETECTED"):
        assert forest.nodes["1"].actions == []


def test_of_records_that_disagree_the_first_one_counts():
    forest = build_forest(CONFLICTS["EVENT_ID_CONFLICT"])
    assert [(action.name, action.children) for action in forest.nodes["1"].actions] == [("a", ["2"])]
    (warning,) = forest.warnings
    assert (warning.upstream_event_id, warning.upstream_action_name) == ("1", "b")


def test_an_event_with_two_origins_is_below_both():
    forest = build_forest([root("1"), root("2"), event("3", "next", "1", "a"), event("3", "next", "2", "b")])
    assert (forest.roots, forest.warnings) == (["1", "2"], [])
    assert forest_text(forest).count("next (3)") == 2


def test_a_cycle_is_cut_where_it_closes():
    forest = build_forest([root("1"), event("2", "n", "1", "a"), event("3", "n", "2", "a"), event("2", "n", "3", "a")])
    assert codes(forest) == [("CYCLE_DETECTED", "2")]
    assert forest.nodes["3"].actions == []
    assert forest_text(forest).splitlines()[1:] == [
        "  _input_event (1)",
        "    [Action: a]",
        "      n (2)",
        "        [Action: a]",
        "          n (3)",
    ]


def test_a_reserved_type_without_its_fields_is_an_event_with_a_warning(log):
    path = log(flat("1", "_input_event"), flat("2", "_execution_started_event", "1", "a"))
    forest = read_forest([path])
    assert codes(forest) == [("RESERVED_EVENT_TYPE", "2")]
    assert forest.nodes["1"].actions[0].children == ["2"]


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ('{"eventId": "2", ', (2, 18)),
        ("nonsense", (2, 1)),
        ("[1, 2]", None),
        ("5", None),
        ('{"eventId": 5, "eventType": "n", "eventAttributes": {}}', None),
        ('{"eventId": "2", "eventAttributes": {}}', None),
        ('{"eventId": "2", "eventType": "n"}', None),
        ('{"eventType": "n", "event": "x"}', None),
        ('{"eventId": "2", "eventType": "n", "eventAttributes": {}, "upstreamEventId": 5}', None),
    ],
)
def test_a_record_that_is_none_is_warned_of_and_the_rest_is_read(log, line, place):
    path = log(flat("1", "_input_event"), line, flat("3", "next", "1", "act"))
    forest = read_forest([path])
    (warning,) = forest.warnings
    assert (warning.code, warning.file_path) == ("MALFORMED_RECORD", str(path))
    assert (warning.line_number, warning.column_number) == (place or (None, None))
    assert list(forest.nodes) == ["1", "3"]


def test_a_line_that_a_killed_process_has_torn_is_warned_of(tmp_path):
    path = tmp_path / "events-x-0.log"
    path.write_bytes(json.dumps(flat("1", "_input_event")).encode() + b'\n{"timestamp":"\xc3')
    forest = read_forest([path])
    assert [warning.code for warning in forest.warnings] == ["MALFORMED_RECORD"]
    assert forest.roots == ["1"]


def test_a_file_that_cannot_be_read_is_warned_of_and_the_others_are_read(log, tmp_path):
    forest = read_forest([tmp_path, log(flat("1", "_input_event"))])
    assert [warning.code for warning in forest.warnings] == ["UNREADABLE_FILE"]
    assert forest.roots == ["1"]


# -- the command
def test_command_prints_trees_and_warnings(log, capsys):
    path = log(flat("1", "_input_event"), flat("2", "next", "0", "act"))
    assert main(["trace", "tree", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out == "Trace Tree 1\n  _input_event (1)\n"
    assert err == "[MISSING_PARENT] Event 2 comes from event 0, of which there is no record.\n"


def test_command_prints_json(log, capsys, tmp_path):
    log(flat("1", "_input_event"), flat("2", "next", "1", "act"))
    assert main(["trace", "tree", str(tmp_path), "--format", "json"]) == 0
    forest = json.loads(capsys.readouterr().out)
    assert forest == {
        "roots": ["1"],
        "nodes": {
            "1": {
                "eventId": "1", "eventType": "_input_event", "timestamp": "t", "observationCount": 1, "upstreamEdges": [],
                "actions": [{"name": "act", "children": ["2"]}],
            },
            "2": {
                "eventId": "2", "eventType": "next", "timestamp": "t", "observationCount": 1,
                "upstreamEdges": [{"upstreamEventId": "1", "upstreamActionName": "act"}], "actions": [],
            },
        },
        "warnings": [],
    }  # fmt: skip
    log("broken")
    assert main(["trace", "tree", str(tmp_path), "--format", "json"]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert set(warning) == {"code", "message", "filePath", "lineNumber", "columnNumber"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: FILE"),
        (["nowhere.log"], "nowhere.log does not exist"),
        (["."], ". has no events-*.log"),
        (["x", "--format", "html"], "unknown --format 'html'"),
    ],
)
def test_wrong_use_is_told_with_status_2(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main(["trace", "tree", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_what_agentflow_writes_has_no_warnings(tmp_path):
    from agentflow import Agent, Event, EventType, OutputEvent
    from tests.event_log_world import World

    def first(event, ctx):
        ctx.send_event(Event("next", {"n": 1}))

    def second(event, ctx):
        ctx.send_event(OutputEvent(1))

    agent = Agent("A").add_action("first", [EventType.InputEvent], first).add_action("second", ["next"], second)
    world = World(tmp_path, agent, trace=True)
    world.run([{"k": "a"}])
    forest = read_forest(world.files())
    assert forest.warnings == []
    assert forest_text(forest).splitlines()[1:] == [
        "  _input_event (list/0/0)",
        "    [Action: first]",
        "      next (list/0/0:first/0)",
        "        [Action: second]",
        "          _output_event (list/0/0:first/0:second/0)",
    ]
    assert msgspec.json.decode(msgspec.json.encode(forest))["roots"] == ["list/0/0"]
    assert Path(world.files()[0]).name.startswith("events-test-0.")
