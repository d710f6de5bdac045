"""What a person reads when a job file is no YAML, cannot be read, or refers to what is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentflow.cli.config_file import load_job_file
from agentflow.plan.file_problems import JobFileError
from tests.unit.cli.job_files import GOOD, problems, told


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


CASES = {
    "variable that is not set": (
        GOOD + 'config: {token: "${env:SHOP_TOKEN}"}\n',
        """
        job.yaml:7: the environment variable SHOP_TOKEN is not set
          7 | config: {token: "${env:SHOP_TOKEN}"}
                              ^^^^^^^^^^^^^^^^^^^ set it, or give a default: ${env:SHOP_TOKEN:-…}
        """,
    ),
    "file that is not there": (
        GOOD + "config.token: ${file:token.txt}\n",
        """
        job.yaml:7: the file 'token.txt' cannot be read: no such file or directory
          7 | config.token: ${file:token.txt}
                            ^^^^^^^^^^^^^^^^^
        """,
    ),
    "unknown reference": (
        GOOD + "config.token: ${evn:TOKEN}\n",
        """
        job.yaml:7: '${evn:TOKEN}' is no known reference
          7 | config.token: ${evn:TOKEN}
                            ^^^^^^^^^^^^ did you mean 'env'?
        """,
    ),
    "reference that is not closed": (
        GOOD + 'config.token: "${env:TOKEN"\n',
        """
        job.yaml:7: the reference '${env:TOKEN' is not closed
          7 | config.token: "${env:TOKEN"
                            ^^^^^^^^^^^^^ a '}' is missing
        """,
    ),
    "reference without a name": (
        GOOD + "config.token: ${env:}\n",
        """
        job.yaml:7: '${env:}' names no variable
          7 | config.token: ${env:}
                            ^^^^^^^ write ${env:NAME} or ${env:NAME:-default}
        """,
    ),
    "reference in a place that is not quoted": (
        GOOD + "config: {token: ${env:TOKEN}}\n",
        """
        job.yaml:7: this is not YAML: did not find expected ',' or '}'
          7 | config: {token: ${env:TOKEN}}
                               ^ inside { } and [ ] a reference stands in quotes: "${env:NAME}"
        """,
    ),
    "colon in a text": (
        GOOD + "config.text: a: b\n",
        """
        job.yaml:7: this is not YAML: mapping values are not allowed in this context
          7 | config.text: a: b
                            ^ put a text that contains ': ' in quotes
        """,
    ),
    "quote that is not closed": (
        'job: "reviews\n',
        """
        job.yaml:1: this is not YAML: found unexpected end of stream
          1 | job: "reviews
                           ^ a quote is not closed
        """,
    ),
    "tab": (
        "state:\n\tdir: x\n",
        """
        job.yaml:2: this is not YAML: found character that cannot start any token
          2 |  dir: x
              ^ indent with spaces, not tabs
        """,
    ),
    "tag": (
        GOOD + "config.x: !!python/object:os.system y\n",
        """
        job.yaml:7: the tag '!!python/object:os.system' is not supported
          7 | config.x: !!python/object:os.system y
                        ^^^^^^^^^^^^^^^^^^^^^^^^^^^ remove the tag
        """,
    ),
    "two documents": (
        "job: a\n---\njob: b\n",
        """
        job.yaml:2: this is not YAML: but found another document
          2 | ---
              ^
        """,
    ),
    "alias to itself": (
        "config: &a {x: *a}\n",
        """
        job.yaml:1: this alias refers to itself
          1 | config: &a {x: *a}
                      ^^^^^^^^^^
        """,
    ),
    "empty file": (
        "",
        """
        job.yaml: the file is empty
        help: it needs agent, key-by, source and sink, or agents: agentflow schema --describe
        """,
    ),
    "only a comment": (
        "# nothing yet\n",
        """
        job.yaml: the file is empty
        help: it needs agent, key-by, source and sink, or agents: agentflow schema --describe
        """,
    ),
    "list of keys": (
        "- job: x\n",
        """
        job.yaml:1: a job file is a mapping of keys, not a list
          1 | - job: x
              ^^^^^^^^
        help: it needs agent, key-by, source and sink, or agents: agentflow schema --describe
        """,
    ),
    "one word": (
        "reviews\n",
        """
        job.yaml:1: a job file is a mapping of keys, not a text
          1 | reviews
              ^^^^^^^
        help: it needs agent, key-by, source and sink, or agents: agentflow schema --describe
        """,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_yaml_problem_is_told_with_place_mark_and_fix(case):
    text, expected = CASES[case]
    assert problems(text) == [told(expected)]


def test_missing_file_is_told_with_the_nearest_one():
    Path("job.yaml").write_text(GOOD, encoding="utf-8")
    with pytest.raises(JobFileError) as caught:
        load_job_file("jobs.yaml", variables={})
    assert list(caught.value.problems) == ["jobs.yaml: there is no such file\nhelp: did you mean 'job.yaml'?"]


def test_directory_is_no_job_file(tmp_path):
    with pytest.raises(JobFileError) as caught:
        load_job_file(str(tmp_path), variables={})
    assert list(caught.value.problems) == [f"{tmp_path}: this is a directory, not a job file"]


def test_bytes_that_are_no_text_are_told_with_their_line():
    assert problems(b"job: reviews\nagent: \xff\n") == [
        "job.yaml:2: byte 0xff is not UTF-8\nhelp: save the file as UTF-8"
    ]


def test_control_character_is_told():
    (problem,) = problems("job: \x01\n")
    assert problem.startswith("job.yaml: this is not YAML: unacceptable character #x0001")


@pytest.mark.parametrize("depth", [65, 200_000])
def test_deep_nesting_is_told_instead_of_ending_the_process(depth):
    (problem,) = problems("config: " + "[" * depth + "]" * depth)
    by_the_parser = "job.yaml:1: this is not YAML: exceeded maximum nesting depth"  # of newer ones, which look ahead
    assert problem.split("\n")[0] in ("job.yaml:1: this is nested more than 64 deep", by_the_parser)


def test_aliases_that_multiply_are_told_instead_of_filling_memory():
    lines = ["config:", "  a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 8)]
    assert "more than 100,000 values" in problems("\n".join(lines))[0]


def test_long_line_is_cut_around_the_mark():
    text = GOOD + "config: {padding: " + "x" * 400 + ", 1: a}\n"
    (problem,) = problems(text)
    _, line, mark = problem.split("\n")
    assert len(line) < 180
    assert line[mark.index("^")] == "1"
