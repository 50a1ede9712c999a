#!/usr/bin/env bash
# Takes the namespace raydd with all that is in it away: jobs, clusters, secrets. Buckets are untouched, and so is what else runs on the
# Kubernetes cluster; its autoscaler ends the nodes that are left empty. Run again, it does nothing.
set -euo pipefail

# While the operator is there it ends clusters in good order, and takes what they keep in Redis away.
kubectl -n raydd delete rayjobs,rayclusters --all --wait --ignore-not-found
kubectl delete namespace raydd --wait --ignore-not-found
