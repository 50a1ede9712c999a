"""The dataset card (``README.md``) of a published set, with the YAML header that dataset hubs read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from raydd.artifacts.coded_facts import CodedFacts
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.generated import Generated
from raydd.artifacts.offsets import OFFSETS
from raydd.artifacts.pictures import Range
from raydd.artifacts.rendering import format_bytes, render_markdown
from raydd.artifacts.report import Report
from raydd.artifacts.run_folder import LABEL_MAP_PICTURE, OFFSETS_PICTURE, SEMANTIC
from raydd.artifacts.tables import inline
from raydd.artifacts.windows import LABEL_MAP, Windows

SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)


def method_name(recipe: Mapping[str, Any]) -> str:
    """Return the method that a recipe names (``method: {name: …}`` or ``method: …``), ``unknown`` if it names none."""
    method = recipe.get("method", "unknown")
    return str(method.get("name", "unknown") if isinstance(method, Mapping) else method)


def ipc_text(distilled: DistilledSet) -> str:
    """Return images per class as text: the recipe's number if it has one, of a poster those that
    its pixels make, else the stored count, or its range.
    """
    if "ipc" in distilled.recipe:
        return f"{distilled.recipe['ipc']:g}"
    if poster_text(distilled):
        return f"{distilled.pixel_ipc:.3g}"
    low, high = min(distilled.ipc), max(distilled.ipc)
    return str(low) if low == high else f"{low}-{high}"


def poster_text(distilled: DistilledSet) -> str:
    """Return what a poster is, ``a poster of 153×60 pixels``; empty for other sets."""
    if not isinstance(distilled.decoder, Windows):
        return ""
    height, width = distilled.images.shape[2:]
    return f"a poster of {width}×{height} pixels"


def header(distilled: DistilledSet, license_id: str, *, shards: bool) -> str:
    """Return the YAML header: licence, task, size, source and tags, and where the viewer finds samples."""
    import yaml

    count = len(distilled)
    method, ipc = method_name(distilled.recipe), ipc_text(distilled)
    values: dict[str, Any] = {
        "license": license_id,
        "pretty_name": f"{distilled.info.name}, {ipc} image{'s' * (ipc != '1')} per class, by {method}",
        "task_categories": ["image-classification"],
        "size_categories": [next((name for limit, name in SIZES if count < limit), "n>10M")],
        "source_datasets": [distilled.info.name],
        "tags": ["dataset-distillation", "dataset-condensation", f"ipc-{ipc}", method],
    }
    if shards:
        values["configs"] = [
            {"config_name": "default", "data_files": [{"split": "train", "path": "shards/*.tar"}]}
        ]
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---\n"


def _space(distilled: DistilledSet) -> str:
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (distilled.mean, distilled.std))
    if isinstance(distilled.decoder, Generated):
        precision = "float16" if distilled.images.dtype == torch.float16 else "float32"
        text = (
            f"`images` are latent vectors of {distilled.decoder.dim_z} numbers in {precision}, `generator.*` is the"
            " generator that makes images of them and of their labels. What it makes, x in (-1, 1), is read as pixels"
            f" (x + 1) / 2, normalised with mean ({mean}) and standard deviation ({std})."
        )
    elif distilled.images.dtype.is_floating_point:
        text = f"Images are float32, normalised with mean ({mean}) and standard deviation ({std}) of pixels in [0, 1]"
        if distilled.whitening is not None:
            text += ", then whitened (by `whitening.safetensors`)"
        text += ". Values may lie outside the range of pixels; only pictures are clamped."
    else:
        text = (
            f"Images are uint8 pixels; networks expect them divided by 255, then normalised with mean ({mean}) and"
            " standard "
        )
        text += f"deviation ({std})."
    if distilled.decoding.name != "identity":
        text += f" Students see {distilled.seen:,} images, decoded by `{distilled.decoding.name}`"
        parameters = ", ".join(
            f"{key} {value}" for key, value in distilled.decoding.parameters.items()
        )
        text += f" ({parameters})." if parameters else "."
        if LABEL_MAP in distilled.extra:
            text += f" Their soft labels are pooled from `{LABEL_MAP}`."
        if OFFSETS in distilled.extra:
            text += (
                f" Each image is seen as it is, and with each of the `{OFFSETS}` of its slice and block of classes"
                f" added: `{OFFSETS}[m, k, c // group_size]` to the k-th image of class c, cut to the range of"
                " pixels where both are whole numbers."
            )
    return text


def _labels(distilled: DistilledSet, records: int) -> str:
    kind = "hard and soft labels" if distilled.soft else "hard labels"
    what = "latents" if isinstance(distilled.decoder, Generated) else "images"
    sizes = f"{format_bytes(distilled.image_bytes)} of {what}, {format_bytes(distilled.label_bytes)} of labels"
    if distilled.size.bytes > distilled.image_bytes + distilled.label_bytes:
        sizes += f", {format_bytes(distilled.size.bytes)} in all"
    views = f" Soft labels are in `labels/` ({format_bytes(records)})." if records else ""
    images = poster_text(distilled) or f"{len(distilled):,} {what}"
    images = images[0].upper() + images[1:]
    return f"{images}, {distilled.info.classes} classes, {kind}; {sizes}.{views}"


def _by_hand(parts: Sequence[str]) -> str:
    if len(parts) == 1:
        return f"""from safetensors.torch import load_file
data = load_file("{parts[0]}")
images, labels = data["images"], data["labels"]"""
    return f"""import torch
from safetensors.torch import load_file
parts = [load_file(f"data-{{i:05d}}-of-{len(parts):05d}.safetensors") for i in range(1, {len(parts) + 1})]
images, labels = (torch.cat([part[name] for part in parts]) for name in ("images", "labels"))"""


_LOCAL = re.compile(
    r"(?<![\w:/.])(?:file://)?(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\"`,;)\]]+[/\\])+([^\s/\\'\"`,;)\]]*)"
)


def without_places(value: Any) -> Any:
    """Return JSON values in which a path of the machine that a set was made on is its last part:
    where files lie is nobody's business.
    """
    if isinstance(value, Mapping):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_places(item) for item in value]
    if not isinstance(value, str):
        return value
    if re.match(r"(file://)?(/|~[/\\]|[A-Za-z]:[/\\])", value):
        return "…/" + re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return _LOCAL.sub(r"…/\1", value)


def _scaled(view: Range | None) -> str:
    """Return how the 8 bits of the shards are read where they stand for more than pixels."""
    if view is None:
        return ""
    low, high = (
        min(view.offset),
        max(offset + scale for offset, scale in zip(view.offset, view.scale)),
    )
    return f"""Values reach from {low:.2f} to {high:.2f} where pixels reach from 0 to 1, so the
8 bits of `shards/` are on a scale, by channel, which raydd undoes. Without raydd,
`png` being the decoded `[H, W, C]` picture of a sample:

```python
view = json.load(open("shards/dataset.json"))["view"]
pixels = png / 255 * view["scale"] + view["offset"]
```

"""


def _file_line(coded: CodedFacts | None) -> str:
    """Return what a card says of the file of a coded set."""
    if coded is None:
        return ""
    plain = " and ".join(f"{coded.raw_bytes(bits):,} bytes in {bits} bits" for bits in (8, 32))
    return (
        f"- `set.rdd`: all that students see, in {coded.bytes:,} bytes ({coded.codec.text}; the same images take"
        f" {plain} a value); the other files are views of it\n"
    )


PICTURES = {
    SEMANTIC: "The class of each area of the poster",
    OFFSETS_PICTURE: "Offsets that all classes share, about grey",
    LABEL_MAP_PICTURE: "The label map: each cell's likeliest class, and its share",
    "curve.png": "Accuracy during the distillation",
    "networks.png": "Accuracy of every set on every network",
    "per_byte.png": "Accuracy against bytes",
    "continual.png": "Accuracy on the classes seen so far, learnt step by step",
}
"""Pictures of results that the card shows where the folder holds them, and what they show."""


def card(
    distilled: DistilledSet,
    report: Report | None,
    *,
    parts: Sequence[str],
    license_id: str,
    shards: bool,
    charts: Sequence[str],
    records: int = 0,
    view: Range | None = None,
    coded: CodedFacts | None = None,
) -> str:
    """Return the card: what the set is, how to load it, what it is worth, how it was made.

    ``parts``: names of the safetensors files. ``shards``: whether the folder holds them.
    ``charts``: files of the report. ``records``: bytes of the soft labels beside the set. ``view``:
    what the 8 bits of the shards stand for, where these are no pixels. ``coded``: of the file that
    the set was decoded of.
    """
    recipe = distilled.recipe
    name, method = inline(distilled.info.name), inline(method_name(recipe))
    shape = "×".join(map(str, distilled.shape))
    if report is None:
        worth = "This set was published without an evaluation.\n"
    else:
        worth = without_places(render_markdown(report))
    worth += "".join(f"\n![{PICTURES[name]}]({name})\n" for name in charts if name in PICTURES)
    shown = "The poster" if poster_text(distilled) else "A class per row"
    more = f" to `{parts[-1]}`, to be joined along the first axis" if len(parts) > 1 else ""
    worth_file = "" if report is None else "- `report.json`: what it is worth\n"
    scaled = "" if view is None else ", on the scale that `shards/dataset.json` holds"
    views = (
        f"- `shards/*.tar`: the same images in 8 bits{scaled} as WebDataset shards (`.png`, `.cls`)\n"
        if shards
        else ""
    )
    per_class = f"{ipc_text(distilled)} image{'s' * (ipc_text(distilled) != '1')} per class"
    soft = (
        "- `labels/`: the teachers' soft labels, a file for each epoch of views, or one of a row for each image;"
        " `labels/manifest.json` says how views are drawn\n"
    )
    return f"""{header(distilled, license_id, shards=shards)}
# {name}, {per_class}, distilled by {method}

A small training set that stands in for {name} (images of {shape}, C×H×W), made by dataset distillation with
raydd. {_labels(distilled, records)}

![{shown}](grid.png)

## Load

```python
import raydd
dataset = raydd.load("path/or/url/of/this/folder")
image, label = dataset[0]
```

`dataset` is a `torch.utils.data.Dataset` in the space a network expects; `dataset.tensors()` gives
all of it at once and `dataset.to_rgb()` pictures. Without raydd:

```python
{_by_hand(parts)}
```

{_scaled(view)}{_space(distilled)} The file's header holds these facts as JSON, under `raydd`.

## Results

{worth}
## Recipe

```json
{json.dumps(without_places(dict(recipe)), indent=2, ensure_ascii=False)}
```

## Files

- `{parts[0]}`{more}: the set itself
{_file_line(coded)}{views}{soft if records else ""}- `recipe.json`: how the set was made
{worth_file}- `manifest.json`: size and sha256 of every file

Digest of images, labels, normalisation and decoding: `{distilled.digest}`
"""
