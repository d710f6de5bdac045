"""What is said of records in which no key is found."""

from __future__ import annotations

import pytest

from agentflow.api.codecs import JSON
from agentflow.core.records import Record
from agentflow.errors import MissingKey
from agentflow.runtime.codecs import KeyReader


@pytest.mark.parametrize(
    ("key_by", "what"),
    [
        ("k", "the record has no field 'k'"),
        ("none", "the record has a NoneType in 'none'"),
        ("none.k", "the record has no field 'none.k'"),
        (lambda value: value["none"], "key-by returned a NoneType, which is no key"),
        (lambda value: [value], "key-by returned a list, which is no key"),
    ],
)
def test_record_without_a_key_is_told_by_its_field_or_by_what_the_function_returned(key_by, what):
    with pytest.raises(MissingKey) as caught:
        KeyReader(key_by, JSON).read(Record("in.jsonl", 0, 9, b'{"none": null}'))
    assert caught.value.what == what
