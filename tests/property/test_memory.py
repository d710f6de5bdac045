"""Random memory operations over tasks, some of which fail, against a plain dict of paths."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from agentflow import Agent, EventType, Retry
from agentflow.testing import OperatorHarness

names = st.sampled_from("abc")
paths = st.lists(names, min_size=1, max_size=3).map(".".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
operations = st.one_of(
    st.tuples(st.just("set"), paths, values),
    st.tuples(st.just("delete"), paths, st.none()),
    st.tuples(st.just("new_object"), paths, st.none()),
    st.tuples(st.just("get"), paths, st.none()),
    st.tuples(st.just("change what get returned"), paths, st.none()),
)
tasks = st.lists(st.tuples(st.lists(operations, max_size=6), st.booleans()), max_size=5)


class Model:
    """Values and made objects by path."""

    def __init__(self):
        self.values = {}
        self.objects = set()

    def copy(self):
        copy = Model()
        copy.values, copy.objects = dict(self.values), set(self.objects)
        return copy

    def is_object(self, path):
        return path in self.objects or any(p.startswith(f"{path}.") for p in (*self.values, *self.objects))

    def above(self, path):
        parts = path.split(".")
        return [".".join(parts[:depth]) for depth in range(1, len(parts))]

    def apply(self, name, path, value):
        """Do one operation; return what the caller sees, or the class of what it raises."""
        if name == "set":
            if any(above in self.values for above in self.above(path)) or self.is_object(path):
                return ValueError
            self.values[path] = value
        elif name == "delete":
            self.values = {p: v for p, v in self.values.items() if p != path and not p.startswith(f"{path}.")}
            self.objects = {p for p in self.objects if p != path and not p.startswith(f"{path}.")}
        elif name == "new_object":
            if path in self.values or any(above in self.values for above in self.above(path)):
                return ValueError
            if not self.is_object(path):
                self.objects.add(path)
        elif path in self.values:
            return self.values[path]
        elif self.is_object(path):
            return "object"
        return None


def perform(memory, name, path, value):
    try:
        if name == "set":
            memory.set(path, value)
        elif name == "delete":
            memory.delete(path)
        elif name == "new_object":
            memory.new_object(path)
        else:
            found = memory.get(path)
            if hasattr(found, "get_field_names"):
                return "object"
            if name == "change what get returned" and isinstance(found, list):
                found.append("changed")
                return found[:-1]
            return found
    except ValueError:
        return ValueError
    return None


def shape(value):
    """A value with its types: 1, 1.0 and True are not the same."""
    if isinstance(value, list):
        return [shape(item) for item in value]
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    return (type(value).__name__, value)


# What a task put in the place of a value is no value: it may not be overwritten by one.
@example(
    [([("set", "b.a", 1)], False), ([("delete", "b", None), ("new_object", "b.a", None), ("set", "b.a", 2)], False)]
)
@example([([("set", "b", 1)], False), ([("delete", "b", None), ("set", "b.a", 1), ("set", "b", 2)], False)])
@given(tasks)
def test_memory_is_a_tree_of_values_that_only_completed_tasks_change(tasks):
    model = Model()
    seen, expected = [], []

    def act(event, ctx):
        operations, is_failing = tasks[event.input["n"]]
        seen.extend(shape(perform(ctx.short_term_memory, *operation)) for operation in operations)
        seen.append(ctx.short_term_memory.get_field_names())
        if is_failing:
            raise RuntimeError

    agent = Agent("A").add_action("act", EventType.InputEvent, act, retry=Retry(attempts=1), on_error="skip")
    with OperatorHarness(agent, key_by="k") as harness:
        for n, (operations, is_failing) in enumerate(tasks):
            working = model.copy()
            expected += [shape(working.apply(*operation)) for operation in operations]
            expected.append(sorted({path.split(".")[0] for path in (*working.values, *working.objects)}))
            harness.process_record({"k": 1, "n": n})
            if not is_failing:
                model = working
            if n % 2:
                harness.checkpoint()
        assert seen == expected
        assert shape(harness.memory(1)) == shape(dict(sorted(model.values.items())))
        harness.checkpoint()
        harness.restart()
        assert shape(harness.memory(1)) == shape(dict(sorted(model.values.items())))
