"""What contributors are told to run is there: make targets, workflow, hooks, changelog."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cemg_hf import __version__

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):(?!=)", MAKEFILE, re.MULTILINE))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    content: dict[Any, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    content["on"] = content.pop(True)  # YAML 1.1 reads a bare `on` as a boolean; GitHub does not
    return content


def test_the_promised_targets_exist() -> None:
    assert {"setup", "test", "quality", "bench", "demo", "docs"} <= TARGETS
    phony = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split())  # type: ignore[index]
    assert phony == TARGETS


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_make_knows_what_to_do(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_files_that_make_runs_exist() -> None:
    scripts = re.findall(r"benchmarks/\w+\.py", MAKEFILE)
    assert scripts
    for script in scripts:
        assert (ROOT / script).is_file(), script


def test_the_workflow_runs_targets_on_the_versions_supported(workflow: dict[str, Any]) -> None:
    assert {"push", "pull_request", "schedule"} <= set(workflow["on"])
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    made = [re.match(r"make ([a-z-]+)", command) for command in commands]
    assert {target[1] for target in made if target} == {"setup", "quality", "docs", "test"}
    assert {target[1] for target in made if target} <= TARGETS
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    lowest = next(one for one in PROJECT["dependencies"] if one.startswith("transformers")).removeprefix("transformers>=")
    assert matrix["transformers"] == [f"=={lowest}.*", f">={lowest}"]
    assert f">={matrix['python'][0]}" == PROJECT["requires-python"]
    assert matrix["python"] == ["3.11", "3.12", "3.13"]
    for job in workflow["jobs"].values():
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])


def test_hooks_call_what_setup_installs() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repository["repo"] == "local"
    extras = " ".join(PROJECT["optional-dependencies"]["dev"])
    for hook in repository["hooks"]:
        assert {"id", "name", "entry", "language"} <= set(hook)
        tool = re.search(r"\.venv/bin/(\w+)", hook["entry"])
        assert tool is not None
        assert tool[1] == "python" or tool[1] in extras
        for script in re.findall(r"benchmarks/\w+\.py", hook["entry"]):
            assert (ROOT / script).is_file()


def test_the_changelog_knows_this_version() -> None:
    sections = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sections[:2] == ["Unreleased", __version__] == ["Unreleased", PROJECT["version"]]


def test_contributing_names_targets_and_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`?make ([a-z-]+)", text)) <= TARGETS
    for target in re.findall(r"\]\(([^):]+)\)", text):
        assert (ROOT / target).exists(), target
