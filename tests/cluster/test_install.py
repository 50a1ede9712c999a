"""The container recipe's steps, as a script in a clean environment (no image is built)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cluster_files import CLUSTER, ROOT, text_of

import raydd


def steps(recipe: str) -> list[tuple[str, str]]:
    """Return a recipe's instructions, each on one line: ``(FROM, …)``, ``(RUN, …)``."""
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", recipe, flags=re.M)).splitlines()
    return [(word, rest) for line in lines if line for word, _, rest in [line.partition(" ")]]


def test_the_recipe_is_read_as_a_builder_does() -> None:
    words = [word for word, _ in steps(text_of(CLUSTER / "Containerfile"))]
    assert words == ["FROM", "RUN", "ENV", *["COPY"] * 3, "RUN", "USER", "WORKDIR", "COPY"]


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(3000)
def test_the_recipes_steps_install_raydd(tmp_path: Path) -> None:
    """Some minutes and 10 GB: everything is fetched (or taken from uv's cache) into an environment of its own."""
    subprocess.run(["python3", "-m", "venv", tmp_path / "python"], check=True)
    places = {
        "/src": str(tmp_path / "src"),
        "/opt/raydd": str(tmp_path / "opt/raydd"),
        "UV_NO_CACHE=1 ": "",
    }
    environment = {"HOME": str(tmp_path), "UV_CACHE_DIR": str(Path("~/.cache/uv").expanduser())}
    kept = ("PIP_", "UV_", "SSL_", "REQUESTS_", "HTTP", "http", "NO_PROXY", "no_proxy")
    environment |= {name: value for name, value in os.environ.items() if name.startswith(kept)}
    path = f"{tmp_path}/python/bin:/usr/bin:/bin"
    folder = tmp_path

    def placed(text: str) -> str:
        for here, there in places.items():
            text = text.replace(here, there)
        return text

    for word, rest in steps(text_of(CLUSTER / "Containerfile")):
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                goal = Path(placed(target)) if target.startswith("/") else folder / target
                goal = goal / source if target.endswith("/") else goal
                goal.parent.mkdir(parents=True, exist_ok=True)
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, goal)
        elif word == "WORKDIR":
            folder = tmp_path / rest.strip("/")
            folder.mkdir(parents=True)
        elif word == "ENV":
            path = f"{tmp_path}/opt/raydd/bin:{path}"
        elif word == "RUN" and "apt-get" not in rest:
            subprocess.run(placed(rest), shell=True, env=environment | {"PATH": path}, check=True)  # noqa: S602

    def told(*words: str) -> str:
        done = subprocess.run(
            words,
            cwd=folder,
            env=environment | {"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert told("which", "ray").strip() == str(tmp_path / "opt/raydd/bin/ray")
    assert "version 2.60" in told("ray", "--version")
    assert told(
        "python", "-c", "import raydd; print(raydd.__version__, raydd.__file__)"
    ).split() == [
        raydd.__version__,
        str(tmp_path / "opt/raydd/lib/python3.11/site-packages/raydd/__init__.py"),
    ]
    assert "compute:" in told("raydd", "distill", "--config", "jobs/quickstart.yaml", "--dry-run")
