#!/usr/bin/env bash
# Puts raydd, with the versions of pyproject.toml, into a virtual environment: install.sh SOURCE ENVIRONMENT [EXTRA...]
# Machines and images of this folder are all set up by it, so that they have the same Python, Ray and libraries. Run again, it
# brings the environment up to date.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: $0 SOURCE ENVIRONMENT [EXTRA...]" >&2
    exit 2
fi
source=$1
environment=$2
shift 2
options=()
for extra in "$@"; do options+=(--extra "$extra"); done

if ! command -v uv >/dev/null; then
    python3 -m venv "$HOME/.raydd-uv"
    "$HOME/.raydd-uv/bin/pip" install --quiet "uv==0.13.9"
    PATH=$HOME/.raydd-uv/bin:$PATH
fi
UV_PROJECT_ENVIRONMENT=$environment uv sync --project "$source" --python 3.11 --no-dev --no-editable \
    ${options[@]+"${options[@]}"}
"$environment/bin/raydd" --help >/dev/null
"$environment/bin/ray" --version
