#!/usr/bin/env bash
# What a raydd cluster on AWS needs before `ray up`: cluster/aws/setup.sh BUCKET [REGION [ZONE]]
# (region: the one that the aws command is set to, zone: its a). Needs the aws command with an administrator's credentials, and its
# Session Manager plug-in. Run again, it makes only what is missing.
#
# It makes, all named raydd or tagged project=raydd:
#   bucket BUCKET, private               costs by GB and month; clean.sh leaves it unless nothing but raydd/ is in it
#   network of a private and a public subnet, internet gateway, route tables, S3 endpoint    free
#   NAT gateway and its address          COSTS BY THE HOUR AND BY THE GB as long as it exists: run clean.sh when done
#   security group: members reach each other, nobody else reaches them                       free
#   roles and instance profiles raydd-head (starts g6.2xlarge) and raydd-worker; both read and write BUCKET/raydd/ only      free
# and writes runs/aws.yaml. Machines cost from `ray up` to `ray down`.
set -euo pipefail

bucket=${1:?usage: $0 BUCKET [REGION [ZONE]]}
region=${2:-$(aws configure get region || true)}
: "${region:?name a region}"
zone=${3:-${region}a}
here=$(cd "$(dirname "$0")" && pwd)
export AWS_DEFAULT_REGION=$region AWS_PAGER=""

# The first id that a question has for an answer; nothing for none.
first() {
    local answer
    answer=$("$@" --output text)
    if [ "$answer" != None ]; then echo "${answer%%[[:space:]]*}"; fi
}
found() { first aws ec2 "$1" --filters "Name=tag:project,Values=raydd" "${@:3}" --query "$2"; }
tags() { echo "ResourceType=$1,Tags=[{Key=project,Value=raydd},{Key=Name,Value=$2}]"; }
filled() { sed -e "s/BUCKET/$bucket/g" -e "s/REGION/$region/g" -e "s/ACCOUNT/$account/g" "$here/$1"; }

account=$(aws sts get-caller-identity --query Account --output text)
echo "account $account, region $region, zone $zone"

if ! aws s3api head-bucket --bucket "$bucket" >/dev/null 2>&1; then
    place=()
    if [ "$region" != us-east-1 ]; then
        place=(--create-bucket-configuration "LocationConstraint=$region")
    fi
    aws s3api create-bucket --bucket "$bucket" ${place[@]+"${place[@]}"} >/dev/null
    aws s3api put-bucket-tagging --bucket "$bucket" --tagging 'TagSet=[{Key=project,Value=raydd}]'
    aws s3api put-public-access-block --bucket "$bucket" --public-access-block-configuration \
        BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true
    echo "made bucket $bucket"
fi

vpc=$(found describe-vpcs 'Vpcs[0].VpcId')
if [ -z "$vpc" ]; then
    vpc=$(aws ec2 create-vpc --cidr-block 10.64.0.0/16 --tag-specifications "$(tags vpc raydd)" \
        --query Vpc.VpcId --output text)
    aws ec2 modify-vpc-attribute --vpc-id "$vpc" --enable-dns-hostnames Value=true
    echo "made network $vpc"
fi

subnet() { # NAME BLOCK
    local id
    id=$(found describe-subnets 'Subnets[0].SubnetId' "Name=vpc-id,Values=$vpc" "Name=tag:Name,Values=$1")
    if [ -z "$id" ]; then
        id=$(aws ec2 create-subnet --vpc-id "$vpc" --availability-zone "$zone" --cidr-block "$2" \
            --tag-specifications "$(tags subnet "$1")" --query Subnet.SubnetId --output text)
    fi
    echo "$id"
}
private=$(subnet raydd-private 10.64.0.0/20)
public=$(subnet raydd-public 10.64.16.0/28)

gateway=$(found describe-internet-gateways 'InternetGateways[0].InternetGatewayId')
if [ -z "$gateway" ]; then
    gateway=$(aws ec2 create-internet-gateway --tag-specifications "$(tags internet-gateway raydd)" \
        --query InternetGateway.InternetGatewayId --output text)
    aws ec2 attach-internet-gateway --internet-gateway-id "$gateway" --vpc-id "$vpc"
fi

nat=$(first aws ec2 describe-nat-gateways --filter "Name=tag:project,Values=raydd" \
    "Name=state,Values=pending,available" --query 'NatGateways[0].NatGatewayId')
if [ -z "$nat" ]; then
    address=$(found describe-addresses 'Addresses[0].AllocationId')
    if [ -z "$address" ]; then
        address=$(aws ec2 allocate-address --domain vpc --tag-specifications "$(tags elastic-ip raydd)" \
            --query AllocationId --output text)
    fi
    nat=$(aws ec2 create-nat-gateway --subnet-id "$public" --allocation-id "$address" \
        --tag-specifications "$(tags natgateway raydd)" --query NatGateway.NatGatewayId --output text)
    echo "made NAT gateway $nat, which costs from now on"
fi
aws ec2 wait nat-gateway-available --nat-gateway-ids "$nat"

routes() { # NAME SUBNET TARGET...
    local table
    table=$(found describe-route-tables 'RouteTables[0].RouteTableId' "Name=tag:Name,Values=$1")
    if [ -z "$table" ]; then
        table=$(aws ec2 create-route-table --vpc-id "$vpc" --tag-specifications "$(tags route-table "$1")" \
            --query RouteTable.RouteTableId --output text)
        aws ec2 associate-route-table --route-table-id "$table" --subnet-id "$2" >/dev/null
    fi
    local route=(--route-table-id "$table" --destination-cidr-block 0.0.0.0/0 "${@:3}")
    aws ec2 create-route "${route[@]}" >/dev/null 2>&1 || aws ec2 replace-route "${route[@]}"
    echo "$table"
}
routes raydd-public "$public" --gateway-id "$gateway" >/dev/null
inside=$(routes raydd-private "$private" --nat-gateway-id "$nat")

if [ -z "$(found describe-vpc-endpoints "(VpcEndpoints[?State=='available' || State=='pending'])[0].VpcEndpointId")" ]; then
    aws ec2 create-vpc-endpoint --vpc-id "$vpc" --vpc-endpoint-type Gateway --service-name "com.amazonaws.$region.s3" \
        --route-table-ids "$inside" --tag-specifications "$(tags vpc-endpoint raydd)" >/dev/null
fi

group=$(found describe-security-groups 'SecurityGroups[0].GroupId')
if [ -z "$group" ]; then
    group=$(aws ec2 create-security-group --group-name raydd --description "raydd: members reach each other" \
        --vpc-id "$vpc" --tag-specifications "$(tags security-group raydd)" --query GroupId --output text)
    aws ec2 authorize-security-group-ingress --group-id "$group" \
        --ip-permissions "IpProtocol=-1,UserIdGroupPairs=[{GroupId=$group}]" >/dev/null
fi

# Spot machines need this role in every account; an account that used spot before has it.
if [ -z "$(first aws iam list-roles --path-prefix /aws-service-role/spot.amazonaws.com/ --query 'Roles[0].RoleName')" ]; then
    aws iam create-service-linked-role --aws-service-name spot.amazonaws.com >/dev/null
fi

for name in raydd-head raydd-worker; do
    if ! aws iam get-role --role-name "$name" >/dev/null 2>&1; then
        aws iam create-role --role-name "$name" --assume-role-policy-document "file://$here/trust.json" \
            --tags Key=project,Value=raydd >/dev/null
        echo "made role $name"
    fi
    aws iam put-role-policy --role-name "$name" --policy-name store --policy-document "$(filled policy-store.json)"
    if ! aws iam get-instance-profile --instance-profile-name "$name" >/dev/null 2>&1; then
        aws iam create-instance-profile --instance-profile-name "$name" >/dev/null
        aws iam add-role-to-instance-profile --instance-profile-name "$name" --role-name "$name"
    fi
done
aws iam put-role-policy --role-name raydd-head --policy-name head --policy-document "$(filled policy-head.json)"
# Session Manager, through which `ray up` reaches the head.
aws iam attach-role-policy --role-name raydd-head \
    --policy-arn arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore

image=${IMAGE:-$(first aws ec2 describe-images --owners amazon --filters \
    "Name=name,Values=Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) *" \
    --query 'sort_by(Images,&CreationDate)[-1].ImageId')}
if [ -z "$image" ]; then
    echo "no image with NVIDIA's driver found in $region: name one, IMAGE=ami-… $0 $*" >&2
    exit 1
fi

mkdir -p "$here/../../runs"
sed -e "s/BUCKET/$bucket/g" -e "s/REGION/$region/g" -e "s/ZONE/$zone/g" -e "s/IMAGE/$image/g" \
    -e "s/SUBNET/$private/g" "$here/../aws.yaml" >"$here/../../runs/aws.yaml"
echo "image $image; wrote runs/aws.yaml: ray up -y runs/aws.yaml"
