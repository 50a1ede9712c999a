"""What holds for all files of ``cluster/``: no secret, nothing unpinned, scripts that stop at what goes wrong."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from cluster_files import CLUSTER, FILES, ROOT, SCRIPTS, documents, submissions, text_of

import raydd
from raydd.config import load_job

SECRETS = {
    "an AWS key": r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    "a private key": r"-----BEGIN",
    "a Google key": r"\bAIza[\w-]{30,}|\"private_key",
    "a token": r"\b[0-9a-f]{32,}\b",
    "a password": r"(?i)(secret_access_key|auth_token|password|\btoken)[ \t]*[:=][ \t]*[\"']?[A-Za-z0-9/+]{8,}",
}
every_file = pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(CLUSTER).as_posix())
every_script = pytest.mark.parametrize(
    "path", SCRIPTS, ids=lambda p: p.relative_to(CLUSTER).as_posix()
)
WITH_SUBMISSIONS = [
    *(CLUSTER / name for name in ("aws.yaml", "gcp.yaml", "local_two_nodes.sh")),
    *(CLUSTER / "kuberay" / name for name in ("raycluster.yaml", "rayjob.yaml")),
]


def secrets_in(text: str) -> list[str]:
    """Return the kinds of secrets that a text holds."""
    return [what for what, pattern in SECRETS.items() if re.search(pattern, text)]


def unpinned(text: str) -> list[str]:
    """Return the images of a text, and the packages that it installs, that have no version of their own."""
    images = re.findall(r"^\s*(?:- )?image: +(?:&\w+ )?([^*\s#]\S*)", text, re.M)
    images += re.findall(r"^FROM +(\S+)", text, re.M)
    loose = [image for image in images if not re.search(r":v?\d+[\w.-]*(@sha256:\w+)?$", image)]
    for line in re.findall(r"\bpip\"? install (.+)", text):
        words = [word.strip("\"'\\") for word in re.split(r"[\s&]+", line)]
        loose += [word for word in words if re.fullmatch(r"[a-z][\w-]+(\[.*\])?", word)]
    return loose + re.findall(r"\S*:latest\b", text)


@every_file
def test_no_file_holds_a_secret_or_something_unpinned(path: Path) -> None:
    assert secrets_in(text_of(path)) == []
    assert unpinned(text_of(path)) == []


@pytest.mark.parametrize(
    "text",
    [
        "aws_access_key_id: AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "RAY_AUTH_TOKEN=" + "0123456789abcdef" * 2,
        "password: hunter2hunter2",
    ],
)
def test_a_secret_is_seen(text: str) -> None:
    assert secrets_in(text)


@pytest.mark.parametrize(
    "text",
    [
        "  image: redis",
        "- image: redis:bookworm",
        "image: &image a/raydd:latest",
        "FROM python",
        "FROM python:slim",
        "RUN pip install --no-cache-dir uv && x",
    ],
)
def test_what_is_not_pinned_is_seen(text: str) -> None:
    assert unpinned(text)


def test_versions_are_the_projects_and_each_others() -> None:
    whole = {path: text_of(path) for path in FILES}
    images = {tag for text in whole.values() for tag in re.findall(r"\braydd:(\d[\w.]*)", text)}
    assert images == {raydd.__version__}
    uv = {tag for text in whole.values() for tag in re.findall(r"\buv==([\d.]+)", text)}
    assert len(uv) == 1
    python = {tag for text in whole.values() for tag in re.findall(r"--python (\d\S*)", text)}
    (base,) = re.findall(r"^FROM python:(\d+\.\d+)", whole[CLUSTER / "Containerfile"], re.M)
    assert python == {base}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"Programming Language :: Python :: {base}" in project["classifiers"]
    stated = [r for text in whole.values() for r in re.findall(r"\bray(?:\[\S*\])?==\S+", text)]
    assert stated == [], "pyproject.toml says which Ray"


def test_the_image_runs_as_a_user() -> None:
    lines = text_of(CLUSTER / "Containerfile").splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000"]
    for line in lines:
        if line.startswith("COPY"):
            assert all((ROOT / source).exists() for source in line.split()[1:-1]), line


# -- scripts -----------------------------------------------------------------------------------------------------------


def unquoted(script: str) -> list[str]:
    """Return the variables of a script that stand outside quotes where the shell splits them: a rough stand-in for
    the first of ShellCheck's rules.
    """
    wrong, inside, word, before, at = (
        [],
        [""],
        "",
        "",
        0,
    )  # inside: quotes and brackets that are open
    while at < len(script):
        rest, here = script[at:], inside[-1]
        step = 1
        if rest[0] == "\\" and here != "'":
            step = 2
        elif (here in ("'", '"', "}") and rest[0] == here) or (here == ")" and rest[0] == ")"):
            inside.pop()
        elif here == "'":
            pass
        elif rest[0] in "'\"" and (here != '"' or rest[0] == '"'):
            inside.append(rest[0])
        elif rest.startswith("$(("):
            step = rest.index("))") + 2
        elif rest.startswith("$("):
            inside.append(")")
            word, step = "", 2
        elif here in ("", ")") and (found := re.match(r"\$(\w+|@|\*)|\$\{(\w+)\}", rest)):
            if not re.match(r"\w+\+?=", word) and before != "case":
                wrong.append(found[0])
            step = len(found[0])
        elif rest.startswith("${"):
            inside.append("}")
            step = 2
        elif here in ("", ")") and rest[0] == "#" and not word:
            step = (rest + "\n").index("\n")
        if here in ("", ")"):
            bare = script[at : at + step]
            if bare.isspace() or bare in (";", "|", "&", "("):
                before, word = word or before, ""
            elif bare != "$(":
                word += bare
        at += step
    return wrong


@every_script
def test_scripts_stop_at_what_goes_wrong(path: Path) -> None:
    text = text_of(path)
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "\nset -euo pipefail\n" in text
    assert path.stat().st_mode & 0o111, "executable"
    assert not re.search(r"\beval\b|\bcurl\b.*\|\s*(ba)?sh", text)
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    assert unquoted(text) == []


@every_script
def test_shellcheck_finds_nothing(path: Path) -> None:
    """Debian's package ``shellcheck``, which the whole check installs; without it the test above is what there is."""
    if shutil.which("shellcheck") is None:
        assert unquoted(text_of(path)) == []
        return
    done = subprocess.run(["shellcheck", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_split_variable_is_seen() -> None:
    assert unquoted("rm -r $folder") == ["$folder"]
    assert unquoted('rm -r "$folder"/$name') == ["$name"]
    assert unquoted('x=$(rm "$a" $b) # $c') == ["$b"]
    assert unquoted('x=$y; case $x in a) rm "$x" ;; esac') == []


@pytest.mark.parametrize("provider", ["aws", "gcp", "kuberay"])
def test_set_up_says_what_it_makes_and_costs_and_clean_up_is_beside_it(provider: str) -> None:
    said = text_of(CLUSTER / provider / "setup.sh").split("set -euo pipefail")[0].lower()
    assert "it makes" in said
    assert "cost" in said
    assert "run again" in said
    assert (
        "run again"
        in text_of(CLUSTER / provider / "clean.sh").split("set -euo pipefail")[0].lower()
    )


# -- permissions -------------------------------------------------------------------------------------------------------


def test_workers_on_aws_reach_one_prefix_of_one_bucket() -> None:
    policy = json.loads(text_of(CLUSTER / "aws" / "policy-store.json"))
    listing, objects = policy["Statement"]
    assert listing["Action"] == "s3:ListBucket"
    assert listing["Resource"] == "arn:aws:s3:::BUCKET"
    assert listing["Condition"] == {"StringLike": {"s3:prefix": ["raydd", "raydd/", "raydd/*"]}}
    assert objects["Resource"] == "arn:aws:s3:::BUCKET/raydd/*"
    assert all(action.split(":")[0] == "s3" and "*" not in action for action in objects["Action"])


def test_the_head_on_aws_starts_and_ends_its_own_workers_only() -> None:
    policy = json.loads(text_of(CLUSTER / "aws" / "policy-head.json"))
    config = documents(CLUSTER / "aws.yaml")[0]
    for statement in policy["Statement"]:
        actions = statement["Action"]
        actions = [actions] if isinstance(actions, str) else actions
        assert all(re.fullmatch(r"(ec2|iam):[A-Za-z]+", action) for action in actions)
        reads = all(":Describe" in action for action in actions)
        assert reads or statement["Resource"] != "*"
        assert reads or "Condition" in statement or statement["Sid"] == "WithTheseParts"
    (started,) = [s for s in policy["Statement"] if s["Sid"] == "StartMachinesOfThisClusterOnly"]
    allowed = started["Condition"]["StringEquals"]
    workers = [
        config["available_node_types"][name]["node_config"] for name in ("spot", "on_demand")
    ]
    assert {worker["InstanceType"] for worker in workers} == {allowed["ec2:InstanceType"]}
    assert allowed["aws:RequestTag/ray-cluster-name"] == config["cluster_name"]
    profile = started["Condition"]["ArnEquals"]["ec2:InstanceProfile"].rpartition("/")[2]
    assert {worker["IamInstanceProfile"]["Name"] for worker in workers} == {profile}


def test_workers_on_google_cloud_reach_one_prefix_of_one_bucket() -> None:
    (objects,) = documents(CLUSTER / "gcp" / "role-objects.yaml")
    (listing,) = documents(CLUSTER / "gcp" / "role-list.yaml")
    (condition,) = documents(CLUSTER / "gcp" / "condition-objects.yaml")
    assert set(objects["includedPermissions"]) == {
        f"storage.objects.{verb}" for verb in ("create", "delete", "get")
    }
    assert listing["includedPermissions"] == ["storage.objects.list"]
    assert condition["expression"] == (
        'resource.name.startsWith("projects/_/buckets/raydd-bucket/objects/raydd/")'
    )


# -- what is submitted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", WITH_SUBMISSIONS, ids=lambda p: p.name)
def test_each_file_tells_a_submission_that_raydd_reads(path: Path) -> None:
    (told,) = submissions(path)
    assert told.entrypoint[:3] == ["python", "-m", "raydd.distill"]
    assert told.options[:5] == [*["RAY_AUTH_MODE=token", "ray", "job", "submit", "--address"]]
    job = load_job(str(ROOT / told.config), told.overrides)
    assert isinstance(job.compute.workers, tuple), "a cluster that comes and goes"
    places = [job.output, job.store]
    assert path.name == "local_two_nodes.sh" or all(
        re.match(r"(s3|gs)://BUCKET/raydd/", place) for place in places
    )


def test_no_other_file_of_the_folder_tells_one() -> None:
    assert [path for path in FILES if "ray job submit" in text_of(path)] == sorted(WITH_SUBMISSIONS)
