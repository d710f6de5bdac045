"""The key table, the JSON schema and the reference file say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import msgspec
import pytest
import yaml

from agentflow.cli.config_file import load_job_file
from agentflow.cli.keys import Kind, duration_text, key_table, size_text
from agentflow.cli.schema import describe, describe_text, json_schema
from agentflow.cli.values import key_value
from agentflow.plan.agent_specs import DOCUMENT_KEYS
from agentflow.plan.file_problems import ProblemList
from agentflow.plan.yaml_source import read_yaml
from agentflow.runtime.settings import JobSettings

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = ROOT / "configs" / "reference.yaml"
TABLES = ("csv", "parquet", "arrow")  # one kind of a source or sink stands in the file, the others in comments


def paths(value: object, prefix: tuple[str, ...] = ()):
    """Yield the path of every leaf of nested mappings."""
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from paths(inner, (*prefix, name))
        else:
            yield (*prefix, name)


def test_keys_are_named_by_rule_from_fields():
    names = {key.fields: key.name for key in key_table().keys.values()}
    assert names["checkpoint", "interval_ms"] == "checkpoint.interval"
    assert names["state", "free_min_bytes"] == "state.free-min"
    assert names["event_time", "max_out_of_orderness_ms"] == "event-time.max-out-of-orderness"
    assert names["dead_letter", "jsonl", "path"] == "dead-letter.jsonl.path"


def test_every_field_of_the_settings_is_a_key():
    fields = set(paths(msgspec.to_builtins(JobSettings())))
    open_sections = {section.fields for section in key_table().open_sections}
    assert fields - {key.fields for key in key_table().keys.values()} == open_sections == {("event_log", "type")}


def test_every_key_is_described():
    assert [key.name for key in key_table().every if not key.description.endswith(".")] == []


def test_reference_file_has_every_key_and_loads(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = REFERENCE.read_text(encoding="utf-8")
    written = set(paths(yaml.safe_load(text)))
    table = key_table()
    choices = {path[0]: section.children for path, section in table.sections.items() if section.is_choice}
    known = {path for path in table.keys if path[0] not in choices or path[1] == "jsonl"}
    assert known - written == set()
    for name, kinds in choices.items():  # the other kinds stand in comments, each with its keys
        for kind in set(kinds) - {"jsonl"}:
            keys = [path[2] for path in table.keys if path[:2] == (name, kind)]
            lines = [line for line in text.splitlines() if f"# {kind}: {{" in line]
            assert any(all(f"{key}:" in line for key in keys) for line in lines), (name, kind, keys)
    assert load_job_file(str(REFERENCE), variables={}).config == {"alert.channel": "reviews"}


def test_reference_file_has_every_key_of_tables_in_comments():
    text = REFERENCE.read_text(encoding="utf-8")
    for role in ("source", "sink"):
        section = re.search(rf"^{role}:.*?\n\n", text, re.MULTILINE | re.DOTALL)[0]
        written = set()
        for kind, keys in re.findall(rf"^  # ({'|'.join(TABLES)}): (.*?\}})(?: *#.*)?$", section, re.MULTILINE):
            written |= {(role, kind, key) for key in yaml.safe_load(keys)}
        assert {path for path in key_table().keys if path[0] == role and path[1] in TABLES} == written


def test_reference_file_shows_the_defaults(monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = load_job_file(str(REFERENCE), variables={}).settings
    own = {"job": "reference"}
    defaults = msgspec.structs.replace(
        JobSettings(**own), state=msgspec.structs.replace(JobSettings().state, dir="state/reference")
    )
    assert settings == defaults


def test_profile_of_the_reference_file_is_laid_over_it(monkeypatch):
    monkeypatch.chdir(ROOT)
    job_file = load_job_file(str(REFERENCE), profile="prod", variables={})
    assert (job_file.settings.checkpoint.interval_ms, job_file.composition.log.format) == (5000, "json")


@pytest.mark.parametrize(
    "key", [key for key in key_table().keys.values() if not key.is_required], ids=lambda key: key.name
)
def test_default_is_written_as_it_is_read(key):
    problems = ProblemList()
    value = read_yaml(key.default_text, "default", problems)
    assert (key_value(key, value, problems), problems.found) == (key.default, [])


@pytest.mark.parametrize(
    ("ms", "text"), [(0, "0ms"), (1, "1ms"), (1500, "1500ms"), (60_000, "1m"), (172_800_000, "2d")]
)
def test_duration_is_written_in_the_largest_whole_unit(ms, text):
    assert duration_text(ms) == text


@pytest.mark.parametrize(("size", "text"), [(0, "0B"), (1000, "1000B"), (1024, "1KiB"), (3 * 2**30, "3GiB")])
def test_size_is_written_in_the_largest_whole_unit(size, text):
    assert size_text(size) == text


def test_schema_knows_every_key_nested_and_dotted():
    schema = json_schema()
    keys = schema["$defs"]["keys"]
    for path, key in key_table().keys.items():
        node = keys
        for part in path:
            node = node["properties"][part]
        assert node["description"] == key.description
        assert key.name in keys["properties"]
    assert set(schema["properties"]) == {*keys["properties"], *DOCUMENT_KEYS, "profile"}
    assert schema["anyOf"] == [
        {"required": ["agent", "source", "sink"]},
        *({"required": [key]} for key in DOCUMENT_KEYS),
    ]
    assert schema["additionalProperties"] is False


def test_published_schema_is_that_of_the_program():
    published = (ROOT / "docs" / "yaml-schema.json").read_text(encoding="utf-8")
    assert json.loads(published) == json_schema(), "make it anew: agentflow schema > docs/yaml-schema.json"


def test_schema_accepts_the_default_of_every_key():
    for key in key_table().keys.values():
        schema = json_schema()["$defs"]["keys"]["properties"]
        for part in key.path[:-1]:
            schema = schema[part]["properties"]
        schema = schema[key.path[-1]]
        if key.kind in (Kind.DURATION, Kind.SIZE) and schema.get("default") is not None:
            assert re.search(schema["anyOf"][0]["pattern"], schema["default"])
        if key.kind is Kind.CHOICE:
            assert schema["default"] in schema["anyOf"][0]["enum"]


def test_schema_is_json():
    assert msgspec.json.decode(msgspec.json.encode(json_schema()))["type"] == "object"


def test_section_is_described_key_by_key():
    assert [described.key for described in describe("checkpoint")] == ["checkpoint.interval", "checkpoint.timeout"]
    assert describe_text("checkpoint.interval") == (
        "checkpoint.interval\n"
        "  duration, such as 5s  (default 1s)\n"
        "  Time between checkpoints; outputs become visible with them.\n"
        "  AGENTFLOW_CHECKPOINT_INTERVAL\n"
    )


def test_choice_is_described_with_its_kinds():
    assert describe_text("source").splitlines()[:4] == [
        "source: Where records come from.",
        "one of: jsonl, csv, parquet, arrow, stdin, http, kafka, python",
        "  jsonl    JSON Lines files, one value per line.",
        "  csv      CSV files, one value per row.",
    ]


def test_whole_description_names_every_key():
    text = describe_text("")
    assert [key.name for key in key_table().every if f"\n{key.name}\n" not in f"\n{text}"] == []


def test_open_section_is_described_with_a_placeholder_and_by_any_name():
    keys = [described.key for described in describe("event-log.type") or []]
    assert keys == ["event-log.type.<TYPE>.level"]
    (named,) = describe("event-log.type.shop.order.level") or []
    assert (named.key, named.type) == ("event-log.type.shop.order.level", "off | standard | verbose, or null")
    assert describe("event-log.type.shop.order.levl") is None


@pytest.mark.parametrize(
    "written",
    [
        {"event-log.type._input_event.level": "off"},
        {"event-log": {"type": {"_input_event.level": "off", "shop": {"level": None, "order": {"level": "verbose"}}}}},
        {"event-log": {"type._input_event.level": "off"}},
    ],
)
def test_schema_takes_keys_of_open_sections_in_every_form(written):
    assert errors_of(written) == []


@pytest.mark.parametrize(
    "written",
    [
        {"event-log.type._input_event.levl": "off"},
        {"event-log.type._input_event.level": "of"},
        {"event-log": {"type": {"shop": {"order": "verbose"}}}},
        {"event-log": {"type": {"shop": {"order": {"level": 5}}}}},
    ],
)
def test_schema_refuses_wrong_keys_and_values_of_open_sections(written):
    assert errors_of(written) != []


def errors_of(written):
    """Check a job file, or a part of one, against its schema."""
    schema = {name: node for name, node in json_schema().items() if name != "anyOf"}  # what is required
    return list(jsonschema.Draft202012Validator(schema).iter_errors(written))


def test_unknown_section_has_no_description():
    assert describe("checkpoints") is None
