"""What a file names in Python modules: ``module:name``, imported, or a problem that says why not."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from agentflow.api.encoding import user_traceback
from agentflow.plan.file_problems import Place, ProblemList
from agentflow.plan.problems import nearest


def find_named(reference: str, role: str, place: Place, problems: ProblemList) -> Any:  # noqa: ANN401 (anything)
    """Return what ``module:name`` names; None, and a problem, when there is nothing."""
    if not is_reference(reference):
        problems.add(f"{role} is not module:name", place, note="such as shop.sources:orders")
        return None
    module = import_module(reference, role, place, problems)
    if module is None:
        return None
    wanted = [found for found, value in vars(module).items() if callable(value) and found[0] != "_"]
    return attribute_of(module, reference, role, wanted, place, problems)


def find_function(
    reference: str, role: str, wanted: str, place: Place, problems: ProblemList
) -> Callable[[Any], Any] | None:
    """Return the function that ``module:name`` names; None, and a problem, when there is none."""
    module = import_module(reference, role, place, problems)
    if module is None:
        return None
    functions = [
        found
        for found, value in vars(module).items()
        if callable(value) and not isinstance(value, type) and found[0] != "_"
    ]
    count = len(problems.found)
    function = attribute_of(module, reference, role, functions, place, problems)
    if len(problems.found) > count:
        return None
    if not callable(function):
        problems.add(
            f"{role} is of type {type(function).__name__}, not a function",
            place,
            note=wanted,
        )
        return None
    return function  # type: ignore[no-any-return]  # callable, and that is all there is to know


def is_reference(reference: str) -> bool:
    """Whether a text has the form ``module:name``."""
    module_name, colon, name = reference.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module_name.split("."), *name.split(".")])


def error_text(error: BaseException) -> str:
    """Return the class of an error, and what it says."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def import_module(reference: str, role: str, place: Place, problems: ProblemList) -> ModuleType | None:
    """Import the module of ``module:name``; None, and a problem, when that fails."""
    name = reference.partition(":")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            near = nearest(missing, _modules_beside(missing))
            problems.add(
                f"{role}: there is no module '{missing}'",
                place,
                note=f"did you mean '{near}'?"
                if near
                else "looked in the current directory, beside the job file, and in sys.path",
                help="name it as module:name, and start agentflow where the module can be imported",
            )
        else:
            problems.add(
                f"{role}: module '{name}' imports '{missing}', which is not there",
                place,
                note="install it, or correct the import",
                detail=user_traceback(error),
            )
    except SyntaxError as error:
        file = os.path.relpath(error.filename) if error.filename else name
        problems.add(
            f"{role}: module '{name}' is not valid Python: {file}:{error.lineno}: {error.msg}",
            place,
            detail="\n".join(line.rstrip("\n") for line in traceback.format_exception_only(error)),
        )
    except (Exception, SystemExit) as error:  # noqa: BLE001 (the edge to the user's code: anything may come from a module's top)
        problems.add(
            f"{role}: module '{name}' cannot be imported: {error_text(error)}", place, detail=user_traceback(error)
        )
    return None


def _modules_beside(missing: str) -> list[str]:
    """Return the names of modules where ``missing`` was looked for, as they would be written."""
    parent, _, _ = missing.rpartition(".")
    if parent:
        folders = list(getattr(sys.modules.get(parent), "__path__", ()))
    else:
        folders = sys.path[:2]
    names = set()
    for folder in folders:
        try:
            entries = list(Path(folder).iterdir())
        except OSError:
            continue
        names |= {entry.stem for entry in entries if entry.suffix == ".py" or (entry / "__init__.py").is_file()}
    return [f"{parent}.{name}" if parent else name for name in sorted(names)]


def attribute_of(
    module: ModuleType, reference: str, role: str, wanted: list[str], place: Place, problems: ProblemList
) -> Any:  # noqa: ANN401 (anything)
    """Return what ``reference`` names in its module; None, and a problem, when there is nothing."""
    name = reference.partition(":")[2]
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            near = nearest(name, wanted) or nearest(part, [other for other in vars(found) if not other.startswith("_")])
            note = f"did you mean '{near}'?" if near else f"it has: {', '.join(wanted)}" if wanted else ""
            problems.add(f"{role}: module '{module.__name__}' has no '{name}'", place, note=note)
            return None
        found = getattr(found, part)
    return found
