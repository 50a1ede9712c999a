#!/usr/bin/env bash
# A Ray cluster of two nodes on this machine, with a token: a head that holds no worker, and a node with the CPUs, as on a cloud. For
# trying a job as it will be handed in there. With raydd's environment active: cluster/local_two_nodes.sh
# It runs until Ctrl-C (or SIGTERM), which ends these two and nothing else; meanwhile, in another terminal:
#
#   RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 --working-dir . -- python -m raydd.distill --config jobs/quickstart.yaml compute.workers=[1,2] output=$PWD/runs/two_nodes store=$PWD/runs/store tracking.uri=none
#
# CPUS (all), PORT (6379) and DASHBOARD (8265) change what it takes; FOLDER is where Ray keeps logs and sockets (its path has to be short).
set -euo pipefail

cpus=${CPUS:-$(nproc)}
port=${PORT:-6379}
dashboard=${DASHBOARD:-8265}
folder=${FOLDER:-$(mktemp -d /tmp/raydd-XXXXXX)}
mkdir -p "$folder"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

# A token of this machine's, made once; RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH names another.
ray get-auth-token --generate >/dev/null 2>&1
if [ -f ~/.ray/auth_token ]; then chmod 600 ~/.ray/auth_token; fi

nodes=()
finish() {
    trap '' INT TERM
    for node in ${nodes[@]+"${nodes[@]}"}; do kill "$node" 2>/dev/null || true; done
    wait
    if [ -z "${FOLDER:-}" ]; then rm -rf "$folder"; fi
}
trap finish EXIT
trap 'exit 0' INT TERM

# node NAME OPTION...: starts a node in the background and waits until it stands.
node() {
    local log=$folder/$1.log
    ray start --block --node-ip-address=127.0.0.1 --object-store-memory=268435456 "${@:2}" >"$log" 2>&1 &
    nodes+=($!)
    until grep -q "Ray runtime started" "$log"; do
        if ! kill -0 "${nodes[-1]}" 2>/dev/null; then
            echo "the $1 did not start:" >&2
            tail -n 20 "$log" >&2
            exit 1
        fi
        sleep 0.5
    done
}

# The ports of the nodes' agents lie beside each other, from PORT+1000 on.
node head --head --num-cpus=0 --port="$port" --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" --temp-dir="$folder" \
    --ray-client-server-port=$((port + 1000)) --dashboard-agent-listen-port=$((port + 1001)) \
    --dashboard-agent-grpc-port=$((port + 1002)) --runtime-env-agent-port=$((port + 1003))
node worker --address="127.0.0.1:$port" --num-cpus="$cpus" --dashboard-agent-listen-port=$((port + 1011)) \
    --dashboard-agent-grpc-port=$((port + 1012)) --runtime-env-agent-port=$((port + 1013))
echo "two nodes; the dashboard is http://127.0.0.1:$dashboard"
wait -n
