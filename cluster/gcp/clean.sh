#!/usr/bin/env bash
# Takes away what setup.sh made: cluster/gcp/clean.sh PROJECT BUCKET [REGION]. First `ray down -y runs/gcp.yaml`.
# The bucket is left as it is, unless it is asked for: DELETE_BUCKET=yes cluster/gcp/clean.sh PROJECT BUCKET deletes it with all that is
# below raydd/, and refuses where anything else is in it. Run again, it goes on where it stopped. What Ray's launcher made stays: the
# account ray-autoscaler-sa-v1 and an SSH key in the project's metadata; deleting the project takes them away.
set -euo pipefail

project=${1:?usage: $0 PROJECT BUCKET [REGION]}
bucket=${2:?usage: $0 PROJECT BUCKET [REGION]}
region=${3:-us-central1}
account=raydd-worker@$project.iam.gserviceaccount.com
export CLOUDSDK_CORE_PROJECT=$project CLOUDSDK_CORE_DISABLE_PROMPTS=1

there() { gcloud "$@" >/dev/null 2>&1; }

# Before anything is taken away: would the bucket be refused?
if [ "${DELETE_BUCKET:-no}" = yes ] && there storage buckets describe "gs://$bucket"; then
    others=$(gcloud storage ls "gs://$bucket" | grep -vx "gs://$bucket/raydd/" || true)
    if [ -n "$others" ]; then
        echo "bucket $bucket holds other things than raydd/ ($others): nothing is deleted" >&2
        exit 1
    fi
fi
machines=$(gcloud compute instances list --filter='labels.ray-cluster-name=raydd' --format='value(name)')
if [ -n "$machines" ]; then
    echo "machines still exist ($machines): ray down -y runs/gcp.yaml" >&2
    exit 1
fi

if there compute routers describe raydd --region="$region"; then
    gcloud compute routers delete raydd --region="$region"   # its NAT goes with it
fi
for rule in raydd-ssh raydd-members; do
    if there compute firewall-rules describe "$rule"; then gcloud compute firewall-rules delete "$rule"; fi
done
if there compute networks subnets describe raydd --region="$region"; then
    gcloud compute networks subnets delete raydd --region="$region"
fi
if there compute networks describe raydd; then gcloud compute networks delete raydd; fi

for role in objects list; do
    if there storage buckets describe "gs://$bucket"; then
        gcloud storage buckets remove-iam-policy-binding "gs://$bucket" --member="serviceAccount:$account" \
            --role="projects/$project/roles/raydd_$role" --all >/dev/null 2>&1 || true   # it may be gone already
    fi
    # A deleted role's name is taken for 37 days, so roles stay: they give nobody anything by themselves.
done
if there iam service-accounts describe "$account"; then gcloud iam service-accounts delete "$account"; fi

if [ "${DELETE_BUCKET:-no}" != yes ]; then
    echo "gone, but for bucket $bucket (DELETE_BUCKET=yes deletes it) and the roles raydd_objects and raydd_list"
elif there storage buckets describe "gs://$bucket"; then
    gcloud storage rm --recursive "gs://$bucket"
    echo "gone, with bucket $bucket; the roles raydd_objects and raydd_list are left"
fi
