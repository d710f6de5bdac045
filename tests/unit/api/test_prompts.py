"""Prompts: placeholders, and files."""

from __future__ import annotations

import os

import pytest

from agentflow.api.chat_messages import ChatMessage, ImagePart, MessageRole, TextPart
from agentflow.api.prompts import Prompt
from agentflow.errors import AgentflowError, MissingPromptVariable, NotConfigured

SYSTEM, USER = MessageRole.SYSTEM, MessageRole.USER


# -- placeholders
@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("Hello {name}!", "Hello Ann!"),
        ("{name}{name}", "AnnAnn"),
        ("{{name}}", "{name}"),
        ("{{name}} {name}", "{name} Ann"),
        ('{"name": 1, "list": [{}]}', '{"name": 1, "list": [{}]}'),
        ("{ name } {1} {a.b} {} {{ }}", "{ name } {1} {a.b} {} {{ }}"),
        ("{n}", "3"),
        ("{größe}", "XL"),
        ("{braces}", "{name}"),
    ],
)
def test_only_identifiers_in_braces_are_placeholders(text, filled):
    values = {"name": "Ann", "n": 3, "größe": "XL", "braces": "{name}"}
    assert Prompt.from_text(text).format_string(**values) == filled


def test_a_placeholder_without_a_value_is_an_error_with_the_fix():
    prompt = Prompt.from_text("Hello {name}, {other}")
    with pytest.raises(MissingPromptVariable) as caught:
        prompt.format_string(nam="Ann", b=1)
    assert (caught.value.variable, caught.value.prompt) == ("name", "")
    assert str(caught.value) == (
        "prompt has the placeholder {name}, and no value for it\n"
        "expected: 'name' among its arguments (b, nam)\n"
        "help: give it (a request: in prompt_args), or write {{name}} for literal braces"
    )
    prompt.name = "greeting"
    with pytest.raises(MissingPromptVariable, match=r"prompt 'greeting' has .*\n.*none are given"):
        prompt.format_messages()


def test_values_that_no_placeholder_wants_are_ignored():
    assert Prompt.from_text("hello").format_string(name="Ann") == "hello"


@pytest.mark.parametrize("name", ["role", "self", "values", "text", "class", "größe"])
def test_a_value_may_have_any_name(name):
    prompt = Prompt.from_text(f"it is {{{name}}}")
    assert prompt.messages_of(USER, {name: "that"}) == [ChatMessage(USER, "it is that")]
    if name != "role":  # which says whose message it is
        assert prompt.format_messages(USER, **{name: "that"}) == [ChatMessage(USER, "it is that")]
    assert prompt.format_string(**{name: "that"}) == "it is that"


# -- messages
def test_a_text_is_one_message_of_the_role_that_is_asked_for():
    prompt = Prompt.from_text("Hello {name}")
    assert prompt.format_messages(name="Ann") == [ChatMessage(SYSTEM, "Hello Ann")]
    assert prompt.format_messages("user", name="Ann") == [ChatMessage(USER, "Hello Ann")]


def test_texts_of_messages_are_filled_and_everything_else_is_kept():
    parts = [TextPart("look at {what}", cache=True), ImagePart(url="https://{what}")]
    messages = [ChatMessage(SYSTEM, "You are {who}.", cache=True), ChatMessage(USER, parts=parts)]
    prompt = Prompt.from_messages(messages)
    filled = prompt.format_messages(who="kind", what="this")
    assert filled == [
        ChatMessage(SYSTEM, "You are kind.", cache=True),
        ChatMessage(USER, parts=[TextPart("look at this", cache=True), ImagePart(url="https://{what}")]),
    ]
    assert prompt.format_string(who="kind", what="this") == "system: You are kind.\nuser: look at this"
    assert messages[0].content == "You are {who}."


# -- files
@pytest.fixture
def write(tmp_path):
    times = iter(range(1, 100))

    def write(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        os.utime(path, (1_700_000_000, 1_700_000_000 + next(times)))
        return path

    return write


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a", "a.prompt"])
def test_a_file_is_a_text_whatever_it_holds(write, name):
    path = write(name, '[{"role": "system"}]\n{name}\n')
    prompt = Prompt.from_file(path)
    assert prompt.format_string(name="ä") == '[{"role": "system"}]\nä'
    assert Prompt.from_file(str(path)).format_messages(name="ä") == prompt.format_messages(name="ä")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '[{"role": "system", "content": "You are {who}."}, {"content": "Hello"}, "Hi"]'),
        ("a.yaml", "- role: system\n  content: You are {who}.\n- content: Hello\n- Hi\n"),
        ("A.YML", "- {role: system, content: 'You are {who}.'}\n- content: Hello\n- Hi\n"),
    ],
)
def test_json_and_yaml_files_hold_messages(write, name, text):
    assert Prompt.from_file(write(name, text)).format_messages(who="kind") == [
        ChatMessage(SYSTEM, "You are kind."),
        ChatMessage(USER, "Hello"),
        ChatMessage(USER, "Hi"),
    ]


def test_messages_of_a_file_may_have_parts(write):
    path = write("a.yaml", "- parts:\n  - {type: text, text: see}\n  - {type: image, url: 'https://x'}\n")
    assert Prompt.from_file(path).format_messages()[0].parts == [TextPart("see"), ImagePart(url="https://x")]


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.json", "[{", "JSON is malformed|truncated"),
        ("a.json", '{"role": "system", "content": "x"}', "it is no list, but dict"),
        ("a.json", '"You are kind."', "it is no list, but str"),
        ("a.yaml", "You are kind.\n", "it is no list, but str"),
        ("a.yaml", "", "it is no list, but NoneType"),
        ("a.yaml", "- [", "parsing a flow"),
        ("a.yaml", "- role: robot\n", "message 1 has the role 'robot'; there are system, user, assistant, tool"),
        ("a.yaml", "- Hi\n- contents: x\n", "message 2 has the unknown field 'contents'"),
        ("a.yaml", "- 5\n", "message 1 is no message, but 5"),
        ("a.yaml", "- content: [x]\n", "Expected `str`, got `array`"),
        ("a.txt", b"\xff\xfe", "'utf-8' codec"),
    ],
)
def test_a_file_that_holds_no_prompt_is_told_with_its_path_and_the_fix(write, name, text, why):
    path = write(name, text)
    with pytest.raises(NotConfigured, match=f"the file of a prompt does not hold one: .*({why})") as caught:
        Prompt.from_file(path).format_messages()
    assert caught.value.where == {"path": path}
    assert "[{role: system, content: You are …}]" in caught.value.expected
    assert caught.value.fix


def test_a_missing_file_is_told_with_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompt = Prompt.from_file("nowhere.txt")
    for use in (prompt.format_string, prompt.format_messages, lambda: prompt.digest):
        with pytest.raises(AgentflowError, match="cannot be read: No such file or directory") as caught:
            use()
        assert caught.value.where == {"path": tmp_path / "nowhere.txt"}
    with pytest.raises(AgentflowError, match="Is a directory"):
        Prompt.from_file(tmp_path).format_string()


def test_a_file_is_read_again_when_it_has_changed_and_only_then(write, monkeypatch):
    path = write("a.txt", "one")
    prompt = Prompt.from_file(path)
    assert prompt.format_string() == "one"
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.read_text", None)  # nobody reads
        assert prompt.format_string() == "one"
    write("a.txt", "other")
    assert prompt.format_string() == "other"
    path.unlink()
    with pytest.raises(NotConfigured):
        prompt.format_string()
    write("a.txt", "again")
    assert prompt.format_string() == "again"


def test_a_change_within_one_tick_of_the_clock_shows_by_its_size(write):
    path = write("a.txt", "one")
    prompt = Prompt.from_file(path)
    prompt.format_string()
    stat = path.stat()
    path.write_text("another")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert prompt.format_string() == "another"


# -- digests
def test_the_digest_is_that_of_the_content(write):
    path = write("a.txt", "one")
    prompt = Prompt.from_file(path)
    first = prompt.digest
    assert first == Prompt.from_text("one").digest == prompt.digest
    assert len(first) == 16
    write("a.txt", "two")
    assert prompt.digest == Prompt.from_text("two").digest != first


def test_messages_have_the_digest_of_everything_in_them(write):
    def digest(**fields):
        return Prompt.from_messages([ChatMessage(**{"role": SYSTEM, "content": "x", **fields})]).digest

    assert digest() == digest(role="system") == Prompt.from_file(write("a.yaml", "- {role: system, content: x}")).digest
    assert (
        len({digest(), digest(content="y"), digest(role=USER), digest(cache=True), Prompt.from_text("x").digest}) == 5
    )


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"\xef\xbb\xbfhello")
    assert Prompt.from_file(path).format_string() == "hello"
