"""Coded sets: tables and errors of the worked example, files that come back, and files that are refused."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from torch import Tensor

from raydd.artifacts import coders
from raydd.artifacts.decoding import Decoding
from raydd.artifacts.distilled_set import DistilledSet, Whitening
from raydd.artifacts.image_codecs import ImageCodec, decode, encode, facts, pixels_of
from raydd.artifacts.levels import doubled, halved, levels_of, lloyd_max
from raydd.artifacts.set_file import MAGIC
from raydd.core.errors import ConfigError, DataError, RayddError, TornFileError
from raydd.data.catalog import DatasetInfo


def example() -> Tensor:
    n, i, j = torch.meshgrid(torch.arange(4), torch.arange(8), torch.arange(8), indexing="ij")
    return (((7 * n + 5 * i + 11 * j + i * j) % 17).double() / 16).unsqueeze(1)


def info(channels: int = 1, side: int = 8, classes: int = 2) -> DatasetInfo:
    mean, std = (0.25,) * channels, (0.5,) * channels
    return DatasetInfo(
        name="small",
        classes=classes,
        channels=channels,
        height=side,
        width=side,
        mean=mean,
        std=std,
    )


def small_set(**fields: Any) -> DistilledSet:
    images = ((example() - 0.25) / 0.5).float()
    return DistilledSet(
        **{"images": images, "labels": torch.tensor([0, 0, 1, 1]), "info": info(), **fields}
    )


def drawn(channels: int, side: int, labels: list[int]) -> DistilledSet:
    """Return normalised images of smooth noise, a part of them beyond the range of pixels."""
    rng = torch.Generator().manual_seed(3)
    shape = (len(labels), channels, -(-side // 4), -(-side // 4))
    noise = torch.randn(shape, generator=rng)
    images = torch.nn.functional.interpolate(noise, size=side, mode="bilinear")
    of = info(channels, side, max(labels) + 1)
    return DistilledSet(images=images, labels=torch.tensor(labels), info=of)


CODECS = [
    ImageCodec(bits=1),
    ImageCodec(bits=2),
    ImageCodec(bits=3),
    ImageCodec(bits=4),
    ImageCodec(bits=8),
    ImageCodec(bits=2, table="image"),
    ImageCodec(bits=3, size=2),
    ImageCodec(bits=8, size=2),
    ImageCodec(codec="avif", quality=60),
    ImageCodec(codec="webp", quality=60),
]
every_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.text)


@pytest.mark.parametrize(
    ("bits", "table", "histogram", "error", "packed"),
    [
        (1, [61, 196], [137, 119], 0.02304847, "bc8cade2135f92ce"),
        (2, [25, 96, 176, 239], [67, 70, 81, 38], 0.00647892, "834cfdfd3331ebc0"),
        (
            3,
            [6, 41, 71, 111, 153, 183, 214, 247],
            [32, 35, 27, 43, 35, 27, 32, 25],
            0.00122027,
            "f88bf2e860992a59",
        ),
    ],
)
def test_the_worked_example(
    bits: int, table: list[int], histogram: list[int], error: float, packed: str
) -> None:
    pixels = example()
    assert float(pixels.sum()) == 124.1875
    found = lloyd_max(pixels, 2**bits)
    levels = levels_of(pixels, found)
    assert found.tolist() == table
    assert torch.bincount(levels.flatten()).tolist() == histogram
    assert float(((found[levels].double() / 255 - pixels) ** 2).mean()) == pytest.approx(
        error, abs=5e-9
    )
    text = "".join(f"{level:0{bits}b}" for level in levels.flatten().tolist())
    whole = int(text, 2).to_bytes(len(text) // 8, "big")
    assert hashlib.sha256(whole).hexdigest()[:16] == packed
    assert torch.equal(
        decode(encode(small_set(), ImageCodec(bits=bits))).images,  # type: ignore[arg-type]
        found[levels],
    )


def test_half_the_size_of_the_worked_example() -> None:
    small = halved(example())
    assert small[0, 0, 0].tolist() == [0.25, 0.625, 0.46875, 0.578125]
    large = torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear")
    assert large[0, 0, 0, :4].tolist() == [0.25, 0.34375, 0.53125, 0.5859375]
    assert float(((large - example()) ** 2).mean()) == pytest.approx(0.08038513, abs=5e-9)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 9), (1, 1)])
def test_enlarged_by_whole_numbers_as_by_floats(height: int, width: int) -> None:
    rng = torch.Generator().manual_seed(1)
    rows, columns = -(-height // 2), -(-width // 2)
    images = torch.randint(0, 256, (3, 2, rows, columns), generator=rng, dtype=torch.uint8)
    floats = torch.nn.functional.interpolate(images.double(), scale_factor=2, mode="bilinear")
    wanted = (floats + 0.5).floor()[:, :, :height, :width]
    assert torch.equal(doubled(images, height, width).double(), wanted)


def test_means_at_odd_edges_are_of_fewer_pixels() -> None:
    images = torch.arange(9).double().view(1, 1, 3, 3)
    assert halved(images).flatten().tolist() == [2, 3.5, 6.5, 8]


def test_images_of_one_value_are_one_level() -> None:
    pixels = torch.full((2, 1, 8, 8), 0.4, dtype=torch.float64)
    table = lloyd_max(pixels, 4)
    assert table.tolist() == [102]
    assert int(levels_of(pixels, table).max()) == 0
    flat = small_set(images=((pixels - 0.25) / 0.5).float(), labels=torch.tensor([0, 1]))
    data = encode(flat, ImageCodec(bits=2))
    assert decode(data).images.unique().tolist() == [102]
    assert bytes([102] * 4) in data


def test_pixels_beyond_the_range_are_clamped() -> None:
    images = torch.tensor([-9.0, -0.5, 1.5, 9.0]).view(1, 1, 2, 2)
    pixels = pixels_of(DistilledSet(images=images, labels=torch.tensor([0]), info=info(side=2)))
    assert pixels.flatten().tolist() == [0, 0, 1, 1]


@every_codec
@pytest.mark.parametrize(
    ("channels", "side", "labels"),
    [(1, 8, [0, 0, 1, 1]), (3, 32, [0, 1, 1, 1, 3]), (3, 17, [2, 0, 1]), (2, 9, [0, 1])],
)
def test_a_file_comes_back(codec: ImageCodec, channels: int, side: int, labels: list[int]) -> None:
    made = drawn(channels, side, labels)
    data = encode(made, codec)
    assert encode(made, codec) == data, "two runs"
    found = decode(data)
    assert found.images.dtype == torch.uint8
    assert found.images.shape == made.images.shape
    assert found.labels.tolist() == labels
    assert found.ipc == made.ipc
    assert found.mean == (0.25,) * channels
    assert found.std == (0.5,) * channels
    if codec.bits == 8 and codec.size == 1:
        assert torch.equal(found.images, made.to_uint8())
    if codec.codec == "levels" and codec.size == 1:
        assert encode(found, codec) == data
        values = [len(found.images[:, c].unique()) for c in range(channels)]
        assert codec.table == "image" or codec.bits is None or max(values) <= 2**codec.bits
    said = facts(data)
    assert (said.codec, said.images, said.bytes) == (codec, len(made), len(data))
    assert said.raw_bytes(8) == made.images.numel()
    assert said.raw_bytes(32) == made.image_bytes
    assert said.bits_per_class == 8 * len(data) / made.info.classes
    assert said.stream_bytes + said.table_bytes + said.label_bytes < said.bytes


@pytest.mark.parametrize("side", [64, 224])
def test_large_images_lie_on_several_pages(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coders, "PAGE_PIXELS", 2 * side * side)
    made = drawn(1, side, [0, 0, 1])
    assert coders.page_sizes(3, side, side) == [2, 1]
    data = encode(made, ImageCodec(bits=2))
    found = decode(data)
    assert encode(found, ImageCodec(bits=2)) == data


def test_images_decoded_with_a_table_each_are_nearer() -> None:
    made = drawn(1, 16, [0, 0, 0, 1])
    pixels, wrong = pixels_of(made), {}
    for table in ("set", "image"):
        found = decode(encode(made, ImageCodec(bits=2, table=table)))  # type: ignore[arg-type]
        wrong[table] = float(((pixels_of(found) - pixels) ** 2).mean())
    assert wrong["image"] < wrong["set"]


def test_soft_labels_and_decodings_are_kept() -> None:
    soft = torch.tensor([[0.25, 0.75]] * 4)
    made = small_set(soft_labels=soft, decoding=Decoding("partition", {"factor": 2}))
    found = decode(encode(made, ImageCodec(bits=8)))
    assert found.decoding == made.decoding
    assert found.soft_labels is not None
    assert torch.equal(found.soft_labels, soft)
    assert found.seen == 16
    assert facts(encode(made, ImageCodec(bits=8))).label_bytes > 4 * soft.numel()


def test_a_poster_is_kept_with_its_map() -> None:
    images = torch.rand(1, 1, 8, 11, generator=torch.Generator().manual_seed(1))
    decoding = Decoding("windows", {"height": 8, "width": 8, "windows": [2, 1]})
    made = DistilledSet(
        images=images,
        labels=torch.tensor([1, 0]),
        extra={"label_map": torch.rand(2, 1, 2, generator=torch.Generator().manual_seed(2))},
        info=info(),
        decoding=decoding,
    )
    found = decode(encode(made, ImageCodec(bits=8)))
    assert found.labels.tolist() == [1, 0]
    assert torch.equal(found.targets, made.targets)
    assert found.shape == (1, 8, 8)


def test_a_set_of_a_data_set_has_its_facts() -> None:
    data = encode(small_set(), ImageCodec())
    assert decode(data, info()).info == info()
    with pytest.raises(DataError, match="2 classes and images of 1 channels; small has 3 and 1"):
        decode(data, info(classes=3))


def test_what_is_no_pixels_is_refused() -> None:
    whitening = Whitening(matrix=torch.eye(64), mean=torch.zeros(64), per_image=True)
    with pytest.raises(ConfigError, match="whitened"):
        encode(small_set(whitening=whitening), ImageCodec())
    with pytest.raises(ConfigError, match="whitened"):
        encode(small_set(recipe={"space": "zca"}), ImageCodec())


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"codec": "avif", "bits": 2}, "bits=2 has no effect with the codec 'avif'"),
        ({"codec": "webp", "table": "set"}, "table=set has no effect"),
        ({"quality": 30}, "quality=30 has no effect"),
        ({"bits": 8, "table": "image"}, "table=image has no effect"),
    ],
)
def test_what_has_no_effect_is_refused(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ImageCodec(**fields)


def test_without_the_coder_it_is_said_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(small_set(), ImageCodec())
    picture = encode(small_set(), ImageCodec(codec="webp"))
    monkeypatch.setattr(coders, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'raydd\[codecs\]'"):
        encode(small_set(), ImageCodec())
    with pytest.raises(ConfigError, match=r"pip install 'raydd\[codecs\]'"):
        decode(data)
    assert len(decode(picture)) == 4, "pictures need no such library"


@every_codec
def test_every_changed_byte_is_refused(codec: ImageCodec) -> None:
    data = encode(small_set(), codec)
    refused = 0
    for place in range(len(data)):
        for changed in (1, 128, 255):
            torn = bytearray(data)
            torn[place] ^= changed
            with pytest.raises((TornFileError, DataError)):
                decode(bytes(torn))
            refused += 1
    for length in range(len(data)):
        with pytest.raises((TornFileError, DataError)):
            decode(data[:length])
        refused += 1
    with pytest.raises(TornFileError, match="it says"):
        decode(data + b"0")
    print(f"{codec.text}: {refused} broken files refused")  # noqa: T201
    assert refused == 4 * len(data)


@every_codec
def test_files_with_a_right_checksum_are_refused_or_read(codec: ImageCodec) -> None:
    """What is inside is checked, too: nothing but raydd's own errors, and no more than a file of its size may hold."""
    data = encode(small_set(), codec)
    at = len(MAGIC) + 1 + (len(data) > 127)
    rng = torch.Generator().manual_seed(5)
    read = refused = 0
    for place in range(at + 8, len(data)):
        changed = bytearray(data)
        changed[place] ^= int(torch.randint(1, 256, (), generator=rng))
        changed[at : at + 8] = hashlib.sha256(changed[at + 8 :]).digest()[:8]
        try:
            decode(bytes(changed))
            read += 1
        except RayddError:
            refused += 1
    print(f"{codec.text}: {refused} refused, {read} read")  # noqa: T201
    assert refused > (read + refused) / 2


def test_a_file_that_says_too_much_is_refused_before_it_is_decoded() -> None:
    from raydd.artifacts.byte_reader import varint

    data = encode(small_set(), ImageCodec())
    body = data[len(MAGIC) + 2 + 8 :]
    sizes = bytes([4, 1, 8, 8, 2])
    place = body.index(sizes)
    body = (
        body[:place] + b"".join(map(varint, (1 << 20, 3, 1 << 12, 1 << 12, 2))) + body[place + 5 :]
    )
    checked = hashlib.sha256(body).digest()[:8] + body
    with pytest.raises(DataError, match="cannot hold 1048576 images of 3×4096×4096"):
        decode(MAGIC + varint(len(checked) + len(MAGIC) + 2) + checked)


def test_pixels_of_another_version_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from raydd.artifacts import image_codecs

    data = encode(small_set(), ImageCodec(codec="webp"))
    right = image_codecs.decode_pages
    monkeypatch.setattr(image_codecs, "decode_pages", lambda *given: right(*given) ^ 1)
    with pytest.raises(
        DataError, match=r"was written by libwebp .* and is decoded to other pixels"
    ):
        decode(data)
