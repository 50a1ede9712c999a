"""Sets of others whose files do not say what their values mean: stated, guessed aloud, or refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

import raydd
from raydd.artifacts.detection import detect
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.formats import read_set, write_set
from raydd.artifacts.reading import Reading
from raydd.core.errors import ConfigError, DataError
from raydd.data.catalog import entry
from raydd.export import main
from raydd.runtime.evaluating import job_of

Make = Callable[..., DistilledSet]
CIFAR = entry("cifar10").info


def pixels(info=CIFAR, count: int = 20) -> Tensor:
    return torch.randint(
        0, 256, (count, *info.shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


def normalised(values: Tensor, info=CIFAR) -> Tensor:
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (info.mean, info.std))
    return (values.float() / 255 - mean) / std


def saved(folder: Path, images: Tensor, labels: Tensor | None = None, name: str = "set.pt") -> str:
    labels = torch.arange(len(images)) % 10 if labels is None else labels
    torch.save([images, labels], folder / name)
    return str(folder / name)


def read(url: str, info: object = "cifar10", **stated: object) -> tuple[DistilledSet, list[str]]:
    told: list[str] = []
    return read_set(url, info=info, reading=Reading(**stated), tell=told.append), told  # type: ignore[arg-type]


IN_SPACE = {
    "pixels": lambda values: values.float() / 255,
    "pixels255": lambda values: values.float(),
    "normalised": normalised,
    "int": lambda values: values.long(),
    "half": lambda values: normalised(values).half(),
}


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("kind", list(IN_SPACE))
def test_images_of_every_space_are_the_same_pictures(
    tmp_path: Path, kind: str, stated: bool
) -> None:
    url = saved(tmp_path, IN_SPACE[kind](pixels()))
    space = {"int": "pixels255", "half": "normalised"}.get(kind, kind)
    got, told = read(url, space=space if stated else None)
    assert int((got.to_uint8().int() - pixels().int()).abs().max()) <= (1 if kind == "half" else 0)
    torch.testing.assert_close(
        got.tensors()[0], normalised(pixels()), atol=2e-3 if kind == "half" else 1e-5, rtol=0
    )
    assert got.recipe["space"] == space
    assert [line.startswith(f"space: {space} (guessed: values range from ") for line in told] == [
        True
    ] * (not stated and kind != "int")


@pytest.mark.parametrize("name", ["digits", "mnist", "svhn", "imagenet10"])
def test_spaces_are_guessed_of_every_data_set(tmp_path: Path, name: str) -> None:
    info = replace(entry(name).info, height=8, width=8)
    values = pixels(info)
    values[:, :, :, :5] = 0 if name in ("digits", "mnist") else values[:, :, :, :5]
    for space, convert in (
        ("pixels", lambda v: v.float() / 255),
        ("pixels255", lambda v: v.float()),
        ("normalised", normalised),
    ):
        images = convert(values, info) if space == "normalised" else convert(values)
        got, _ = read(saved(tmp_path, images), info)
        assert got.recipe["space"] == space
        assert torch.equal(got.to_uint8(), values)


@pytest.mark.parametrize(
    ("kind", "space", "message"),
    [
        (
            "pixels",
            "normalised",
            r"values range from 0 … 1, all in \[0, 1\]; normalised images of cifar10 .* say --space pixels",
        ),
        (
            "pixels255",
            "normalised",
            r"values range from 0 … 255; normalised images of cifar10 lie around 0.* say --space pixels255",
        ),
        ("normalised", "pixels", r"outside of \[0, 1\]"),
        ("pixels255", "pixels", r"values range from 0 … 255"),
        ("pixels", "pixels255", r"black pictures"),
        ("normalised", "pixels255", r"pixels of 0 to 255 would be"),
        ("int", "normalised", r"whole numbers from 0 to 255: pixels"),
        ("int", "pixels", r"say --space pixels255"),
        ("pixels", "zca", r"whitened images lie around 0"),
    ],
)
def test_a_space_that_cannot_be_is_refused(
    tmp_path: Path, kind: str, space: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"space={space} cannot be: .*set\.pt: .*{message}"):
        read(saved(tmp_path, IN_SPACE[kind](pixels())), space=space)


def test_images_in_no_space_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="whole numbers from 0 to 1020"):
        read(saved(tmp_path, pixels().long() * 4))
    with pytest.raises(DataError, match=r"NaN or infinity in 1 of 20 images, first: image 3"):
        read(saved(tmp_path, normalised(pixels()).index_fill(0, torch.tensor(3), float("nan"))))
    with pytest.raises(DataError, match=r"images are torch\.bool"):
        read(saved(tmp_path, pixels() > 100))
    with pytest.raises(
        ConfigError, match=r"unknown space 'normalized' \(did you mean 'normalised'\?\)"
    ):
        Reading(space="normalized")
    with pytest.raises(ConfigError, match="unknown kind of labels 'probs'"):
        Reading(labels="probs")


def test_images_of_other_layouts_and_scales_are_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images are 32×32×3; .*images\.permute\(0, 3, 1, 2\)"):
        read(saved(tmp_path, normalised(pixels()).permute(0, 2, 3, 1)))
    _, told = read(saved(tmp_path, pixels().float() / 127.5 - 1))
    assert (
        "if these images were scaled to [-1, 1], save (images + 1) / 2 and say --space pixels"
        in told
    )
    half = replace(CIFAR, mean=(0.5,) * 3, std=(0.5,) * 3)
    got, told = read(saved(tmp_path, pixels().float() / 127.5 - 1), half)
    assert torch.equal(got.to_uint8(), pixels())
    assert len(told) == 1


def test_what_pickle_wrote_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(
        pickle.dumps((normalised(pixels()), torch.arange(20)), protocol=2)
    )
    with pytest.raises(
        DataError, match=r"pickle\.dump wrote it, not torch\.save: where you trust it"
    ):
        read(str(tmp_path / "best.pt"))
    torch.save(
        [normalised(pixels()), torch.arange(20) % 10],
        tmp_path / "old.pt",
        _use_new_zipfile_serialization=False,
    )
    assert len(read(str(tmp_path / "old.pt"))[0]) == 20


def test_unclamped_pixels_stay_so_and_may_be_stated(tmp_path: Path) -> None:
    images = pixels().float() / 255 * 1.2 - 0.1
    got, _ = read(saved(tmp_path, images), space="pixels")
    torch.testing.assert_close(got.to_pixels(), images, atol=1e-6, rtol=0)


def test_a_data_set_of_plain_pixels_needs_no_guess_of_them(tmp_path: Path) -> None:
    plain = replace(CIFAR, mean=(0.0,) * 3, std=(1.0,) * 3)
    images = pixels().float() / 255
    for space in (None, "normalised", "pixels"):
        assert torch.equal(read(saved(tmp_path, images), plain, space=space)[0].images, images)


# -- labels ----------------------------------------------------------------------------------------------------------

LOGITS = torch.randn(20, 10, generator=torch.Generator().manual_seed(1)) * 4


def test_logits_become_probabilities(tmp_path: Path) -> None:
    images = normalised(pixels())
    for stated in (None, "logits"):
        got, told = read(saved(tmp_path, images, LOGITS), labels=stated, space="normalised")
        torch.testing.assert_close(got.targets, LOGITS.softmax(1))
        assert torch.equal(got.labels, LOGITS.argmax(1))
        assert [line.startswith("labels: logits") for line in told] == [True] * (stated is None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_probabilities_stay_as_they_are(tmp_path: Path, dtype: torch.dtype) -> None:
    table = LOGITS.softmax(1).to(dtype)
    for stated in (None, "probabilities"):
        got, told = read(
            saved(tmp_path, normalised(pixels()), table), labels=stated, space="normalised"
        )
        assert torch.equal(got.targets, table.float())
        assert told == []


def test_targets_are_learnt_as_they_are(tmp_path: Path) -> None:
    images, learnt = normalised(pixels()), LOGITS.softmax(1) * 1.5
    path = saved(tmp_path, images, learnt)
    got, told = read(path, labels="targets", space="normalised")
    assert torch.equal(got.targets, learnt)
    assert told == []
    assert "--labels targets to learn them as they are" in read(path, space="normalised")[1][0]
    with pytest.raises(ConfigError, match=r"labels=targets cannot be: .*none may be below 0"):
        read(saved(tmp_path, images, LOGITS), labels="targets")


def test_tables_that_are_neither_are_refused(tmp_path: Path) -> None:
    images, half = normalised(pixels()), LOGITS.softmax(1) / 2
    with pytest.raises(
        DataError,
        match=r"neither probabilities nor, it seems, logits: .* rows sum to 0\.5 … 0\.5; say --labels logits",
    ):
        read(saved(tmp_path, images, half))
    for table in (half, LOGITS, LOGITS.softmax(1) * 2, LOGITS - LOGITS.logsumexp(1, keepdim=True)):
        with pytest.raises(ConfigError, match=r"labels=probabilities cannot be: .*rows sum to"):
            read(saved(tmp_path, images, table), labels="probabilities")
    assert torch.allclose(
        read(saved(tmp_path, images, half), labels="logits")[0].targets, half.softmax(1)
    )
    with pytest.raises(
        ConfigError, match=r"labels=logits has no effect: .*one number for each image"
    ):
        read(saved(tmp_path, images), labels="logits")
    with pytest.raises(DataError, match="a table of 9 classes; the data set has 10"):
        read(saved(tmp_path, images, LOGITS[:, :9]))
    with pytest.raises(DataError, match="NaN or infinity in the labels"):
        read(saved(tmp_path, images, LOGITS / 0))
    with pytest.raises(DataError, match="labels must be whole numbers"):
        read(saved(tmp_path, images, torch.rand(20)))


def test_labels_from_1_and_files_of_arrays_are_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"labels are 1 to 10; those of 10 classes are 0 to 9: save labels - 1"
    ):
        read(saved(tmp_path, normalised(pixels()), torch.arange(20) % 10 + 1))
    np.savez(tmp_path / "kip.npz", images=np.zeros((1, 32, 32, 3)))
    with pytest.raises(
        DataError, match=r"kip\.npz: .* not read; read its arrays and write torch\.save"
    ):
        read(str(tmp_path / "kip.npz"))
    (tmp_path / "dataset.json").write_text('{"labels": []}')  # StyleGAN's
    (tmp_path / "0").mkdir()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "0" / "a.png")
    assert read(str(tmp_path / "0" / ".."))[0].ipc[0] == 1


def test_pictures_may_be_grids_too(tmp_path: Path) -> None:
    write_set(
        DistilledSet(images=pixels(count=10), labels=torch.arange(10), info=CIFAR),
        str(tmp_path / "out"),
        "folder",
    )
    got, _ = read(str(tmp_path / "out"), factor=2)
    assert (len(got), len(got.tensors()[0])) == (10, 40)
    for stated in ({"space": "normalised"}, {"labels": "logits"}):
        with pytest.raises(ConfigError, match="only a decoding and a factor can be stated"):
            read(str(tmp_path / "out"), **stated)


@pytest.mark.parametrize(
    "convert",
    [
        lambda y: y.float(),
        lambda y: y.int(),
        lambda y: y[:, None],
        lambda y: torch.eye(10).long()[y],
    ],
)
def test_hard_labels_in_other_shapes_are_hard_labels(
    tmp_path: Path, convert: Callable[[Tensor], Tensor]
) -> None:
    labels = torch.arange(20) % 10
    got, _ = read(saved(tmp_path, normalised(pixels()), convert(labels)), space="normalised")
    assert got.soft_labels is None
    assert torch.equal(got.labels, labels)


# -- files -----------------------------------------------------------------------------------------------------------


def pair(folder: Path, number: str, value: float = 0.0, suffix: str = "pt") -> None:
    torch.save(normalised(pixels()) + value, folder / f"images_{number}.{suffix}")
    torch.save(torch.arange(20) % 10, folder / f"labels_{number}.{suffix}")


def test_iterations_are_found_by_either_half_and_the_best_or_latest_by_folder(
    tmp_path: Path,
) -> None:
    for number, value in (("900", 0.1), ("5000", 0.2), ("10000", 0.3)):
        pair(tmp_path, number, value)
    for name in ("images_5000.pt", "labels_5000.pt"):
        torch.testing.assert_close(read(str(tmp_path / name))[0].images, normalised(pixels()) + 0.2)
    got, told = read(str(tmp_path))
    torch.testing.assert_close(got.images, normalised(pixels()) + 0.3)
    assert f"{tmp_path}: read images_10000.pt of 3 sets there; name another by its path" in told
    pair(tmp_path, "best", 0.4)
    torch.testing.assert_close(read(str(tmp_path))[0].images, normalised(pixels()) + 0.4)
    (tmp_path / "labels_best.pt").unlink()
    with pytest.raises(
        DataError, match=r"images_best\.pt needs its labels beside it, in labels_best\.pt"
    ):
        read(str(tmp_path / "images_best.pt"))
    torch.save([normalised(pixels()), torch.arange(20) % 10], tmp_path / "images_all.pt")
    assert len(read(str(tmp_path / "images_all.pt"))[0]) == 20


def test_images_with_their_whitening_undone_say_that_the_others_are_whitened(
    tmp_path: Path,
) -> None:
    pair(tmp_path, "best")
    torch.save(pixels().float() / 255 * 1.1, tmp_path / "images_zca_best.pt")
    got, told = read(str(tmp_path))
    assert got.recipe["space"] == "zca"
    assert "space: zca (guessed: images_zca_best.pt beside it" in told[0]
    undone, _ = read(str(tmp_path / "images_zca_best.pt"))
    assert undone.recipe["space"] == "pixels"
    assert torch.equal(read(str(tmp_path), space="normalised")[0].images, normalised(pixels()))


@pytest.mark.parametrize("name", ["set.pth", "set.pth.tar", "set.ckpt", "set.tar", "SET.PT"])
def test_files_of_torch_are_read_under_the_names_people_give_them(
    tmp_path: Path, name: str
) -> None:
    assert torch.equal(
        read(saved(tmp_path, normalised(pixels()), name=name))[0].images, normalised(pixels())
    )


def test_weights_are_told_apart_from_sets(tmp_path: Path) -> None:
    for value in (
        {"state_dict": {"a": torch.zeros(2)}},
        {"conv.weight": torch.zeros(2, 3, 3, 3), "conv.bias": torch.zeros(2)},
    ):
        torch.save(value, tmp_path / "model_best.pth.tar")
        with pytest.raises(
            DataError, match=r"a network's weights, no set of images; .*method\.teachers\.weights"
        ):
            read(str(tmp_path / "model_best.pth.tar"))


def test_steps_of_continual_learning_are_one_set(tmp_path: Path) -> None:
    order = [[3, 1, 8, 0, 5], [2, 4, 6, 7, 9]]
    steps = [
        (normalised(pixels(count=10)) + t, torch.tensor(classes).repeat_interleave(2))
        for t, classes in enumerate(order)
    ]
    torch.save({"data": steps}, tmp_path / "cl_res_DSA_CIFAR10_ConvNet_2ipc_2steps_seed0.pt")
    got, told = read(str(tmp_path / "cl_res_DSA_CIFAR10_ConvNet_2ipc_2steps_seed0.pt"))
    assert got.ipc == (2,) * 10
    assert torch.equal(got.images, torch.cat([images for images, _ in steps]))
    assert any(
        "2 steps of other classes each (continual learning), read as one set" in line
        for line in told
    )
    second, _ = read(
        str(tmp_path / "cl_res_DSA_CIFAR10_ConvNet_2ipc_2steps_seed0.pt"), experiment=1
    )
    assert sorted(set(second.labels.tolist())) == [2, 4, 6, 7, 9]


# -- several images in one -------------------------------------------------------------------------------------------


def test_a_grid_is_cut_and_enlarged(tmp_path: Path) -> None:
    info = replace(entry("digits").info, height=4, width=4, mean=(0.0,), std=(1.0,))
    torch.save([torch.arange(16.0).view(1, 1, 4, 4), torch.tensor([3])], tmp_path / "set.pt")
    got, _ = read(str(tmp_path / "set.pt"), info, factor=2)
    first = torch.tensor(
        [[0, 0.25, 0.75, 1], [1, 1.25, 1.75, 2], [3, 3.25, 3.75, 4], [4, 4.25, 4.75, 5]]
    )
    images, labels = got.tensors()
    assert torch.equal(
        images[:, 0], torch.stack([first, first + 2, first + 8, first + 10])
    )  # row after row
    assert labels.tolist() == [3] * 4
    assert (len(got), got.image_bytes) == (1, 64)


def test_a_size_that_the_factor_does_not_divide_is_filled_with_grey(tmp_path: Path) -> None:
    images = pixels().float() / 255
    got, _ = read(saved(tmp_path, images), space="pixels", factor=3)
    full = torch.nn.functional.pad(images, (0, 1, 0, 1), value=0.5)
    cut = torch.cat(
        [full[:, :, i * 11 : i * 11 + 11, j * 11 : j * 11 + 11] for i in range(3) for j in range(3)]
    )
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (CIFAR.mean, CIFAR.std))
    expected = (torch.nn.functional.interpolate(cut, size=32, mode="bilinear") - mean) / std
    torch.testing.assert_close(got.tensors()[0], expected, atol=1e-5, rtol=0)
    assert (
        len(raydd.load(str(tmp_path / "set.pt"), info="cifar10", space="pixels", factor=3)) == 180
    )
    with pytest.raises(ConfigError, match="factor=40: images of 32×32"):
        read(saved(tmp_path, images), factor=40)
    with pytest.raises(ConfigError, match="factor: 0 must be"):
        Reading(factor=0)


def test_what_is_stated_of_a_set_of_ours_is_refused(make: Make, tmp_path: Path) -> None:
    write_set(make(), str(tmp_path / "set.pt"), "pt")
    write_set(make(), str(tmp_path / "set.safetensors"), "safetensors")
    for name in ("set.pt", "set.safetensors"):
        for stated in (
            {"space": "pixels"},
            {"decoding": "partition"},
            {"factor": 2},
            {"labels": "logits"},
        ):
            with pytest.raises(ConfigError, match=r"has no effect: .*says itself how it is read"):
                read(str(tmp_path / name), "digits", **stated)
        assert read(str(tmp_path / name), "digits")[1] == []


# -- folders of classes ----------------------------------------------------------------------------------------------

NAMES = {
    "numbers from 1": tuple(f"{n:03d}" for n in range(1, 11)),
    "odd": ("a/b", "A/B", "a_b", ".hidden", "..", "CON", "猫", "x" * 300, "", "train"),
    "numbers in another order": tuple(str(n) for n in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)),
    "twice": ("cat", "Cat", "cat (1)", "dog", "dog", "dog (4)", "e", "f", "g", "h"),
    "none": (),
}


@pytest.mark.parametrize("names", list(NAMES.values()), ids=list(NAMES))
def test_an_export_comes_back_with_the_labels_it_left_with(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    info = replace(CIFAR, name="image_folder", class_names=names)
    labels = torch.tensor([3, 5, 9, 0, 1, 2])
    images = pixels(count=6)
    write_set(
        DistilledSet(images=images, labels=labels, info=info), str(tmp_path / "out"), "folder"
    )
    folders = [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()]
    assert len({name.casefold() for name in folders}) == 6
    assert not [name for name in folders if name.startswith(".") or len(name.encode()) > 255]
    for given in (None, info):
        got, told = read(str(tmp_path / "out"), given)
        order = labels.argsort()
        assert torch.equal(got.labels, labels[order])
        assert torch.equal(got.images, images[order])
        assert any("4 of 10 classes have no image" in line for line in told)
    (tmp_path / "out" / "dataset.json").unlink()  # without it, by the names
    assert torch.equal(read(str(tmp_path / "out"), info)[0].labels, labels.sort().values)


def test_folders_are_named_after_the_classes(make: Make, tmp_path: Path) -> None:
    info = entry("fashion_mnist").info
    labels = torch.arange(10)
    write_set(
        DistilledSet(images=pixels(info, 10), labels=labels, info=info),
        str(tmp_path / "fashion"),
        "folder",
    )
    assert {"T-shirt_top", "Ankle boot"} <= {path.name for path in (tmp_path / "fashion").iterdir()}
    write_set(make(images=make().to_uint8()), str(tmp_path / "digits"), "folder")
    assert {"000", "009"} <= {path.name for path in (tmp_path / "digits").iterdir()}, (
        "names that are the numbers sort as these do"
    )


def test_what_is_not_read_in_a_folder_is_told(tmp_path: Path) -> None:
    for c in range(10):
        (tmp_path / f"new{c:03d}").mkdir()
        if c != 9:
            Image.fromarray(np.full((32, 32, 3), c * 20, np.uint8)).save(
                tmp_path / f"new{c:03d}" / "a.png"
            )
    (tmp_path / "new009" / "a.xyz").write_bytes(b"?")
    (tmp_path / "new001" / "b.xyz").write_bytes(b"?")
    (tmp_path / "new001" / ".DS_Store").write_bytes(b"?")
    got, told = read(str(tmp_path))
    assert got.labels.tolist() == list(range(9))
    assert f"{tmp_path}: 2 files in class folders not read (2 .xyz), first: new001/b.xyz" in told
    assert f"{tmp_path}: no picture is read in new009" in told
    assert any("1 of 10 classes have no image: truck" in line for line in told)


def test_an_empty_class_folder_counts_where_names_are_sorted(tmp_path: Path) -> None:
    for c in range(10):
        (tmp_path / f"n0{c}").mkdir()
        if c:
            Image.fromarray(np.full((32, 32, 3), c * 20, np.uint8)).save(
                tmp_path / f"n0{c}" / "a.png"
            )
    got, told = read(str(tmp_path))
    assert got.labels.tolist() == list(range(1, 10))
    assert any("no picture is read in n00" in line for line in told)


def test_16_bits_are_not_clipped(tmp_path: Path) -> None:
    info = replace(entry("digits").info, classes=2, class_names=("a", "b"))
    deep = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(deep).save(tmp_path / name / "0.png")
    assert np.array_equal(read(str(tmp_path), info)[0].images[0, 0].numpy(), deep // 256)


# -- the 8-bit view keeps the range ----------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["folder", "webdataset"])
def test_a_view_keeps_what_lies_outside_the_range_of_pixels(
    make: Make, tmp_path: Path, to: str
) -> None:
    made = make(images=make().images * 2 - 1)
    told: list[str] = []
    write_set(made, str(tmp_path / "out"), to, told.append)
    reach = made.to_pixels()
    share = float(((reach < -0.5 / 255) | (reach > 1 + 0.5 / 255)).float().mean())
    assert told[0].startswith(
        f"{share:.0%} of the values lie outside the range of pixels, [0, 1]: they reach from {reach.min():.2f} to"
    )
    got, _ = read(str(tmp_path / "out"), None)
    step = float(reach.max() - reach.min()) / 255
    assert float((got.to_pixels() - reach).abs().max()) <= step / 2 + 1e-6
    torch.testing.assert_close(got.tensors()[0], made.images, atol=step / made.std[0], rtol=0)


@pytest.mark.parametrize("to", ["folder", "webdataset"])
def test_a_view_inside_the_range_is_plain_pixels(make: Make, tmp_path: Path, to: str) -> None:
    made = make(images=(make().images - make().images.min()) / 1.3 + make().images.min())
    told: list[str] = []
    write_set(made, str(tmp_path / "out"), to, told.append)
    got, _ = read(str(tmp_path / "out"), None)
    assert told == []
    assert torch.equal(got.images, made.to_uint8())
    assert '"view"' not in (tmp_path / "out" / "dataset.json").read_text()


def test_a_tar_alone_says_what_its_bits_stand_for(make: Make, tmp_path: Path) -> None:
    write_set(make(), str(tmp_path / "out"), "webdataset")
    (tmp_path / "out" / "dataset.json").unlink()
    got, _ = read(str(tmp_path / "out" / "train-000000.tar"), "digits")
    assert float((got.to_pixels() - make().to_pixels()).abs().max()) <= 1.2 / 510 + 1e-6


# -- nothing is overwritten ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("pt", "set.pt"),
        ("safetensors", "set.safetensors"),
        ("folder", "out"),
        ("webdataset", "out"),
    ],
)
def test_an_export_is_never_overwritten_by_another(
    make: Make, tmp_path: Path, to: str, name: str
) -> None:
    assert write_set(make(), str(tmp_path / name), to)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    told: list[str] = []
    assert write_set(make(), str(tmp_path / name), to, told.append) == []
    assert any("is there already, the same" in line for line in told)
    with pytest.raises(ConfigError, match=r"(exists and holds something else|is not empty)"):
        write_set(make(images=make().images.flip(0)), str(tmp_path / name), to)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_export_that_was_cut_short_goes_on(make: Make, tmp_path: Path) -> None:
    write_set(make(), str(tmp_path / "out"), "folder")
    (tmp_path / "out" / "004" / "000001.png").unlink()
    (tmp_path / "out" / "dataset.json").unlink()
    assert write_set(make(), str(tmp_path / "out"), "folder") == ["004/000001.png", "dataset.json"]


def test_export_takes_what_is_known_of_a_set(tmp_path: Path) -> None:
    url = saved(tmp_path, pixels().float() / 255)
    done = CliRunner().invoke(
        main, [url, str(tmp_path / "out"), "--to", "folder", "--dataset", "cifar10"]
    )
    assert done.exit_code == 0, done.output
    assert "space: pixels (guessed: values range from 0 … 1; say --space" in done.output
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "out" / "airplane" / "000000.png")),
        pixels()[0].permute(1, 2, 0).numpy(),
    )
    wrong = CliRunner().invoke(
        main,
        [
            url,
            str(tmp_path / "x.pt"),
            "--to",
            "pt",
            "--dataset",
            "cifar10",
            "--space",
            "normalised",
        ],
    )
    assert wrong.exit_code == 2
    assert "space=normalised cannot be" in wrong.output
    assert detect(str(tmp_path / "out")).format == "folder"


def shades(root: Path, names: list[str]) -> str:
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        Image.fromarray(np.full((32, 32, 3), place * 20, np.uint8)).save(root / name / "a.png")
    return str(root)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            "plane car bird cat deer dog frog horse ship truck",
            "8 of 10 .* names of classes of cifar10, but these are not: car, plane",
        ),
        (
            "0 1 2 3 4 5 6 7 8 truck",
            r"1 of 10 class folders are names of classes of cifar10, but these are not: 0, 1, 2",
        ),
        ("0 1 2 3 4 5 6 7 8 lorry", r"9 of 10 class folders are numbers, but these are not: lorry"),
        (
            "class_1 class_2 class_3 class_4 class_5 class_6 class_7 class_8 class_9 class_10",
            r"hold numbers .*, but not all from 0 to 9",
        ),
        ("c0 c1 c2 c3 c4 c5 c6 c7 c8 c10", r"hold numbers .*, but not all from 0 to 9"),
    ],
)
def test_class_folders_that_fit_a_rule_in_part_are_refused(
    tmp_path: Path, names: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(shades(tmp_path / "set", names.split()))


@pytest.mark.parametrize(
    "names",
    [
        [f"class_{c}" for c in range(10)],
        [f"{c}_x" for c in range(10)],
        [name.title() for name in CIFAR.class_names],
    ],
    ids=["class_7", "7_x", "Horse"],
)
def test_class_folders_of_clear_meaning_need_no_guess(tmp_path: Path, names: list[str]) -> None:
    got, told = read(shades(tmp_path / "set", names))
    assert (got.images[:, 0, 0, 0] / 20).tolist() == got.labels.tolist() == list(range(10))
    assert told == []


def test_sorted_order_is_told_as_a_guess(tmp_path: Path) -> None:
    got, told = read(shades(tmp_path / "set", [f"n0144{c}764" for c in range(10)]))
    assert (got.images[:, 0, 0, 0] / 20).tolist() == got.labels.tolist()
    assert (
        [
            line
            for line in told
            if line.startswith("classes: n01440764, n01441764")
            and "in sorted order (guessed" in line
        ]
        == told
        != []
    )


def test_a_renamed_folder_of_an_export_is_named(tmp_path: Path) -> None:
    write_set(
        DistilledSet(images=pixels(count=10), labels=torch.arange(10), info=CIFAR),
        str(tmp_path / "out"),
        "folder",
    )
    (tmp_path / "out" / "cat").rename(tmp_path / "out" / "kitten")
    with pytest.raises(DataError, match=r"dataset\.json does not list: kitten; not there: cat"):
        read(str(tmp_path / "out"), None)
    with pytest.raises(ConfigError, match="only a decoding and a factor can be stated"):
        read(str(tmp_path / "out"), None, space="pixels255")


def test_labels_that_may_be_meant_otherwise_are_told(tmp_path: Path) -> None:
    images, labels = normalised(pixels()), torch.arange(20) % 5 + 1
    got, told = read(saved(tmp_path, images, labels), space="normalised")
    assert torch.equal(got.labels, labels)
    assert any("1 to 5, none is 0, read as they are (guessed" in line for line in told)
    assert not any(
        "none is 0" in line
        for line in read(saved(tmp_path, images, labels + 1), space="normalised")[1]
    )
    torch.save(
        {"images": images, "labels": torch.arange(20) % 10, "logits": torch.randn(20, 10)},
        tmp_path / "two.pt",
    )
    got, told = read(str(tmp_path / "two.pt"), space="normalised")
    assert torch.equal(got.labels, torch.arange(20) % 10)
    assert told == [
        f"labels: {tmp_path / 'two.pt'}: 'labels' (guessed: 'logits' beside it not read)"
    ]


@pytest.mark.parametrize(
    "values",
    [torch.linspace(0, 15.5, 3072), torch.linspace(-4e4, 4e4, 3072)],
    ids=["0 to 15", "huge"],
)
def test_a_guess_that_cannot_be_is_refused(tmp_path: Path, values: Tensor) -> None:
    with pytest.raises(
        ConfigError, match=r"space=normalised \(guessed\) cannot be: .*values range from"
    ):
        read(saved(tmp_path, values.view(1, 3, 32, 32).repeat(10, 1, 1, 1)))


def test_black_pictures_are_pixels_and_file_names_are_told(tmp_path: Path) -> None:
    got, told = read(saved(tmp_path, torch.zeros(10, 3, 32, 32)))
    assert int(got.to_uint8().max()) == 0
    assert told[0].startswith("space: pixels (guessed: values range from 0 … 0")
    torch.save(pixels().float() / 255, tmp_path / "images_zca_best.pt")
    torch.save(torch.arange(20) % 10, tmp_path / "labels_best.pt")
    told = read(str(tmp_path / "images_zca_best.pt"))[1]
    assert told[0].startswith("space: pixels (guessed: images_zca_best.pt holds pixels again")
    torch.save(normalised(pixels()), tmp_path / "images_zca_best.pt")
    with pytest.raises(
        ConfigError,
        match=r"space=pixels \(guessed: images_zca_best\.pt holds pixels again.*\) cannot be",
    ):
        read(str(tmp_path / "images_zca_best.pt"))
    with pytest.raises(
        ConfigError, match="experiment: -2 must be a number from 0 on, or -1, the last"
    ):
        Reading(experiment=-2)


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("pt", "set.pt"),
        ("safetensors", "set.safetensors"),
        ("folder", "out"),
        ("webdataset", "out"),
    ],
)
def test_exports_know_their_data_set(tmp_path: Path, to: str, name: str) -> None:
    write_set(
        DistilledSet(images=pixels(count=10), labels=torch.arange(10), info=CIFAR),
        str(tmp_path / name),
        to,
    )
    assert job_of(str(tmp_path / name)) == {"dataset": {"name": "cifar10"}}
    assert job_of(saved(tmp_path, pixels(), name="foreign.pt")) == {}


def test_export_counts_what_it_writes_and_refuses_a_file_in_its_way(tmp_path: Path) -> None:
    url = saved(tmp_path, pixels(count=10).float() / 255)
    asked = ["--dataset", "cifar10", "--space", "pixels", "--factor", "2", "--to"]
    done = CliRunner().invoke(main, [url, str(tmp_path / "out"), *asked, "folder"])
    assert "wrote 40 images of 10 classes" in done.output
    for out in (url, f"{url}/below"):
        done = CliRunner().invoke(main, [url, out, *asked, "folder"])
        assert done.exit_code == 2
        assert "set.pt exists and is a file" in done.output
