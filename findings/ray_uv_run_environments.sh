#!/usr/bin/env bash
# Under `uv run` Ray gives its workers an environment of their own, and RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 forbids it only if it is set before Ray is imported.
#
# Versions: ray 2.60.0, uv 0.13.9; Python 3.11.
# Seen: a driver started by `uv run python` in a project whose environment is complete. By default Ray copies the working directory into its
#   session and starts workers there by `uv run`, so that a task's sys.prefix is <session>/runtime_resources/…/.venv, made for this run.
#   With RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 in the environment before `import ray` workers use the driver's environment. The same
#   assignment to os.environ after `import ray` and before ray.init() changes nothing: the value is read once, at import.
# Who meets it: libraries that set Ray's variables when they start Ray, in programs, notebooks and test runs that have imported Ray before
#   them. Nothing fails; each new group of workers first installs all that the project depends on, a minute with torch among it.
# Prints last: default other before own after other
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q uv==0.13.9
mkdir "$folder/project"
cd "$folder/project"
cat >pyproject.toml <<'P'
[project]
name = "project"
version = "0"
requires-python = ">=3.11"
dependencies = ["ray==2.60.0"]
P
cat >driver.py <<'P'
import os
import sys

name, when = "RAY_ENABLE_UV_RUN_RUNTIME_ENV", sys.argv[1]
if when == "before":
    os.environ[name] = "0"
import ray

if when == "after":
    os.environ[name] = "0"
ray.init(address="local", num_cpus=1, log_to_driver=False, include_dashboard=False)


@ray.remote
def prefix():
    import sys

    return sys.prefix


found = ray.get(prefix.remote())
print("own" if found == sys.prefix else "other")
P
unset RAY_ENABLE_UV_RUN_RUNTIME_ENV VIRTUAL_ENV RAY_ADDRESS
"$folder/env/bin/uv" sync -q
result=""
for when in default before after; do
    result="$result $when $("$folder/env/bin/uv" run -q python driver.py "$when" 2>/dev/null | tail -n 1)"
done
echo "${result# }"
test "${result# }" = "default other before own after other"
