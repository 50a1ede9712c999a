"""Ray's launcher files: its own schema, and what that lets pass."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_files import CLUSTER, ROOT, filled, text_of
from ray.autoscaler._private.util import prepare_config, validate_config

LAUNCHERS = sorted(path for path in CLUSTER.glob("*.yaml"))
# Read by Ray's providers (ray/autoscaler/_private/{aws,gcp}); its schema takes any key here.
KEYS = ("type", "region", "availability_zone", "use_internal_ips", "cache_stopped_nodes")
PROVIDER_KEYS = {
    "aws": {*KEYS, "key_pair", "security_group"},
    "gcp": {*KEYS, "project_id"},
}
PLACES = {
    "aws": {"region", "availability_zone"},
    "gcp": {"region", "availability_zone", "project_id"},
}
every_launcher = pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.name)


def config_of(path: Path) -> dict[str, Any]:
    return yaml.safe_load(filled(text_of(path)))


def mistakes(config: dict[str, Any]) -> list[str]:
    """Return what is wrong with a launcher's configuration, beside what its schema says."""
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    whole, provider = json.dumps(prepared), config["provider"]
    kind, types = provider["type"], config["available_node_types"]
    workers = [node for name, node in types.items() if name != config["head_node_type"]]
    start = [prepared[f"{who}_start_ray_commands"] for who in ("head", "worker")]
    mounts = [Path(local).expanduser() for local in config["file_mounts"].values()]
    checks = {
        "a nightly wheel": "dev0" in whole,
        "listens to all the world": "0.0.0.0" in whole,  # noqa: S104
        "a cluster name that clouds refuse": not re.fullmatch(
            r"[a-z][a-z0-9-]{0,30}[a-z0-9]", config["cluster_name"]
        ),
        "an unknown provider key": bool(provider.keys() - PROVIDER_KEYS[kind]),
        "no place": not all(provider.get(key) for key in PLACES[kind]),
        "public addresses": not provider.get("use_internal_ips"),
        "stopped machines are kept": provider.get("cache_stopped_nodes") is not False,
        "a mount from nowhere": not all(
            (ROOT / place).exists() for place in mounts if place.name != "auth_token"
        ),
        "no token": not any(place.name == "auth_token" for place in mounts)
        or not all("RAY_AUTH_MODE=token" in " ".join(commands) for commands in start),
        "a head with workers": types[config["head_node_type"]]["resources"] != {"CPU": 0}
        or "--num-cpus=0" not in " ".join(start[0]),
        "machines that stay": not 0 < config["idle_timeout_minutes"] <= 15
        or any(node.get("min_workers") for node in types.values()),
        "no GPU": not workers or any(node["resources"].get("GPU", 0) < 1 for node in workers),
        "no order of priority": len({node.get("priority", 0) for node in workers}) < 2,
        "a limit below the workers'": any(
            node["max_workers"] > config["max_workers"] for node in workers
        ),
    }
    return [what for what, wrong in checks.items() if wrong]


@every_launcher
def test_launcher_files_hold(path: Path) -> None:
    assert mistakes(config_of(path)) == []
    raw = yaml.safe_load(text_of(path))  # as it lies in the repository, it is valid, too
    validate_config(prepare_config(raw))


@every_launcher
@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("a nightly wheel", lambda c: c.pop("setup_commands")),
        ("listens to all the world", lambda c: c.pop("head_start_ray_commands")),
        ("a cluster name that clouds refuse", lambda c: c.update(cluster_name="Ray_DD")),
        ("an unknown provider key", lambda c: c["provider"].update(regoin="x")),
        ("no place", lambda c: c["provider"].pop("region")),
        ("public addresses", lambda c: c["provider"].pop("use_internal_ips")),
        ("stopped machines are kept", lambda c: c["provider"].pop("cache_stopped_nodes")),
        ("a mount from nowhere", lambda c: c["file_mounts"].update({"~/x": "raydd/nowhere"})),
        ("no token", lambda c: c["file_mounts"].pop("~/.ray/auth_token")),
        ("no token", lambda c: c.update(worker_start_ray_commands=["ray start"])),
        ("a head with workers", lambda c: c["available_node_types"]["head"].update(resources={})),
        ("machines that stay", lambda c: c["available_node_types"]["spot"].update(min_workers=1)),
        ("no GPU", lambda c: c["available_node_types"]["spot"].update(resources={"CPU": 8})),
        ("no order of priority", lambda c: c["available_node_types"]["spot"].pop("priority")),
        ("a limit below the workers'", lambda c: c.update(max_workers=1)),
    ],
)
def test_what_the_schema_lets_pass_is_seen(path: Path, what: str, change: Any) -> None:
    config = config_of(path)
    change(config)
    assert what in mistakes(config)


@every_launcher
@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(idle_timeout="5"),
        lambda c: c["available_node_types"]["spot"].update(resources={"GPU": 0.5}),
        lambda c: c["available_node_types"]["spot"].update(spot=True),
        lambda c: c.update(head_node_type="heads"),
    ],
)
def test_the_schema_is_asked(path: Path, change: Any) -> None:
    config = config_of(path)
    change(config)
    with pytest.raises(Exception, match=r"not of type|Additional|head_node_type"):
        mistakes(config)


@every_launcher
def test_spot_is_asked_for_before_what_it_falls_back_to(path: Path) -> None:
    types = config_of(path)["available_node_types"]
    spot, fallback = types["spot"], types["on_demand"]
    assert spot["priority"] > fallback["priority"]
    assert spot["resources"] == fallback["resources"]
    said = {name: json.dumps(node["node_config"]).lower() for name, node in types.items()}
    assert [name for name, words in said.items() if '"spot"' in words] == ["spot"]


def test_aws_machines_are_what_ec2_takes() -> None:
    """EC2's own model of ``RunInstances``, which comes with botocore."""
    from botocore.session import get_session
    from botocore.validate import ParamValidator

    shape = get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for node in config_of(CLUSTER / "aws.yaml")["available_node_types"].values():
        machine = dict(node["node_config"])
        machine["SubnetId"] = machine.pop("SubnetIds")[0]  # as Ray does
        sent = machine | {"MinCount": 1, "MaxCount": 1}
        assert not ParamValidator().validate(sent, shape).has_errors()
        assert ParamValidator().validate(sent | {"ImageID": "x"}, shape).has_errors()
        assert machine["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in machine["BlockDeviceMappings"])


def test_google_machines_have_no_public_address() -> None:
    for node in config_of(CLUSTER / "gcp.yaml")["available_node_types"].values():
        (interface,) = node["node_config"]["networkInterfaces"]
        assert interface.keys() == {"subnetwork"}, "accessConfigs would be a public address"


def test_all_machines_are_set_up_by_one_script() -> None:
    for path in LAUNCHERS:
        config = config_of(path)
        assert config["file_mounts"]["~/raydd/install.sh"] == "cluster/install.sh"
        assert any("install.sh ~/raydd ~/raydd-env" in step for step in config["setup_commands"])
    assert "install.sh /src /opt/raydd" in text_of(CLUSTER / "Containerfile")
