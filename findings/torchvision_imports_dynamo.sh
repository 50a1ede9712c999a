#!/usr/bin/env bash
# `import torchvision` imports torch's compiler and its sharded training, which nearly doubles what `import torch` takes.
#
# Versions: torch 2.15.0, torchvision 0.29.2; Python 3.11.
# Seen: after `import torch` neither torch._dynamo, torch._inductor nor torch.distributed.fsdp is loaded; after `import torchvision` all three
#   are, with 1,094 modules more. Processor time of the process: 1.2 s with torch alone, 2.4 s with torchvision (one core, warm files).
# Why: torchvision.models imports its detection parts, of which torchvision/ops/roi_align.py imports torch._dynamo.utils at its top, for
#   a decorator; torch._dynamo imports the rest. There is no setting that avoids it: torchvision.transforms and torchvision.datasets
#   load it as well, since the package's __init__ imports models.
# Who meets it: every worker process of a cluster, every command that only wants a transform or a data set, loaders' worker processes
#   that are spawned.
# Prints last: loaded by torch: none; by torchvision: torch._dynamo torch._inductor torch.distributed.fsdp
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q uv
"$folder/env/bin/uv" pip install -q --python "$folder/env/bin/python" torch==2.15.0 torchvision==0.29.2
cat >"$folder/loaded.py" <<'P'
import importlib
import resource
import sys

WATCHED = ("torch._dynamo", "torch._inductor", "torch.distributed.fsdp")
importlib.import_module(sys.argv[1])
used = resource.getrusage(resource.RUSAGE_SELF)
print(f"{sys.argv[1]}: {used.ru_utime + used.ru_stime:.1f} s of processor, {len(sys.modules)} modules", file=sys.stderr)
print(" ".join(name for name in WATCHED if name in sys.modules) or "none")
P
for module in torch torchvision torchvision.transforms torch; do "$folder/env/bin/python" "$folder/loaded.py" $module >"$folder/$module"; done
for part in torchvision torchvision.transforms; do
    if [ "$(cat "$folder/$part")" != "torch._dynamo torch._inductor torch.distributed.fsdp" ]; then
        echo "changed: $part loads $(cat "$folder/$part")"
        exit 1
    fi
done
echo "loaded by torch: $(cat "$folder/torch"); by torchvision: $(cat "$folder/torchvision")"
[ "$(cat "$folder/torch")" = none ]
