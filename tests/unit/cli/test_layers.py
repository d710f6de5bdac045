"""Which value counts: file < profile < environment < flag; and what references stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentflow.cli.config_file import load_job_file
from agentflow.cli.job_file import JsonlSink, JsonlSource, StdinSource, StdoutSink
from agentflow.cli.keys import key_table
from agentflow.plan.file_problems import JobFileError

GOOD = """\
job: reviews
agent: shop.agents:ReviewAgent
key-by: product_id
source: {jsonl: {path: in.jsonl}}
sink: {jsonl: {path: out/}}
state: {dir: state/}
"""


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def load(text: str, *settings: str, profile: str | None = None, **variables: str):
    Path("job.yaml").write_text(text, encoding="utf-8")
    return load_job_file("job.yaml", settings=settings, profile=profile, variables=variables)


def test_each_layer_wins_over_the_one_below():
    text = GOOD + "checkpoint.interval: 1s\nprofile: {prod: {checkpoint: {interval: 2s}}}\n"
    variable = {"AGENTFLOW_CHECKPOINT_INTERVAL": "3s"}
    assert load(GOOD).settings.checkpoint.interval_ms == 1000
    assert load(text, profile="prod").settings.checkpoint.interval_ms == 2000
    assert load(text, profile="prod", **variable).settings.checkpoint.interval_ms == 3000
    flagged = load(text, "checkpoint.interval=4s", profile="prod", **variable)
    assert flagged.settings.checkpoint.interval_ms == 4000


def test_later_flag_wins_over_an_earlier_one():
    assert load(GOOD, "run.in-flight-max=1", "run.in-flight-max=2").settings.run.in_flight_max == 2


KAFKA = "job: reviews\nagent: shop.agents:ReviewAgent\nstate.dir: state/\nkafka.brokers: b:9092\n"


def test_key_that_only_one_kind_has_is_that_kinds():
    short = load(KAFKA + "source.topics: in\nsink.topic: out\ndead-letter.topic: dead\n").composition
    long = load(
        KAFKA + "source: {kafka: {topics: in}}\nsink: {kafka: {topic: out}}\ndead-letter: {kafka: {topic: dead}}\n"
    ).composition
    assert (short.source, short.sink, short.dead_letter) == (long.source, long.sink, long.dead_letter)
    assert (short.sink.topic, short.dead_letter.topic) == ("out", "dead")


def test_key_of_another_kind_is_a_second_kind():
    with pytest.raises(JobFileError, match="'dead-letter' has both 'stdout' and 'kafka'"):
        load(KAFKA + "source.topics: in\nsink.topic: out\ndead-letter: {stdout: {}, topic: x}\n")


def test_key_of_several_kinds_needs_its_kind():
    with pytest.raises(JobFileError, match=r"unknown key 'sink\.path'") as caught:
        load("agent: a:B\nkey-by: k\nsource.jsonl.path: in.jsonl\nsink.path: out\nstate.dir: s\n")
    assert "say of which kind, such as sink.jsonl.path (jsonl, csv, parquet, arrow have it)" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "checkpoint: {interval: 7s, timeout: 1m}\n",
        "checkpoint.interval: 7s\ncheckpoint.timeout: 1m\n",
        "checkpoint: {interval: 7s}\ncheckpoint.timeout: 1m\n",
    ],
)
def test_nested_and_dotted_keys_are_the_same_thing(text):
    settings = load(GOOD + text).settings
    assert (settings.checkpoint.interval_ms, settings.checkpoint.timeout_ms) == (7000, 60_000)


def test_dotted_keys_reach_into_sources_and_sinks():
    text = "agent: a:B\nkey-by: k\nsource.jsonl.path: in.jsonl\nsink: {jsonl.path: out}\nstate.dir: s\n"
    composition = load(text).composition
    assert (composition.source, composition.sink) == (JsonlSource(path=("in.jsonl",)), JsonlSink(path="out"))


def test_path_may_be_a_list():
    assert load(GOOD.replace("in.jsonl", "[a.jsonl, b.jsonl]")).composition.source.path == ("a.jsonl", "b.jsonl")


@pytest.mark.parametrize("source", ["stdin", "{stdin: {}}", "{stdin: }", "{stdin: null}"])
def test_source_without_keys_is_named_in_any_form(source):
    text = f"agent: a:B\nkey-by: k\nsource: {source}\nsink: stdout\nguarantee: none\n"
    composition = load(text).composition
    assert (composition.source, composition.sink) == (StdinSource(), StdoutSink())


def test_kind_of_a_later_layer_replaces_that_of_an_earlier_one():
    text = GOOD + "profile: {shell: {source: {stdin: {}}, guarantee: none, state.dir: null}}\n"
    job_file = load(text, "sink=stdout", profile="shell")
    assert (job_file.composition.source, job_file.composition.sink) == (StdinSource(), StdoutSink())
    assert job_file.settings.state.dir is None


def test_null_takes_a_section_back_to_its_defaults():
    text = GOOD + "dead-letter: {jsonl: {path: dead/}}\nrestart: {attempts: 3}\n"
    text += "profile: {plain: {dead-letter: null, restart: null}}\n"
    assert load(text).composition.dead_letter == JsonlSink(path="dead/")
    job_file = load(text, profile="plain")
    assert (job_file.composition.dead_letter, job_file.settings.restart.attempts) == (None, 10)


def test_later_layer_sets_keys_of_a_section_that_an_earlier_one_took_back():
    text = GOOD + "restart: {attempts: 3}\nprofile: {plain: {restart: null}}\n"
    job_file = load(text, "restart.delay=2s", profile="plain")
    assert (job_file.settings.restart.attempts, job_file.settings.restart.delay_ms) == (10, 2000)


def test_options_of_agents_are_merged_key_by_key():
    text = GOOD + "config: {shop: {limit: 3, name: x}, tags: [a, b]}\nprofile.prod.config.shop.limit: 5\n"
    assert load(text, "config.fast=true", profile="prod").config == {
        "shop.limit": 5,
        "shop.name": "x",
        "tags": ["a", "b"],
        "fast": True,
    }


def test_options_keep_their_types():
    text = GOOD + "config: {a: 1, b: 1.5, c: yes, d: null, e: 'yes', f: 2024-01-01}\n"
    assert load(text).config == {"a": 1, "b": 1.5, "c": True, "d": None, "e": "yes", "f": "2024-01-01"}


def test_reference_leads_to_what_is_held_without_the_line_end_behind_it():
    Path("limit").write_text("b\n", encoding="utf-8")
    text = GOOD + "config: {a: '${env:A}', b: '${file:limit}', c: '${env:C:-c}'}\n"
    assert load(text, A="a\n", C="").config == {"a": "a", "b": "b", "c": "c"}


def test_section_of_options_replaces_a_value_of_a_lower_layer():
    text = GOOD + "config: {limit: 3}\nprofile: {prod: {config: {limit: {low: 1}}}}\n"
    assert load(text, profile="prod").config == {"limit.low": 1}


def test_variable_sets_an_option_that_the_file_has():
    text = GOOD + "config: {shop: {alert-limit: 3}}\n"
    assert load(text, AGENTFLOW_CONFIG_SHOP_ALERT_LIMIT="5").config == {"shop.alert-limit": 5}
    with pytest.raises(JobFileError, match="AGENTFLOW_CONFIG_SHOP_OTHER names no key"):
        load(text, AGENTFLOW_CONFIG_SHOP_OTHER="5")


def test_variable_and_flag_are_text_where_a_text_is_wanted():
    job_file = load(GOOD, "key-by=42", AGENTFLOW_JOB="2024", AGENTFLOW_STATE_DIR="no")
    assert (job_file.composition.key_by, job_file.settings.job, job_file.settings.state.dir) == ("42", "2024", "no")


def test_variable_and_flag_may_hold_a_list():
    assert load(GOOD, "source.jsonl.path=[a, b]").composition.source.path == ("a", "b")
    assert load(GOOD, AGENTFLOW_SOURCE_JSONL_PATH="[c, d]").composition.source.path == ("c", "d")


def test_variable_is_taken_literally():
    assert load(GOOD, AGENTFLOW_STATE_DIR="${env:HOME}").settings.state.dir == "${env:HOME}"


def test_profile_is_chosen_by_flag_or_variable():
    text = GOOD + "profile: {a: {job: of-a}, b: {job: of-b}}\n"
    assert load(text).settings.job == "reviews"
    assert load(text, AGENTFLOW_PROFILE="a").settings.job == "of-a"
    assert load(text, AGENTFLOW_PROFILE="a", profile="b").settings.job == "of-b"


@pytest.mark.parametrize(
    "name",
    [
        "AGENTFLOW_TEST_KAFKA",
        "AGENTFLOW_SERVICE_HOST",
        "AGENTFLOW_SERVICE_PORT_HTTP",
        "AGENTFLOW_WORKER_SERVICE_PORT",
        "AGENTFLOW_PORT",
        "AGENTFLOW_PORT_8080_TCP_ADDR",
        "OTHER_CHECKPOINT_INTERVAL",
    ],
)
def test_variable_that_others_set_is_no_key_and_no_problem(name):
    assert load(GOOD, **{name: "tcp://10.0.0.1:8080"}).settings.job == "reviews"


def test_no_two_keys_share_a_variable():
    variables = [key.variable for key in key_table().keys.values()]
    assert len(variables) == len(set(variables))


def test_reference_takes_a_variable_or_its_default():
    text = GOOD.replace("state/", '"${env:ROOT:-/tmp}/state"')
    assert load(text, ROOT="/srv").settings.state.dir == "/srv/state"
    assert load(text).settings.state.dir == "/tmp/state"
    assert load(text, ROOT="").settings.state.dir == "/tmp/state"


def test_reference_without_a_default_takes_an_empty_variable():
    assert load(GOOD + 'config.x: "<${env:EMPTY}>"\n', EMPTY="").config == {"x": "<>"}


def test_reference_becomes_what_its_key_wants():
    text = GOOD + 'run: {in-flight-max: "${env:MAX:-7}"}\ncheckpoint: {interval: "${env:EVERY}"}\njob2: x\n'
    settings = load(text.replace("job2: x\n", ""), EVERY="2s").settings
    assert (settings.run.in_flight_max, settings.checkpoint.interval_ms) == (7, 2000)


def test_unquoted_reference_of_an_option_is_typed_and_a_quoted_one_is_text():
    text = GOOD + 'config:\n  plain: ${env:N}\n  quoted: "${env:N}"\n'
    assert load(text, N="5").config == {"plain": 5, "quoted": "5"}


def test_file_reference_takes_the_text_without_its_line_end():
    Path("token").write_text("s3cret\n", encoding="utf-8")
    assert load(GOOD + "config.token: ${file:token}\n").config == {"token": "s3cret"}


def test_several_references_and_literal_ones_in_one_text():
    text = GOOD + 'config.x: "${env:A}-${env:B} $${env:A} ${name} $5"\n'
    assert load(text, A="1", B="2").config == {"x": "1-2 ${env:A} ${name} $5"}


def test_what_a_reference_brings_in_is_not_read_again():
    assert load(GOOD + "config.x: ${env:A}\n", A="${env:B}").config == {"x": "${env:B}"}


def test_reference_that_is_overridden_leads_nowhere_without_harm():
    text = GOOD.replace("state/", '"${env:NOT_SET}"') + "profile: {dev: {state.dir: '${env:NOT_SET_EITHER}'}}\n"
    assert load(text, "state.dir=here").settings.state.dir == "here"


def test_merge_keys_bring_in_a_mapping_that_own_keys_win_over():
    text = GOOD + "config:\n  base: &base {a: 1, b: 2}\n  other:\n    <<: *base\n    b: 3\n"
    assert load(text).config == {"base.a": 1, "base.b": 2, "other.a": 1, "other.b": 3}


def test_log_settings_are_keys_like_others():
    log = load(GOOD + "log: {level: warning}\n", AGENTFLOW_LOG_FORMAT="json").composition.log
    assert (log.format, log.level) == ("json", "warning")


def test_byte_order_mark_is_no_part_of_a_key():
    Path("job.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_job_file("job.yaml", variables={}).settings.job == "reviews"
