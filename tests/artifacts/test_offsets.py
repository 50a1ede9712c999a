"""Images with offsets that all classes share: what is seen, in parts, published, exported; a smaller budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raydd import load
from raydd.artifacts import distilled_set
from raydd.artifacts.card import card
from raydd.artifacts.decoding import Decoding, SetSize
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.first_images import first_images
from raydd.artifacts.formats import read_set
from raydd.artifacts.grid import grid, png
from raydd.artifacts.offsets import OFFSETS, Offsets, composed, levels, slices_within
from raydd.artifacts.poster_pictures import further_pictures, picture_of
from raydd.artifacts.published_folder import publish, read
from raydd.artifacts.writing import write_set
from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.core.tensors import Tensors
from raydd.data.catalog import entry

INFO = entry("digits").info
CLASSES, SLICES, NETWORKS, GROUP = 10, 3, 2, 4


def stored(floats: bool = False, channels: int = 1, side: int = 8) -> Tensors:
    """Ten classes of three images, two offsets for blocks of four classes: blocks of 4, 4 and 2."""
    g = generator(0, "stored")
    images = torch.randint(0, 256, (30, channels, side, side), generator=g).to(torch.uint8)
    shape = (NETWORKS, SLICES, 3, channels, side, side)
    offsets = torch.randint(-300, 301, shape, generator=g).to(torch.int16)
    labels = torch.arange(CLASSES).repeat_interleave(SLICES)
    if floats:
        return {"images": images / 99.0, "labels": labels, OFFSETS: offsets / 99.0}
    return {"images": images, "labels": labels, OFFSETS: offsets}


def made(**fields: Any) -> DistilledSet:
    tensors = stored() | fields
    return DistilledSet(
        images=tensors["images"],
        labels=tensors["labels"],
        soft_labels=tensors.get("soft_labels"),
        extra={OFFSETS: tensors[OFFSETS]},
        info=INFO,
        decoding=Decoding("offsets", {"group_size": GROUP}),
        recipe={"method": {"name": "infer"}, "ipc": 4},
    )


def by_hand(tensors: Tensors) -> Tensor:
    """Return what is seen, image by image."""
    seen = [*tensors["images"]]
    for m in range(NETWORKS):
        for i, image in enumerate(tensors["images"]):
            offset = tensors[OFFSETS][m, i % SLICES, i // SLICES // GROUP]
            if image.is_floating_point():
                seen.append(image + offset)
            else:
                seen.append((image.long() + offset.long()).clamp(0, 255).to(torch.uint8))
    return torch.stack(seen)


@pytest.mark.parametrize("floats", [False, True], ids=["pixels", "floats"])
def test_what_is_seen_is_what_is_stored_and_then_all_of_it_with_each_offset(floats: bool) -> None:
    tensors, decoder = stored(floats), Offsets(group_size=GROUP)
    decoder.check(tensors, INFO)
    whole = decoder.take(tensors)
    assert whole.dtype == tensors["images"].dtype
    assert torch.equal(whole, by_hand(tensors))
    assert len(whole) == decoder.count(tensors) == 90
    ids = torch.randperm(90, generator=generator(1, "ids"))
    assert torch.equal(decoder.take(tensors, ids), whole[ids])
    one = torch.cat([decoder.take(tensors, ids[i : i + 1]) for i in range(90)])
    assert torch.equal(one, whole[ids])
    assert torch.equal(decoder.labels(tensors, ids), tensors["labels"][ids % 30])
    soft = torch.rand(30, 10, generator=generator(2, "soft"))
    assert torch.equal(decoder.targets(tensors | {"soft_labels": soft}, ids), soft[ids % 30])


def test_gradients_flow_to_images_and_offsets() -> None:
    tensors, decoder = stored(True), Offsets(group_size=GROUP)
    images, offsets = (tensors[name].double().requires_grad_() for name in ("images", OFFSETS))
    given = tensors | {"images": images, OFFSETS: offsets}
    weights = torch.rand(90, 1, 1, 1, generator=generator(0, "w"), dtype=torch.float64)
    found = torch.autograd.grad((decoder.take(given) * weights).sum(), (images, offsets))
    by_image = weights.flatten().view(3, 30).sum(0)
    torch.testing.assert_close(found[0], by_image.view(-1, 1, 1, 1).expand_as(images))
    each = weights.flatten().view(3, CLASSES, SLICES)[1:]
    blocks = torch.stack([each[:, at : at + GROUP].sum(1) for at in (0, 4, 8)], 2)
    torch.testing.assert_close(found[1], blocks.view(2, 3, 3, 1, 1, 1).expand_as(offsets))


def test_levels_are_what_the_published_code_writes_of_sums_in_network_space() -> None:
    g = generator(0, "levels")
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    centre, spread = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (mean, std))
    pixels = torch.randint(0, 256, (20, 3, 16, 16), generator=g).to(torch.uint8)
    u = 2 * torch.randn(3, 16, 16, generator=g, dtype=torch.float64)
    sums = (pixels.double() / 255 - centre) / spread + u
    written = ((sums * spread + centre).clamp(0, 1) * 255).to(torch.uint8)  # cut off, not rounded
    assert torch.equal(composed(pixels, levels(u, std)), written)
    far = levels(torch.tensor([[[1e6]], [[-1e6]], [[0.0]]]), std)
    assert far.flatten().tolist() == [255, -255, 0]
    assert torch.equal(composed(pixels, far)[:, 0], torch.full((20, 16, 16), 255).to(torch.uint8))


@pytest.mark.parametrize(
    ("classes", "networks", "ipc", "slices"),
    [
        (10, 4, 10, 7),
        (10, 4, 50, 35),
        (100, 4, 10, 9),
        (100, 4, 50, 48),
        (100, 4, 100, 96),
        (200, 4, 10, 9),
        (200, 4, 50, 49),
        (200, 4, 100, 98),
        (200, 3, 100, 98),
        (1000, 3, 10, 9),
        (1000, 3, 50, 49),
        (1000, 3, 100, 99),
        (1000, 3, 1, 0),
    ],
)
def test_budgets_are_the_published_ones(classes: int, networks: int, ipc: int, slices: int) -> None:
    assert slices_within(ipc, networks, classes, classes) == slices
    assert slices * (classes + networks) <= ipc * classes
    assert slices_within(ipc, networks, classes, 10_000) == slices


def test_a_budget_counts_an_offset_for_each_block_of_classes() -> None:
    assert slices_within(10, 3, 1000, 100) == 9  # 9 (1000 + 3 * 10) of 10,000
    assert slices_within(10, 2, 10, 4) == 6  # 6 (10 + 2 * 3) of 100
    assert slices_within(2, 2, 10, 6) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({OFFSETS: None}, "needs the tensor 'offsets'"),
        ({OFFSETS: torch.zeros(2, 3, 3, 1, 8, 7).short()}, r"must be \[M, K, B, 1, 8, 8\], not"),
        ({OFFSETS: torch.zeros(2, 3, 3, 1, 8, 8)}, "uint8 images must be torch.int16"),
        ({OFFSETS: torch.zeros(2, 5, 3, 1, 8, 8).short()}, "must be 5 of each class"),
        ({OFFSETS: torch.zeros(2, 3, 2, 1, 8, 8).short()}, "blocks of 4 do not make 2 blocks"),
        ({"labels": torch.arange(30) % 10}, "must be 3 of each class, class by class"),
        ({"images": torch.zeros(30, 1, 8, 8)}, "float32 images must be torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], message: str) -> None:
    tensors = {name: value for name, value in (stored() | fields).items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        Offsets(group_size=GROUP).check(tensors, INFO)
    with pytest.raises(ConfigError, match="group_size: 0 must be a whole number"):
        Offsets(group_size=0)


def test_a_published_set_is_read_as_it_was_and_counts_all_its_bytes(tmp_path: Path) -> None:
    whole = made()
    held = 30 * 64 + 30 * 8 + NETWORKS * SLICES * 3 * 64 * 2
    assert whole.size == SetSize(30, 90, held)
    publish(whole, str(tmp_path / "set"))
    again = read(str(tmp_path / "set"))
    assert again.digest == whole.digest
    assert torch.equal(again.take(), by_hand(stored()))
    loaded = load(str(tmp_path / "set"))
    assert (len(loaded), loaded.distilled.seen) == (90, 90)
    assert "decoded to 90" in repr(loaded)
    torch.testing.assert_close(loaded[77][0], whole.normalised(whole.take()[77:78])[0])
    text = (tmp_path / "set" / "README.md").read_text()
    assert "`offsets[m, k, c // group_size]` to the k-th image of class c" in text
    assert (tmp_path / "set" / "offsets.png").read_bytes() == further_pictures(whole)["offsets.png"]
    assert "![Offsets that all classes share" in text
    assert "offsets.png" not in card(
        again, None, parts=["x"], license_id="mit", shards=False, charts=[]
    )


def test_a_picture_shows_what_students_see_image_by_image() -> None:
    seen, each = by_hand(stored()), []
    for c in range(CLASSES):
        for k in range(SLICES):
            each += [seen[m * 30 + c * SLICES + k] for m in range(1 + NETWORKS)]
    images, labels = torch.stack(each), torch.arange(CLASSES).repeat_interleave(9)
    assert png(picture_of(made())) == png(grid(images, labels, INFO.class_names))
    some = torch.cat([torch.arange(4) + 9 * c for c in range(CLASSES)])
    few = png(picture_of(made(), images=4))
    assert few == png(grid(images[some], labels[some], INFO.class_names))


def test_a_picture_counts_what_it_does_not_show() -> None:
    images = torch.arange(60).to(torch.uint8).view(60, 1, 1, 1).expand(60, 1, 8, 8)
    offsets = torch.full((3, 6, 1, 1, 8, 8), 60, dtype=torch.int16)
    labels = torch.arange(CLASSES).repeat_interleave(6)
    whole = DistilledSet(
        images=images,
        labels=labels,
        extra={OFFSETS: offsets},
        info=INFO,
        decoding=Decoding("offsets", {"group_size": CLASSES}),
    )
    seen = torch.stack([whole.take(torch.arange(60) + 60 * m) for m in range(4)], 1).flatten(0, 1)
    rows = torch.arange(CLASSES).repeat_interleave(24)
    assert png(picture_of(whole)) == png(grid(seen, rows, INFO.class_names))


@pytest.mark.parametrize("to", ["pt", "folder", "webdataset", "safetensors"])
def test_exports_hold_what_is_seen(to: str, tmp_path: Path) -> None:
    target = str(tmp_path / ("set." + to if to in ("pt", "safetensors") else "set"))
    write_set(made(), target, to)
    found = read_set(target)
    assert found.seen == 90
    order = found.labels_of().argsort(stable=True)
    own = made().labels_of().argsort(stable=True)
    pixels = found.to_uint8(found.take())[order]
    assert torch.equal(pixels, by_hand(stored())[own])


def test_no_more_is_decoded_at_a_time_than_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    take: Callable[..., Tensor] = Offsets.take

    def counted(self: Offsets, tensors: Tensors, ids: Tensor | None = None, *more: Any) -> Tensor:
        taken.append(-1 if ids is None else len(ids))
        return take(self, tensors, ids, *more)

    monkeypatch.setattr(Offsets, "take", counted)
    monkeypatch.setattr(distilled_set, "BLOCK_VALUES", 7 * 64)
    publish(made(), str(tmp_path / "set"))
    write_set(made(), str(tmp_path / "set.pt"), "pt")
    assert max(taken) == 7
    assert min(taken) > 0


def test_a_smaller_budget_takes_the_first_slices(tmp_path: Path) -> None:
    soft = torch.rand(30, 10, generator=generator(2, "soft"))
    whole = made(soft_labels=soft)
    part = first_images(whole, 2, "here")  # 1 (10 + 2 * 3) of 20
    assert (len(part), part.seen, part.recipe["ipc"]) == (10, 30, 2)
    firsts = torch.arange(0, 30, 3)
    assert torch.equal(part.images, whole.images[firsts])
    assert torch.equal(part.soft_labels, soft[firsts])
    assert torch.equal(part.take(), whole.take(torch.cat([firsts, 30 + firsts, 60 + firsts])))
    assert torch.equal(
        first_images(whole, 4, "here").take(),
        whole.take()[[*range(90)]][
            torch.tensor(
                [30 * m + 3 * c + k for m in range(3) for c in range(10) for k in range(2)]
            )
        ],
    )
    with pytest.raises(ConfigError, match="ipc=1 has room for 0 images of each class"):
        first_images(whole, 1, "here")
    with pytest.raises(
        ConfigError, match=r"ipc=9 has room for 5 .* allowed: 1 to 3, which here has"
    ):
        first_images(whole, 9, "here")
    publish(whole, str(tmp_path / "set"))
    assert len(load(str(tmp_path / "set"), ipc=2)) == 30
