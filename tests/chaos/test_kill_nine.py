"""SIGKILL at random moments: the output is the same, byte for byte and in order per key, as of an undisturbed run."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

ROOT = Path(__file__).parents[2]
RECORDS = 200_000
KILLS = 20
SEED = 20261120


def write_input(path: Path) -> None:
    """Write the quickstart's reviews again and again, each time with other ids, over many products."""
    reviews = [
        msgspec.json.decode(line) for line in (ROOT / "examples/data/product_reviews.jsonl").read_bytes().splitlines()
    ]
    with path.open("wb") as out:
        for number in range(RECORDS):
            review = dict(reviews[number % len(reviews)])
            review["review_id"] = f"r-{number}"
            review["product_id"] = f"{review['product_id']}-{number // len(reviews) % 20}"
            out.write(msgspec.json.encode(review) + b"\n")


def start(directory: Path, source: Path) -> subprocess.Popen[bytes]:
    settings = {
        "source.jsonl.path": source,
        "sink.jsonl.path": directory / "out",
        "state.dir": directory / "state",
        "checkpoint.interval": "100ms",
    }
    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "agentflow", "run", "configs/quickstart.yaml", *flags]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)


def outputs_by_product(directory: Path) -> dict[str, list[bytes]]:
    """Read the visible output as a reader would: part files in the order of their names, staging skipped."""
    found: dict[str, list[bytes]] = {}
    for part in sorted((directory / "out").glob("part-*")):
        content = part.read_bytes()
        assert content.endswith(b"\n"), f"{part.name} ends in a torn line"
        for line in content.splitlines():
            output = msgspec.json.decode(line)
            found.setdefault(output.get("product", output.get("product_id")), []).append(line)
    return found


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_job_killed_at_random_moments_gives_the_output_of_an_undisturbed_run(tmp_path: Path) -> None:
    source = tmp_path / "reviews.jsonl"
    write_input(source)
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    process = start(calm, source)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()

    rng = random.Random(SEED)
    kills = 0
    while True:
        process = start(killed, source)
        try:
            _, errors = process.communicate(timeout=rng.uniform(0.1, 1.2) if kills < KILLS else 300)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, errors.decode()
        if kills >= KILLS:
            break
        kills += 1  # it was done before the kill: what is left to show is that starting it again changes nothing

    expected, actual = outputs_by_product(calm), outputs_by_product(killed)
    assert sum(map(len, expected.values())) >= RECORDS
    assert actual == expected
