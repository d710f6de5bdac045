"""README and docs are executed: Python snippets run, job files validate, make targets exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets(language: str) -> list[tuple[str, str]]:
    """Return (place, text) of every fenced block of a language."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text[: match.start()].count("\n") + 1
            found.append((f"{document.name}:{line}", match[1]))
    return found


def run(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(("place", "text"), snippets("python"), ids=[place for place, _ in snippets("python")])
def test_python_snippet_runs(place: str, text: str, tmp_path: Path) -> None:
    script = tmp_path / "snippet.py"
    script.write_text(text)
    done = run([sys.executable, "-W", "error", str(script)], tmp_path)
    assert done.returncode == 0, f"{place}\n{done.stderr}"


@pytest.mark.parametrize(("place", "text"), snippets("yaml"), ids=[place for place, _ in snippets("yaml")])
def test_job_file_runs_to_the_end_of_its_input(place: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(text)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    done = run([sys.executable, "-m", "agentflow", "run", "job.yaml"], tmp_path)
    assert done.returncode == 0, f"{place}\n{done.stderr}"
    assert list((tmp_path / "out").glob("part-*"))


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [word for _, text in snippets("sh") for word in re.findall(r"^make (\w+)", text, re.MULTILINE)]
    assert named[:2] == ["run", "test"]
    assert set(named) <= targets
