#!/usr/bin/env bash
# Puts raydd on a Kubernetes cluster: IMAGE=REGISTRY/raydd:0.1.0 [BUCKET=name] cluster/kuberay/setup.sh cluster|job
# Needs kubectl with the right to make namespaces, a KubeRay operator (1.6 or later), nodes with GPUs whose autoscaler adds spot and other
# machines, an image made from cluster/Containerfile, and raydd's environment active (for a token). Run again, it changes what differs.
#
# It makes, in the namespace raydd: a service account, a network policy, and secrets that are asked of this shell:
#   raydd-token    the token of ~/.ray/auth_token, which is made if it is not there
#   raydd-store    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, where they are set
#   raydd-redis    a password for Redis, drawn once (cluster only)
# and then the RayCluster with Redis, or the RayJob. What costs are the nodes on which pods are: a cluster's head runs, and costs, until
# clean.sh; a job's cluster goes a minute after the job.
set -euo pipefail

what=${1:?usage: $0 cluster|job}
image=${IMAGE:?IMAGE=REGISTRY/raydd:0.1.0: where nodes pull the image from}
here=$(cd "$(dirname "$0")" && pwd)
case $what in
    cluster) bucket= ;;
    job) bucket=${BUCKET:?BUCKET=name: where the job reads and writes} ;;
    *) echo "usage: $0 cluster|job" >&2; exit 2 ;;
esac

# secret NAME KEY=FILE...: makes or changes a secret; values pass through files, so that no list of processes shows them.
secret() { kubectl -n raydd create secret generic "$1" "${@:2}" --dry-run=client -o yaml | kubectl apply -f -; }
filled() { sed -e "s|registry.example.com/raydd:0.1.0|$image|" -e "s/BUCKET/$bucket/g" "$here/$1"; }

kubectl apply -f "$here/namespace.yaml"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
umask 077

ray get-auth-token --generate >"$scratch/token" 2>/dev/null
secret raydd-token --from-file=auth_token="$scratch/token"

parts=()
for name in AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_ENDPOINT_URL AWS_DEFAULT_REGION; do
    if [ -n "${!name:-}" ]; then
        printf %s "${!name}" >"$scratch/$name"
        parts+=(--from-file="$name=$scratch/$name")
    fi
done
if [ ${#parts[@]} -gt 0 ]; then secret raydd-store "${parts[@]}"; fi

if [ "$what" = job ]; then
    filled rayjob.yaml | kubectl apply -f -
    exit
fi
if ! kubectl -n raydd get secret raydd-redis >/dev/null 2>&1; then
    python3 -c 'import secrets; print(secrets.token_hex(32), end="")' >"$scratch/password"
    secret raydd-redis --from-file=password="$scratch/password"
fi
kubectl apply -f "$here/redis.yaml"
filled raycluster.yaml | kubectl apply -f -
