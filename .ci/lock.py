"""Write the lock files: every transitive version, with the hashes of its wheels for every supported target.

Run it by ``make lock`` after a change of dependencies. It asks pip alone: pip resolves once with the running interpreter
(the oldest supported Python, so that backports are in), then names the wheel of each pin for each target. The files name
versions and hashes, never the place they come from, so that any package index or mirror serves.

Windows is not a target: the lock files are for development and for the image.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = {
    "linux-x86_64": [
        f"{tag}_x86_64"
        for tag in ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux_2_12")
    ],
    "linux-aarch64": [
        f"{tag}_aarch64" for tag in ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
    ],
    "macos-arm64": [f"macosx_{major}_0_arm64" for major in (14, 13, 12, 11)],
    "macos-x86_64": [
        f"macosx_{tag}_x86_64" for tag in ("14_0", "13_0", "12_0", "11_0", "10_15", "10_13", "10_12", "10_9")
    ],
}
MARKERS = {
    "uvloop": "sys_platform != 'win32'",
    "obstore": "sys_platform != 'linux' or platform_machine != 'aarch64'",  # there is no wheel for it
}
HEADER = """\
# Written by `make lock`; do not edit. Versions and wheel hashes of {what}.
# Targets: CPython {pythons} on {platforms}.
"""
Pins = dict[str, tuple[str, str]]
"""Name → (version, hash)."""


def resolve(arguments: list[str]) -> Pins | None:
    """Return what pip would install; None when it finds no answer."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--only-binary", ":all:", "--report", str(report), *arguments]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            print(answer.stderr.strip(), file=sys.stderr)
            return None
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    pins: Pins = {}
    for entry in installs:
        digest = entry["download_info"]["archive_info"]["hashes"]["sha256"]
        name = entry["metadata"]["name"].lower().replace("_", "-").replace(".", "-")
        pins[name] = (entry["metadata"]["version"], digest)
    return pins


def wheels(pins: Pins, python: str, platform: str) -> Pins:
    """Return the wheels of ``pins`` for one target, one by one where the target lacks some of them."""
    target = ["--no-deps", "--target", "never-written", "--python-version", python]
    target += [word for tag in PLATFORMS[platform] for word in ("--platform", tag)]
    wanted = [f"{name}=={version}" for name, (version, _) in pins.items()]
    found = resolve([*target, *wanted])
    if found is not None:
        return found
    found = {}
    for requirement in wanted:
        one = resolve([*target, requirement])
        if one is None:
            print(f"no wheel of {requirement} for Python {python} on {platform}", file=sys.stderr)
        found.update(one or {})
    return found


def requirements_of(left_out: tuple[str, ...]) -> list[str]:
    """Return the project's requirements with all extras but some, without the project itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra, wanted in project["optional-dependencies"].items():
        if extra not in left_out:
            lines += [line for line in wanted if not line.startswith(project["name"])]
    return lines


def write(path: Path, what: str, pins: Pins, hashes: dict[str, set[str]]) -> None:
    """Write one lock file, sorted by name."""
    text = HEADER.format(what=what, pythons=", ".join(PYTHONS), platforms=", ".join(PLATFORMS))
    for name in sorted(pins):
        marker = f" ; {MARKERS[name]}" if name in MARKERS else ""
        text += f"{name}=={pins[name][0]}{marker}"
        text += "".join(f" \\\n    --hash=sha256:{digest}" for digest in sorted(hashes[name])) + "\n"
    path.write_text(text, encoding="utf-8")
    print(f"{path.name}: {len(pins)} packages")


def main() -> int:
    """Resolve, collect the hashes of all targets, write both files."""
    if sys.version_info[:2] != tuple(int(part) for part in PYTHONS[0].split(".")):
        print(
            f"run this with Python {PYTHONS[0]}, the oldest supported one: newer ones leave out backports",
            file=sys.stderr,
        )
        return 2
    everything = resolve(requirements_of(left_out=("benchmarks",)))
    if everything is None:
        return 1
    constraint = [f"{name}=={version}" for name, (version, _) in everything.items()]
    with tempfile.TemporaryDirectory() as scratch:
        constraints = Path(scratch) / "constraints.txt"
        constraints.write_text("\n".join(constraint), encoding="utf-8")
        runtime = resolve(["--constraint", str(constraints), *requirements_of(left_out=("benchmarks", "dev"))])
    if runtime is None:
        return 1
    hashes = {name: {digest} for name, (_, digest) in everything.items()}
    for python in PYTHONS:
        for platform in PLATFORMS:
            for name, (_, digest) in wheels(everything, python, platform).items():
                hashes[name].add(digest)
    write(ROOT / "requirements.lock", "everything that development needs", everything, hashes)
    write(ROOT / "requirements-runtime.lock", "what the engine needs at run time", runtime, hashes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
