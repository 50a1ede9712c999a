#!/usr/bin/env bash
# What a raydd cluster on Google Cloud needs before `ray up`: cluster/gcp/setup.sh PROJECT BUCKET [REGION [ZONE]]
# (us-central1, its zone a). Needs the gcloud command with an owner's credentials (gcloud auth login, and gcloud auth application-default
# login for Ray), and a project with billing. Take a project of its own: Ray's launcher gives the head an account with rights on all of
# a project's machines and objects. Run again, it makes only what is missing.
#
# It makes, all named raydd:
#   bucket BUCKET, private               costs by GB and month; clean.sh leaves it unless nothing but raydd/ is in it
#   network, subnet, firewall: members reach each other, SSH comes through Identity-Aware Proxy only       free
#   router with NAT                      COSTS BY THE HOUR AND BY THE GB as long as it exists: run clean.sh when done
#   account raydd-worker and two roles: objects of BUCKET/raydd/, the names of BUCKET's objects             free
# and writes runs/gcp.yaml. Machines cost from `ray up` to `ray down`.
set -euo pipefail

project=${1:?usage: $0 PROJECT BUCKET [REGION [ZONE]]}
bucket=${2:?usage: $0 PROJECT BUCKET [REGION [ZONE]]}
region=${3:-us-central1}
zone=${4:-${region}-a}
here=$(cd "$(dirname "$0")" && pwd)
account=raydd-worker@$project.iam.gserviceaccount.com
export CLOUDSDK_CORE_PROJECT=$project CLOUDSDK_CORE_DISABLE_PROMPTS=1

# missing KIND... NAME [OPTION...]: whether `gcloud KIND... describe NAME` finds nothing.
missing() { ! gcloud "$@" >/dev/null 2>&1; }

gcloud services enable compute.googleapis.com storage.googleapis.com iam.googleapis.com iap.googleapis.com \
    cloudresourcemanager.googleapis.com

if missing storage buckets describe "gs://$bucket"; then
    gcloud storage buckets create "gs://$bucket" --location="$region" --uniform-bucket-level-access \
        --public-access-prevention
    echo "made bucket $bucket"
fi

if missing compute networks describe raydd; then
    gcloud compute networks create raydd --subnet-mode=custom
fi
if missing compute networks subnets describe raydd --region="$region"; then
    gcloud compute networks subnets create raydd --network=raydd --region="$region" --range=10.64.0.0/20 \
        --enable-private-ip-google-access
fi
if missing compute firewall-rules describe raydd-members; then
    gcloud compute firewall-rules create raydd-members --network=raydd --source-tags=raydd --target-tags=raydd \
        --allow=tcp,udp,icmp
fi
if missing compute firewall-rules describe raydd-ssh; then
    # The range of Identity-Aware Proxy.
    gcloud compute firewall-rules create raydd-ssh --network=raydd --source-ranges=35.235.240.0/20 \
        --target-tags=raydd --allow=tcp:22
fi
if missing compute routers describe raydd --region="$region"; then
    gcloud compute routers create raydd --network=raydd --region="$region"
fi
if missing compute routers nats describe raydd --router=raydd --region="$region"; then
    gcloud compute routers nats create raydd --router=raydd --region="$region" --auto-allocate-nat-external-ips \
        --nat-all-subnet-ip-ranges
    echo "made NAT raydd, which costs from now on"
fi

if missing iam service-accounts describe "$account"; then
    gcloud iam service-accounts create raydd-worker --display-name="raydd workers"
fi
for role in objects list; do
    verb=update
    if missing iam roles describe "raydd_$role" --project="$project"; then verb=create; fi
    gcloud iam roles "$verb" "raydd_$role" --project="$project" --file="$here/role-$role.yaml" >/dev/null
done
condition=$(mktemp)
trap 'rm -f "$condition"' EXIT
sed "s/BUCKET/$bucket/g" "$here/condition-objects.yaml" >"$condition"
gcloud storage buckets add-iam-policy-binding "gs://$bucket" --member="serviceAccount:$account" \
    --role="projects/$project/roles/raydd_objects" --condition-from-file="$condition" >/dev/null
gcloud storage buckets add-iam-policy-binding "gs://$bucket" --member="serviceAccount:$account" \
    --role="projects/$project/roles/raydd_list" --condition=None >/dev/null

image=${IMAGE:-$(gcloud compute images list --project=deeplearning-platform-release --no-standard-images \
    --filter='family~^common-cu[0-9]+-ubuntu-2204' --sort-by=~creationTimestamp --limit=1 --format='value(name)')}
if [ -z "$image" ]; then
    echo "no image with NVIDIA's driver found: name one, IMAGE=projects/…/global/images/… $0 $*" >&2
    exit 1
fi
case $image in */*) ;; *) image=projects/deeplearning-platform-release/global/images/$image ;; esac

mkdir -p "$here/../../runs"
sed -e "s/PROJECT/$project/g" -e "s/BUCKET/$bucket/g" -e "s/REGION/$region/g" -e "s/ZONE/$zone/g" \
    -e "s|IMAGE|$image|g" "$here/../gcp.yaml" >"$here/../../runs/gcp.yaml"
echo "image $image; wrote runs/gcp.yaml: ray up -y runs/gcp.yaml"
