"""Set-up and clean-up on Google Cloud and Kubernetes against commands that remember what they were told to make."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_files import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config
from stand_ins import Answer, command, run_script
from test_kuberay import errors

pytestmark = pytest.mark.slow
PROJECT, BUCKET = "my-project", "raydd-tests"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the scripts, since they write beside it."""
    shutil.copytree(ROOT / "cluster", tmp_path / "checkout" / "cluster")
    return tmp_path / "checkout"


class Gcloud:
    """Remembers what was created: ``describe`` of what is there succeeds, creating it twice fails."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.bindings: list[str] = []
        self.objects: list[str] = []
        self.machines = self.image = ""
        self.changes: list[str] = []

    def __call__(self, words: list[str], piped: str, environment: dict[str, str]) -> Answer:
        """Answer a command."""
        assert environment["CLOUDSDK_CORE_PROJECT"] == PROJECT
        options = [word for word in words if word.startswith("--")]
        words = [word for word in words if not word.startswith("--")]
        if words[:2] == ["services", "enable"]:
            return 0, "", ""
        if words[:2] == ["storage", "ls"]:
            tops = {f"gs://{BUCKET}/{name.partition('/')[0]}/\n" for name in self.objects}
            return 0, "".join(sorted(tops)), ""
        if words[:2] == ["storage", "rm"]:
            self.there.discard(f"storage buckets {words[2]}")
            return 0, "", ""
        if words[-1] == "list":
            return 0, f"{self.machines if 'instances' in words else self.image}\n", ""
        if "iam-policy-binding" in words[2]:
            assert f"storage buckets {words[3]}" in self.there
            self.bindings.append(" ".join(options))
            file = [option for option in options if option.startswith("--condition-from-file=")]
            self.bindings += [Path(one.partition("=")[2]).read_text() for one in file]
            return 0, "", ""
        verbs = ("describe", "create", "delete", "update")
        at = next(place for place, word in enumerate(words) if word in verbs)
        verb, name = words[at], words[at + 1].partition("@")[0]
        thing = " ".join([*words[:at], name])
        if verb == "describe":
            return (0, "name: x\n", "") if thing in self.there else (1, "", f"no {thing}\n")
        assert (thing in self.there) == (verb != "create"), (verb, thing)
        self.changes.append(f"{verb} {thing}")
        if verb == "delete" and thing == "compute routers raydd":
            self.there.discard("compute routers nats raydd")
        (self.there.add if verb == "create" else self.there.discard)(thing)
        if verb == "update":
            self.there.add(thing)
        return 0, "", ""


ROLES = {"iam roles raydd_objects", "iam roles raydd_list"}
MADE = ROLES | {
    f"storage buckets gs://{BUCKET}", "compute networks raydd", "compute networks subnets raydd",
    "compute firewall-rules raydd-members", "compute firewall-rules raydd-ssh", "compute routers raydd",
    "compute routers nats raydd", "iam service-accounts raydd-worker",
}  # fmt: skip


def test_a_google_project_is_set_up_and_cleaned(tmp_path: Path, checkout: Path) -> None:
    gcloud = Gcloud()

    def script(name: str, **variables: str) -> Any:
        return run_script(
            f"gcp/{name}", PROJECT, BUCKET, commands=tmp_path, root=checkout, **variables
        )

    with command(tmp_path, "gcloud", gcloud):
        first = script("setup.sh")
        assert (first.returncode, "no image" in first.stderr) == (1, True), first.stderr
        assert gcloud.there == MADE
        gcloud.image = "common-cu129-ubuntu-2204-v20261101"
        gcloud.changes.clear()
        done = script("setup.sh")
        assert done.returncode == 0, done.stderr
        assert {change.partition(" ")[0] for change in gcloud.changes} == {"update"}
        prefix = f'"projects/_/buckets/{BUCKET}/objects/raydd/"'
        assert sum(prefix in binding for binding in gcloud.bindings) == 2, "once a set-up"
        text = (checkout / "runs/gcp.yaml").read_text()
        assert not re.search(r"\b(PROJECT|BUCKET|REGION|ZONE|IMAGE)\b", text)
        config = prepare_config(yaml.safe_load(text))
        validate_config(config)
        node = config["available_node_types"]["spot"]["node_config"]
        assert (
            node["serviceAccounts"][0]["email"] == f"raydd-worker@{PROJECT}.iam.gserviceaccount.com"
        )
        image = node["disks"][0]["initializeParams"]["sourceImage"]
        assert image == f"projects/deeplearning-platform-release/global/images/{gcloud.image}"

        gcloud.machines = "ray-raydd-head-1"
        assert script("clean.sh").returncode == 1, "machines still exist"
        gcloud.machines, gcloud.objects = "", ["raydd/store/x", "theses/mine.pdf"]
        refused = script("clean.sh", DELETE_BUCKET="yes")
        assert (refused.returncode, "theses/" in refused.stderr) == (1, True), refused.stderr
        assert gcloud.there == MADE
        assert script("clean.sh").returncode == 0
        assert gcloud.there == ROLES | {f"storage buckets gs://{BUCKET}"}
        gcloud.objects.pop()
        for _ in range(2):
            done = script("clean.sh", DELETE_BUCKET="yes")
            assert done.returncode == 0, done.stderr
            assert gcloud.there == ROLES


class Kubectl:
    """Remembers what was applied."""

    def __init__(self) -> None:
        self.applied: dict[str, dict[str, Any]] = {}
        self.made: list[str] = []
        self.values: list[str] = []

    def __call__(self, words: list[str], piped: str, environment: dict[str, str]) -> Answer:
        """Answer a command."""
        if "create" in words:
            files = [
                word.removeprefix("--from-file=").split("=")
                for word in words
                if "from-file" in word
            ]
            assert files, "values pass through files"
            data = {key: Path(place).read_text() for key, place in files}
            secret = {"kind": "Secret", "metadata": {"name": words[5]}, "data": data}
            return 0, yaml.safe_dump(secret), ""
        if "get" in words:
            return int(f"Secret {words[-1]}" not in self.applied), "", ""
        if "delete" in words:
            assert "--ignore-not-found" in words
            self.applied.clear()
            return 0, "", ""
        assert words[:2] == ["apply", "-f"]
        text = piped if words[2] == "-" else Path(words[2]).read_text()
        for resource in yaml.safe_load_all(text):
            self.applied[f"{resource['kind']} {resource['metadata']['name']}"] = resource
        return 0, "", ""


@pytest.mark.parametrize("what", ["cluster", "job"])
def test_kubernetes_is_set_up_and_cleaned(tmp_path: Path, checkout: Path, what: str) -> None:
    kubectl, image = Kubectl(), "eu.registry.example.org/lab/raydd:0.1.0"
    given = {
        "IMAGE": image,
        "BUCKET": BUCKET,
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "sec ret\\",
    }

    def ray(words: list[str], piped: str, environment: dict[str, str]) -> Answer:
        assert words == ["get-auth-token", "--generate"]
        return 0, "t0ken", "\n"

    def script(name: str, *words: str, **variables: str) -> Any:
        return run_script(f"kuberay/{name}", *words, commands=tmp_path, root=checkout, **variables)

    with command(tmp_path, "kubectl", kubectl), command(tmp_path, "ray", ray):
        assert script("setup.sh", "clusters", **given).returncode == 2
        assert script("setup.sh", what, BUCKET=BUCKET).returncode == 1, "no image"
        assert kubectl.applied == {}
        passwords = []
        for _ in range(2):
            done = script("setup.sh", what, **given)
            assert done.returncode == 0, done.stderr
            passwords.append(kubectl.applied.get("Secret raydd-redis", {}).get("data"))
        applied = kubectl.applied
        assert applied["Secret raydd-token"]["data"] == {"auth_token": "t0ken"}
        assert applied["Secret raydd-store"]["data"] == {
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "sec ret\\",
        }
        assert passwords[0] == passwords[1], "drawn once"
        assert (passwords[0] is None) == (what == "job")
        resource = applied["RayCluster raydd" if what == "cluster" else "RayJob imagenet-edc"]
        assert errors(resource) == []
        text = yaml.safe_dump(resource)
        assert image in text
        assert "registry.example.com" not in text
        assert ("BUCKET" in text, BUCKET in text) == (False, what == "job")
        for _ in range(2):
            assert script("clean.sh").returncode == 0
        assert kubectl.applied == {}
