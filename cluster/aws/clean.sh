#!/usr/bin/env bash
# Takes away what setup.sh made: cluster/aws/clean.sh BUCKET [REGION]. First `ray down -y runs/aws.yaml`.
# The bucket is left as it is, unless it is asked for: DELETE_BUCKET=yes cluster/aws/clean.sh BUCKET deletes it with all that is below
# raydd/, and refuses where anything else is in it. Run again, it goes on where it stopped.
set -euo pipefail

bucket=${1:?usage: $0 BUCKET [REGION]}
region=${2:-$(aws configure get region || true)}
: "${region:?name a region}"
export AWS_DEFAULT_REGION=$region AWS_PAGER=""

all() { aws ec2 "$1" --filters "Name=tag:project,Values=raydd" "${@:3}" --query "$2" --output text; }

# Before anything is taken away: would the bucket be refused?
if [ "${DELETE_BUCKET:-no}" = yes ] && aws s3api head-bucket --bucket "$bucket" >/dev/null 2>&1; then
    there=$(aws s3api list-objects-v2 --bucket "$bucket" --delimiter / \
        --query '[CommonPrefixes[].Prefix, Contents[].Key][]' --output text)
    if [ -n "$there" ] && [ "$there" != raydd/ ]; then
        echo "bucket $bucket holds other things than raydd/ ($there): nothing is deleted" >&2
        exit 1
    fi
fi
machines=$(all describe-instances 'Reservations[].Instances[].InstanceId' \
    "Name=instance-state-name,Values=pending,running,stopping,stopped")
if [ -n "$machines" ]; then
    echo "machines still run ($machines): ray down -y runs/aws.yaml" >&2
    exit 1
fi

for nat in $(aws ec2 describe-nat-gateways --filter "Name=tag:project,Values=raydd" \
    "Name=state,Values=pending,available,deleting" --query 'NatGateways[].NatGatewayId' --output text); do
    aws ec2 delete-nat-gateway --nat-gateway-id "$nat" >/dev/null
    aws ec2 wait nat-gateway-deleted --nat-gateway-ids "$nat"
done
for id in $(all describe-addresses 'Addresses[].AllocationId'); do
    aws ec2 release-address --allocation-id "$id"
done
for id in $(all describe-vpc-endpoints "VpcEndpoints[?State=='available' || State=='pending'].VpcEndpointId"); do
    aws ec2 delete-vpc-endpoints --vpc-endpoint-ids "$id" >/dev/null
done
for id in $(all describe-security-groups 'SecurityGroups[].GroupId'); do
    aws ec2 delete-security-group --group-id "$id" >/dev/null
done
for id in $(all describe-route-tables 'RouteTables[].Associations[].RouteTableAssociationId'); do
    aws ec2 disassociate-route-table --association-id "$id"
done
for id in $(all describe-subnets 'Subnets[].SubnetId'); do
    aws ec2 delete-subnet --subnet-id "$id"
done
for id in $(all describe-route-tables 'RouteTables[].RouteTableId'); do
    aws ec2 delete-route-table --route-table-id "$id"
done
for vpc in $(all describe-vpcs 'Vpcs[].VpcId'); do
    for id in $(all describe-internet-gateways 'InternetGateways[].InternetGatewayId'); do
        aws ec2 detach-internet-gateway --internet-gateway-id "$id" --vpc-id "$vpc"
        aws ec2 delete-internet-gateway --internet-gateway-id "$id"
    done
    aws ec2 delete-vpc --vpc-id "$vpc"
done
aws ec2 delete-key-pair --key-name raydd >/dev/null

for name in raydd-head raydd-worker; do
    if aws iam get-instance-profile --instance-profile-name "$name" >/dev/null 2>&1; then
        aws iam remove-role-from-instance-profile --instance-profile-name "$name" --role-name "$name" 2>/dev/null || true
        aws iam delete-instance-profile --instance-profile-name "$name"
    fi
    if aws iam get-role --role-name "$name" >/dev/null 2>&1; then
        for policy in $(aws iam list-role-policies --role-name "$name" --query 'PolicyNames[]' --output text); do
            aws iam delete-role-policy --role-name "$name" --policy-name "$policy"
        done
        for arn in $(aws iam list-attached-role-policies --role-name "$name" \
            --query 'AttachedPolicies[].PolicyArn' --output text); do
            aws iam detach-role-policy --role-name "$name" --policy-arn "$arn"
        done
        aws iam delete-role --role-name "$name"
    fi
done

if [ "${DELETE_BUCKET:-no}" != yes ]; then
    echo "gone, but for bucket $bucket (DELETE_BUCKET=yes deletes it) and your ~/.ssh/raydd.pem"
elif aws s3api head-bucket --bucket "$bucket" >/dev/null 2>&1; then
    aws s3 rm "s3://$bucket/raydd/" --recursive --only-show-errors
    aws s3api delete-bucket --bucket "$bucket"
    echo "gone, with bucket $bucket; your ~/.ssh/raydd.pem is left"
fi
