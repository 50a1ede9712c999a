"""Set-up and clean-up on AWS against moto: what they make, that they go on where they stopped, and that Ray's launcher
starts its machines there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from cluster_files import ROOT
from stand_ins import Aws, as_text, command, run_script, shorthand

pytestmark = pytest.mark.slow
BUCKET, REGION = "raydd-tests", "us-west-2"
OWN = [{"Name": "tag:project", "Values": ["raydd"]}]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what set-up and launcher read, since they write beside it."""
    folder = tmp_path_factory.mktemp("aws")
    shutil.copytree(ROOT / "cluster", folder / "cluster")
    return folder


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Aws]]:
    """An empty account, and a folder with an ``aws`` command that reaches it."""
    from moto import mock_aws

    folder, aws = tmp_path_factory.mktemp("bin"), Aws()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(folder))  # Ray writes a key to ~/.ssh
        with (
            mock_aws(config={"iam": {"load_aws_managed_policies": True}}),
            command(folder, "aws", aws),
        ):
            yield folder, aws


def ec2() -> Any:
    return boto3.client("ec2", region_name=REGION)


def made() -> dict[str, int]:
    """Return how much there is of each thing that set-up makes."""
    client, roles = ec2(), boto3.client("iam").list_roles()["Roles"]
    kinds = {
        "Vpcs": client.describe_vpcs,
        "Subnets": client.describe_subnets,
        "InternetGateways": client.describe_internet_gateways,
        "RouteTables": client.describe_route_tables,
        "SecurityGroups": client.describe_security_groups,
        "Addresses": client.describe_addresses,
        "VpcEndpoints": client.describe_vpc_endpoints,
    }
    found = {
        kind: len([one for one in describe(Filters=OWN)[kind] if one.get("State") != "deleted"])
        for kind, describe in kinds.items()
    }
    alive = {"Name": "state", "Values": ["available", "pending"]}
    found["NatGateways"] = len(client.describe_nat_gateways(Filters=[*OWN, alive])["NatGateways"])
    found["Roles"] = len([role for role in roles if role["RoleName"].startswith("raydd")])
    found["Profiles"] = len(boto3.client("iam").list_instance_profiles()["InstanceProfiles"])
    found["Buckets"] = len(boto3.client("s3").list_buckets()["Buckets"])
    return found


NOTHING = dict.fromkeys(
    ("Vpcs", "Subnets", "InternetGateways", "RouteTables", "SecurityGroups", "Addresses", "VpcEndpoints",
     "NatGateways", "Roles", "Profiles", "Buckets"), 0
)  # fmt: skip
ALL = (
    NOTHING
    | dict.fromkeys(NOTHING, 1)
    | dict.fromkeys(("Subnets", "RouteTables", "Roles", "Profiles"), 2)
)


def test_the_short_form_of_structures_is_read() -> None:
    assert shorthand("Name=tag:project,Values=a,b") == {"Name": "tag:project", "Values": ["a", "b"]}
    assert shorthand("A=vpc,Tags=[{Key=k,Value=v},{Key=l,Value=w}],B=x y (z) *") == {
        "A": "vpc",
        "Tags": [{"Key": "k", "Value": "v"}, {"Key": "l", "Value": "w"}],
        "B": "x y (z) *",
    }
    assert as_text([["a", None], ["b"]]) == "a\tNone\nb"


def test_an_account_is_set_up_used_and_cleaned(cloud: tuple[Path, Aws], checkout: Path) -> None:
    folder, _ = cloud

    def script(name: str, *arguments: str, **variables: str) -> Any:
        return run_script(f"aws/{name}", *arguments, commands=folder, root=checkout, **variables)

    # Set-up stops where something is missing, goes on from there, and makes nothing twice.
    assert script("setup.sh", BUCKET).returncode != 0, "no region"
    assert made() == NOTHING
    first = script("setup.sh", BUCKET, REGION)
    assert (first.returncode, "name one, IMAGE=ami-" in first.stderr) == (1, True), first.stderr
    assert not (checkout / "runs/aws.yaml").exists()
    image = ec2().describe_images()["Images"][0]["ImageId"]
    for _ in range(2):
        again = script("setup.sh", BUCKET, REGION, IMAGE=image)
        assert again.returncode == 0, again.stdout + again.stderr
        assert "made" not in again.stdout
        assert made() == ALL
    _check_what_was_made()

    # Ray's launcher takes it as it is.
    config = yaml.safe_load((checkout / "runs/aws.yaml").read_text())
    started = _launch(config)
    assert script("clean.sh", BUCKET, REGION).returncode == 1, "machines still run"
    assert made() == ALL
    ec2().terminate_instances(InstanceIds=started)

    # Clean-up leaves what is not raydd's.
    store = boto3.client("s3")
    store.put_object(Bucket=BUCKET, Key="theses/mine.pdf", Body=b"1")
    store.put_object(Bucket=BUCKET, Key="raydd/store/units/x", Body=b"1")
    refused = script("clean.sh", BUCKET, REGION, DELETE_BUCKET="yes")
    assert (refused.returncode, "theses/" in refused.stderr) == (1, True), refused.stderr
    assert made() == ALL
    kept = script("clean.sh", BUCKET, REGION)
    assert kept.returncode == 0, kept.stdout + kept.stderr
    assert made() == NOTHING | {"Buckets": 1}
    assert len(store.list_objects_v2(Bucket=BUCKET)["Contents"]) == 2
    store.delete_object(Bucket=BUCKET, Key="theses/mine.pdf")
    for _ in range(2):
        done = script("clean.sh", BUCKET, REGION, DELETE_BUCKET="yes")
        assert done.returncode == 0, done.stdout + done.stderr
        assert made() == NOTHING
    assert not ec2().describe_key_pairs()["KeyPairs"]


def _check_what_was_made() -> None:
    """What nobody outside reaches, and what roles may."""
    block = boto3.client("s3").get_public_access_block(Bucket=BUCKET)
    assert set(block["PublicAccessBlockConfiguration"].values()) == {True}
    (group,) = ec2().describe_security_groups(Filters=OWN)["SecurityGroups"]
    (rule,) = group["IpPermissions"]
    assert rule["IpRanges"] == rule["Ipv6Ranges"] == []
    assert [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == [group["GroupId"]]
    for subnet in ec2().describe_subnets(Filters=OWN)["Subnets"]:
        assert not subnet["MapPublicIpOnLaunch"]
    tables = ec2().describe_route_tables(Filters=OWN)["RouteTables"]
    leave = {
        next(tag["Value"] for tag in table["Tags"] if tag["Key"] == "Name"): table
        for table in tables
    }
    outside = {
        name: next(r for r in table["Routes"] if r.get("DestinationCidrBlock") == "0.0.0.0/0")
        for name, table in leave.items()
    }
    assert "NatGatewayId" in outside["raydd-private"]
    assert "GatewayId" in outside["raydd-public"]
    iam = boto3.client("iam")
    for role, policies in (("raydd-head", {"store", "head"}), ("raydd-worker", {"store"})):
        assert set(iam.list_role_policies(RoleName=role)["PolicyNames"]) == policies
        said = json.dumps(
            [
                iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
                for name in policies
            ]
        )
        assert f"arn:aws:s3:::{BUCKET}/raydd/*" in said
        assert not any(word in said for word in ("BUCKET", "ACCOUNT", "REGION"))


def _launch(config: dict[str, Any]) -> list[str]:
    """Start one machine of each type as ``ray up`` and its autoscaler do; return their ids."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(config)
    validate_config(prepared)
    profiles = len(boto3.client("iam").list_instance_profiles()["InstanceProfiles"])
    whole = bootstrap_aws(prepared)
    groups = ec2().describe_security_groups(Filters=OWN)["SecurityGroups"]
    assert len(boto3.client("iam").list_instance_profiles()["InstanceProfiles"]) == profiles
    provider = AWSNodeProvider(whole["provider"], whole["cluster_name"])
    started = []
    for name, node in whole["available_node_types"].items():
        assert node["node_config"]["SecurityGroupIds"] == [groups[0]["GroupId"]], (
            "set-up's, as it is"
        )
        tags = {"ray-node-kind": "head" if name == "head" else "worker", "ray-user-node-type": name}
        (machine,) = provider.create_node(node["node_config"], tags, 1).values()
        (seen,) = ec2().describe_instances(InstanceIds=[machine.id])["Reservations"][0]["Instances"]
        given = {tag["Key"]: tag["Value"] for tag in seen["Tags"]}
        assert (given["project"], given["ray-cluster-name"]) == ("raydd", "raydd")
        assert "PublicIpAddress" not in seen
        assert seen["InstanceType"] == node["node_config"]["InstanceType"]
        assert (seen.get("InstanceLifecycle") == "spot") == (name == "spot")
        started.append(machine.id)
    return started
