"""What GitHub is asked to run: pinned, with the least rights, and nothing that cannot be run here by make."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# YAML 1.1 reads the key `on` as true
WORKFLOWS = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8").replace("\non:", "\n'on':")) for file in FILES}
JOBS = [(name, job, content) for name, flow in WORKFLOWS.items() for job, content in flow["jobs"].items()]
STEPS = [(name, job, step) for name, job, content in JOBS for step in content.get("steps", [])]
LOCAL = "./.github/workflows/"


def make(*words: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "TAG"))}
    return subprocess.run(
        ["make", "-C", ROOT, *words], capture_output=True, text=True, check=False, env=clean | environment
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_actions_are_pinned_by_hash_with_their_version(file):
    found = re.findall(r"^\s*(?:- )?uses: (\S+)(.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    for action, comment in found:
        if action.startswith(LOCAL):
            assert (ROOT / action).is_file(), action
        else:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
            assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action


def test_jobs_have_the_least_rights_a_time_limit_and_a_group():
    assert all(flow["permissions"] == {} for flow in WORKFLOWS.values())
    rights = {(name, job): content["permissions"] for name, job, content in JOBS}
    beyond_reading = {key: given for key, given in rights.items() if given != {"contents": "read"}}
    assert beyond_reading == {
        ("book", "publish"): {"pages": "write", "id-token": "write"},
        ("release", "pypi"): {"id-token": "write"},
        ("release", "github"): {"contents": "write"},
    }
    for _, job, content in JOBS:
        if not content.get("uses", "").startswith(LOCAL):  # such a job has those of the workflow that it calls
            assert 0 < content["timeout-minutes"] <= 90 and content["concurrency"]["group"], job


def test_jobs_that_may_write_run_no_code_of_a_pull_request():
    for name, job, content in JOBS:
        if "write" in content["permissions"].values():
            assert not any(step.get("uses", "").startswith("actions/checkout@") for step in content["steps"])
            assert "pull_request" not in WORKFLOWS[name]["on"] or content["if"] == "github.event_name == 'push'", job


def test_triggers_and_secrets():
    triggers = {name: set(flow["on"]) for name, flow in WORKFLOWS.items()}
    assert triggers == {
        "check": {"push", "pull_request", "workflow_call"},
        "book": {"push", "pull_request"},
        "weekly": {"schedule", "workflow_dispatch"},
        "release": {"push"},
    }
    assert WORKFLOWS["release"]["on"]["push"] == {"tags": ["v*"]}
    assert all(WORKFLOWS[name]["on"]["push"] == {"branches": ["main"]} for name in ("check", "book"))
    for file in FILES:
        assert "secrets." not in file.read_text(encoding="utf-8")  # GITHUB_TOKEN comes as github.token
    for _, _, step in STEPS:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"] == {"persist-credentials": False}


def test_steps_run_commands_of_the_makefile_and_interpolate_nothing():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    ran = [step["run"] for _, _, step in STEPS if "run" in step]
    assert not any("${{" in line for line in ran)
    [by_hand] = [line for line in ran if not line.startswith("make ")]
    assert by_hand.startswith("gh release create ")
    commands = {line.removeprefix("make ") for line in ran} - {by_hand}
    assert commands == {"lint", "test", "book", "check-book", "check-links", "dist"} and commands <= targets
    [installed_from] = {flow["env"]["PIP_EXTRA_INDEX_URL"] for flow in WORKFLOWS.values() if "env" in flow}
    assert installed_from == "${{ vars.PIP_EXTRA_INDEX_URL }}"  # no host is named here


def test_a_release_takes_no_cache_and_waits_for_the_tests():
    jobs = WORKFLOWS["release"]["jobs"]
    assert jobs["check"]["uses"] == f"{LOCAL}check.yml" and set(jobs["pypi"]["needs"]) == {"check", "build"}
    assert jobs["github"]["needs"] == "pypi" and jobs["pypi"]["environment"] == {"name": "pypi"}
    assert not any("cache" in step.get("with", {}) for step in jobs["build"]["steps"])
    [publish] = [step["with"] for step in jobs["pypi"]["steps"] if "pypi-publish" in step["uses"]]
    assert publish == {"packages-dir": "release/dist", "attestations": True}


def test_a_tag_that_is_not_the_version_is_refused_and_never_expanded(tmp_path):
    other = make("dist", f"RELEASE={tmp_path / 'release'}", TAG=f"v9.9.9$(shell touch {tmp_path / 'expanded'})")
    assert other.returncode and "the tag is not v" in other.stderr
    assert not (tmp_path / "expanded").exists()
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]
    if f"## {version}" not in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"):
        without = make("dist", f"RELEASE={tmp_path / 'release'}", TAG=f"v{version}")
        assert without.returncode and f"has no notes under ## {version}" in without.stderr


def test_dependabot_watches_what_is_pinned():
    updates = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text(encoding="utf-8"))["updates"]
    assert {each["package-ecosystem"] for each in updates} == {"pip", "github-actions", "docker"}
