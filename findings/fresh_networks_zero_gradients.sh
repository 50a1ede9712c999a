#!/usr/bin/env bash
# Of a freshly made timm ResNet nearly all weights get a gradient of exactly zero; of torchvision's ViT all but the head's.
#
# Versions: torch 2.15.0, torchvision 0.29.2, timm 1.0.31; Python 3.11.
# Seen (10 classes, 8 random images of 64 pixels, 224 for the ViT, cross-entropy, training mode): the share of weights with a gradient
#   of exactly 0.0 is 0.98 for timm's resnet18 (0.01 with zero_init_last=False, as for torchvision's resnet18), 0.88 for timm's resnet50,
#   0.9999 for torchvision's vit_b_16.
# Why: timm starts the scale of the last norm of every residual block at zero, so nothing passes through a block's branch, forward or
#   back, until that scale has moved; torchvision's ViT starts with a head of zeros, so nothing passes back below it. Training gets over
#   this with its first updates. Whoever compares gradients of networks as they are made (gradient matching, influence scores,
#   pruning at initialisation) compares almost nothing, and no error says so.
# Prints last: zeros timm 0.98 vit 1.00
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q uv
"$folder/env/bin/uv" pip install -q --python "$folder/env/bin/python" torch==2.15.0 torchvision==0.29.2 timm==1.0.31
"$folder/env/bin/python" - <<'P'
import sys
import timm, torch, torchvision

def zeros(network, side):
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, side, side), torch.arange(8)
    network.train()
    torch.nn.functional.cross_entropy(network(x), y).backward()
    grads = [p.grad for p in network.parameters()]
    return sum(int((g == 0).sum()) for g in grads) / sum(g.numel() for g in grads)

torch.manual_seed(0)
found = {
    "timm resnet18": zeros(timm.create_model("resnet18", num_classes=10), 64),
    "timm resnet18 zero_init_last=False": zeros(timm.create_model("resnet18", num_classes=10, zero_init_last=False), 64),
    "timm resnet50": zeros(timm.create_model("resnet50", num_classes=10), 64),
    "torchvision resnet18": zeros(torchvision.models.resnet18(num_classes=10), 64),
    "torchvision vit_b_16": zeros(torchvision.models.vit_b_16(num_classes=10), 224),
}
for name, share in found.items():
    print(f"{name}: {share:.4f}")
print(f"zeros timm {found['timm resnet18']:.2f} vit {found['torchvision vit_b_16']:.2f}")
as_seen = found["timm resnet18"] > 0.9 and found["timm resnet50"] > 0.8 and found["torchvision vit_b_16"] > 0.99
plain = found["torchvision resnet18"] < 0.05 and found["timm resnet18 zero_init_last=False"] < 0.05
sys.exit(0 if as_seen and plain else 1)
P
