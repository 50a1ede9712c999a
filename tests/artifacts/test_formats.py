from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import raydd
from raydd.artifacts.decoding import Decoding
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.formats import detect, load_pt, read_set, write_set
from raydd.artifacts.published_folder import publish
from raydd.artifacts.reading import Reading
from raydd.core.errors import ConfigError, DataError, TornFileError
from raydd.data.catalog import DatasetInfo, entry
from raydd.export import main

Make = Callable[..., DistilledSet]
SOFT = torch.eye(10).repeat_interleave(3, 0) * 0.875 + 0.0125


def jpegs(root: Path, names: list[str], per_class: int = 2, size: int = 8) -> None:
    """Write plain grey files whose value is 20 × the place of their folder in ``names``."""
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            Image.new("RGB", (size, size), (20 * place,) * 3).save(
                root / name / f"class{place:03d}_id{i:03d}.jpg"
            )


@pytest.mark.parametrize("scalars", ["new", "old"])
def test_dc_files_are_read_with_their_numpy_accuracies(
    make: Make, tmp_path: Path, scalars: str
) -> None:
    made = make()
    accuracies = {"ConvNet": [np.float64(0.44), np.float64(0.45)]}
    saved = {
        "data": [[made.images + k, made.labels] for k in range(3)],
        "accs_all_exps": accuracies,
    }
    path = tmp_path / "res_DM_digits_ConvNet_3ipc.pt"
    torch.save(saved, path)
    if scalars == "old":  # as NumPy 1 named it; the pickle is stored, not compressed, in the zip
        import zipfile

        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        name = next(name for name in parts if name.endswith("data.pkl"))
        assert b"numpy._core.multiarray" in parts[name]
        parts[name] = parts[name].replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for part, data in parts.items():
                archive.writestr(part, data)
    assert load_pt(path.read_bytes(), "it")["accs_all_exps"] == accuracies
    assert torch.equal(read_set(str(path), info="digits").images, made.images + 2)
    got = read_set(str(path), info="digits", reading=Reading(experiment=1))
    assert torch.equal(got.images, made.images + 1)
    assert torch.equal(got.labels, made.labels)
    assert got.recipe["experiment"] == 1
    save_folder = tmp_path / "one"
    publish(got, str(save_folder))
    with pytest.raises(
        ConfigError, match=r"experiment=1 has no effect: .*one \(distilled\) holds one set"
    ):
        read_set(str(save_folder), info="digits", reading=Reading(experiment=1))
    with pytest.raises(ConfigError, match="holds 3 experiments; 3 is none"):
        read_set(str(path), info="digits", reading=Reading(experiment=3))


@pytest.mark.parametrize("shape", ["pair", "dict"])
def test_bare_pairs_are_read_soft_labels_too(make: Make, tmp_path: Path, shape: str) -> None:
    images = make().images
    torch.save(
        (images.double(), SOFT) if shape == "pair" else {"images": images, "labels": SOFT},
        tmp_path / "set.pt",
    )
    got = read_set(str(tmp_path / "set.pt"), info=make().info)
    assert torch.equal(got.images, images)
    assert got.soft_labels is not None
    assert torch.equal(got.soft_labels, SOFT)
    assert torch.equal(got.labels, make().labels)


def test_mtt_files_belong_together(make: Make, tmp_path: Path) -> None:
    torch.save(make().images, tmp_path / "images_best.pt")
    with pytest.raises(DataError, match=r"needs its labels beside it, in labels_best\.pt"):
        read_set(str(tmp_path / "images_best.pt"), info="digits")
    torch.save(make().labels, tmp_path / "labels_best.pt")
    for url in (tmp_path, tmp_path / "images_best.pt"):
        assert read_set(str(url), info="digits").digest == make().digest


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, (f"touch {self.path}",))


def test_pickles_that_run_code_are_refused(make: Make, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    torch.save(
        {"data": [[make().images, make().labels]], "accs_all_exps": Evil(trace)},
        tmp_path / "evil.pt",
    )
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(trace), protocol=2))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(DataError, match=f"{name} holds more than tensors and numbers"):
            read_set(str(tmp_path / name), info="digits")
    assert not trace.exists()
    pickle.loads(pickle.dumps(Evil(trace)))  # the trap itself works
    assert trace.exists()


def test_broken_pt_files_are_named(make: Make, tmp_path: Path) -> None:
    torch.save((make().images, make().labels), tmp_path / "set.pt")
    whole = (tmp_path / "set.pt").read_bytes()
    for data in (whole[: len(whole) // 2], b""):
        (tmp_path / "set.pt").write_bytes(data)
        with pytest.raises((TornFileError, DataError), match=r"set\.pt"):
            read_set(str(tmp_path / "set.pt"), info="digits")
    torch.save({"state_dict": {}}, tmp_path / "net.pt")
    weights = r"net\.pt holds keys \['state_dict'\]: a network's weights, no set of images; .*method\.teachers\.weights"
    with pytest.raises(DataError, match=weights):
        read_set(str(tmp_path / "net.pt"), info="digits")


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ([f"new{c:03d}" for c in range(10)], list(range(10))),
        ([str(c) for c in range(10)], list(range(10))),
        ([f"{c:05d}" for c in range(10)], list(range(10))),
        (
            ["n09", "n03", "n05", "n01", "n02", "n07", "n00", "n04", "n08", "n06"],
            [6, 3, 4, 1, 7, 2, 9, 5, 8, 0],
        ),
    ],
)
def test_class_folders_of_others_are_mapped(
    tmp_path: Path, names: list[str], order: list[int]
) -> None:
    jpegs(tmp_path, names)
    got = read_set(str(tmp_path), info="digits")
    assert got.labels.tolist() == [c for c in range(10) for _ in range(2)]
    torch.testing.assert_close(
        got.images[:, 0, 4, 4].int(),
        torch.tensor([20 * p for p in order for _ in range(2)]).int(),
        atol=2,
        rtol=0,
    )
    assert got.images.dtype == torch.uint8


def test_numbers_are_not_sorted_as_text(tmp_path: Path) -> None:
    info = replace(entry("digits").info, classes=12, class_names=())
    jpegs(tmp_path, [str(c) for c in range(12)], per_class=1)
    got = read_set(str(tmp_path), info=info)
    torch.testing.assert_close(
        got.images[:, 0, 0, 0].int(), torch.arange(12).int() * 20, atol=2, rtol=0
    )


def test_named_class_folders_follow_the_data_sets_own_order(tmp_path: Path) -> None:
    info = replace(entry("digits").info, classes=3, class_names=("zebra", "ant", "mole"))
    jpegs(tmp_path, ["zebra", "ant", "mole"], per_class=1)
    torch.testing.assert_close(
        read_set(str(tmp_path), info=info).images[:, 0, 0, 0].int(),
        torch.tensor([0, 20, 40]).int(),
        atol=2,
        rtol=0,
    )


def test_folder_names_that_the_catalog_lists_keep_its_order(tmp_path: Path) -> None:
    wnids = entry("imagenet10").classes
    jpegs(tmp_path, list(wnids), per_class=1)
    info = replace(entry("imagenet10").info, height=8, width=8)
    got = read_set(str(tmp_path), info=info).images[:, 0, 0, 0].int()
    assert list(wnids) != sorted(wnids)
    torch.testing.assert_close(got, torch.arange(10).int() * 20, atol=2, rtol=0)


def test_unknown_class_folders_are_refused(tmp_path: Path) -> None:
    jpegs(tmp_path / "few", ["cat", "dog"])
    with pytest.raises(DataError, match=r"2 class folders .* digits has 10 classes"):
        read_set(str(tmp_path / "few"), info="digits")
    jpegs(tmp_path / "many", [f"new{c:03d}" for c in range(8, 12)])
    with pytest.raises(DataError, match="number up to 11"):
        read_set(str(tmp_path / "many"), info="digits")


def test_damaged_and_odd_pictures_are_named(tmp_path: Path) -> None:
    jpegs(tmp_path, [str(c) for c in range(10)])
    odd = tmp_path / "4" / "class004_id001.jpg"
    Image.new("RGB", (9, 8)).save(odd)
    with pytest.raises(DataError, match=r"class004_id001.jpg is 9×8 pixels but .* is 8×8"):
        read_set(str(tmp_path), info="digits")
    odd.write_bytes(odd.read_bytes()[:200])
    with pytest.raises(DataError, match=r"class004_id001.jpg cannot be decoded"):
        read_set(str(tmp_path), info="digits")


def test_images_must_fit_the_data_set(tmp_path: Path) -> None:
    jpegs(tmp_path, [str(c) for c in range(10)], size=9)
    with pytest.raises(DataError, match="images are 1×9×9; those of digits are 1×8×8"):
        read_set(str(tmp_path), info="digits")


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def picture(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (8, 8), value).save(out, "PNG")
    return out.getvalue()


def test_tars_of_others_are_read_without_trusting_them(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    members = {
        "../../evil.png": picture(9),
        "../../evil.cls": b"3",
        "a/b.png": picture(7),
        "a/b.cls": b"1\n",
    }
    tar(tmp_path / "x.tar", {**members, "a/b.pkl": pickle.dumps(Evil(trace))})
    got = read_set(str(tmp_path / "x.tar"), info="digits")
    assert got.labels.tolist() == [3, 1]
    assert got.images[:, 0, 0, 0].tolist() == [9, 7]
    assert not trace.exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "x.tar"]


@pytest.mark.parametrize(
    "members",
    [
        {
            "img.0001.png": picture(7),
            "img.0001.cls": b"4",
            "img.0002.png": picture(9),
            "img.0002.cls": b"2",
        },
        {
            "1.png": picture(7),
            "1.json": b'{"label": 4}',
            "2.png": picture(9),
            "2.json": b'{"cls": 2, "view": "front"}',
        },
        {
            "1.png": picture(7),
            "1.cls": b"4",
            "1.depth.png": picture(3),
            "2.png": picture(9),
            "2.cls": b"2",
            "2.note.txt": b"x",
        },
    ],
    ids=["dots", "json", "other files"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_samples_are_found_by_their_names(
    tmp_path: Path, members: dict[str, bytes], packed: bool
) -> None:
    tar(tmp_path / "x.tar", members)
    if packed:
        (tmp_path / "x.tar.gz").write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
    got = read_set(str(tmp_path / ("x.tar.gz" if packed else "x.tar")), info="digits")
    assert got.labels.tolist() == [4, 2]
    assert got.images[:, 0, 0, 0].tolist() == [7, 9]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": picture(1)}, r"x\.tar: sample 'a' has no label"),
        ({"a.cls": b"1"}, r"x\.tar: sample 'a' has no picture"),
        ({"a.png": picture(1), "a.cls": b"one"}, r"sample 'a' \(\.cls\) cannot be read"),
        ({"a.png": picture(1)[:40], "a.cls": b"1"}, r"sample 'a' \(\.png\) cannot be decoded"),
        ({"a.txt": b"hello"}, "no sample with a picture"),
        (
            {"a.png": picture(1), "a.jpg": picture(2), "a.cls": b"1"},
            r"x\.tar: sample 'a' has two images",
        ),
        (
            {"a.png": picture(1), "a.cls": b"1", "a.json": b'{"label": 2}'},
            r"x\.tar: sample 'a' has two labels, 1 and 2",
        ),
        (
            {"a.png": picture(1), "a.json": b'{"label": 2, "cls": 3}'},
            r"x\.tar: sample 'a' has two labels, 3 and 2",
        ),
    ],
)
def test_incomplete_samples_are_named(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match=message):
        read_set(str(tmp_path / "x.tar"), info="digits")


def test_a_class_beside_soft_labels_that_say_another_is_told(tmp_path: Path) -> None:
    soft = json.dumps({"soft_label": [0.9] + [0.1 / 9] * 9}).encode()
    tar(
        tmp_path / "x.tar",
        {
            "a.png": picture(1),
            "a.cls": b"1",
            "a.json": soft,
            "b.png": picture(2),
            "b.cls": b"0",
            "b.json": soft,
        },
    )
    told: list[str] = []
    read_set(str(tmp_path / "x.tar"), info="digits", tell=told.append)
    assert any(
        "soft_label is learned (guessed), although in 1 of 2 samples" in line
        and "image 0, 1 and 0" in line
        for line in told
    )


def test_a_torn_tar_is_named(tmp_path: Path) -> None:
    tar(
        tmp_path / "x.tar",
        {
            f"{i}.{kind}": picture(i) if kind == "png" else b"1"
            for i in range(9)
            for kind in ("png", "cls")
        },
    )
    whole = (tmp_path / "x.tar").read_bytes()
    assert len(read_set(str(tmp_path / "x.tar"), info="digits")) == 9
    for size in (
        512 * 2 + 40,
        512 * 8,
        512 * 8 + 100,
        512 * 9 + 30,
        100,
    ):  # in a file, between two samples, in headers
        (tmp_path / "x.tar").write_bytes(whole[:size])
        with pytest.raises(TornFileError, match=r"x\.tar is torn"):
            read_set(str(tmp_path / "x.tar"), info="digits")


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("pt", "set.pt"),
        ("safetensors", "set.safetensors"),
        ("folder", "out"),
        ("webdataset", "out"),
    ],
)
def test_what_is_written_is_read_back(
    make: Make, digits: tuple[torch.Tensor, torch.Tensor], tmp_path: Path, to: str, name: str
) -> None:
    made = make(images=digits[0])
    write_set(made, str(tmp_path / name), to)
    got = read_set(str(tmp_path / name))
    assert got.info == made.info
    assert torch.equal(got.to_uint8(), made.to_uint8())
    assert all(torch.equal(a, b) for a, b in zip(got.tensors(), made.tensors()))
    assert raydd.load(str(tmp_path / name))[5][1] == 1


@pytest.mark.parametrize(("to", "name"), [("pt", "set.pt"), ("safetensors", "set.safetensors")])
def test_floats_survive_exactly(make: Make, tmp_path: Path, to: str, name: str) -> None:
    made = make(soft_labels=SOFT)
    write_set(made, str(tmp_path / name), to)
    assert read_set(str(tmp_path / name)).digest == made.digest


@pytest.mark.parametrize("scale", [2.0, 0.5])
def test_learnt_labels_survive_whatever_their_rows_sum_to(
    make: Make, tmp_path: Path, scale: float
) -> None:
    made = make(soft_labels=SOFT * scale)
    write_set(made, str(tmp_path / "set.pt"), "pt")
    assert torch.equal(read_set(str(tmp_path / "set.pt")).targets, SOFT * scale)
    assert read_set(str(tmp_path / "set.pt")).digest == made.digest


def test_soft_labels_survive_tars_but_not_folders(make: Make, tmp_path: Path) -> None:
    made = make(soft_labels=SOFT)
    write_set(made, str(tmp_path / "tars"), "webdataset")
    assert torch.equal(read_set(str(tmp_path / "tars")).targets, SOFT)
    with pytest.raises(ConfigError, match="cannot hold soft labels"):
        write_set(made, str(tmp_path / "folder"), "folder")


def test_dc_code_can_use_what_is_written(make: Make, tmp_path: Path) -> None:
    write_set(make(), str(tmp_path / "set.pt"), "pt")
    saved = torch.load(tmp_path / "set.pt", weights_only=True)
    images, labels = saved["data"][-1]
    assert torch.equal(images, make().images)
    assert torch.equal(labels, make().labels)
    assert saved["accs_all_exps"] == {}


def test_image_folders_are_torchvisions(make: Make, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    made = make(images=make().to_uint8())
    write_set(made, str(tmp_path / "out"), "folder")
    found = ImageFolder(str(tmp_path / "out"))
    assert found.targets == made.labels.tolist()
    pixels = torch.tensor(np.asarray(found[4][0]))[..., 0]
    assert torch.equal(pixels, made.images[4, 0])


def test_views_hold_decoded_images(make: Make, mirrored: Decoding, tmp_path: Path) -> None:
    made = make(images=make().to_uint8(), decoding=mirrored)
    write_set(made, str(tmp_path / "out"), "webdataset")
    got = read_set(str(tmp_path / "out"))
    assert torch.equal(got.to_uint8()[30:], made.images.flip(-1))
    assert got.labels.tolist() == made.labels.tolist() * 2


def test_bad_targets_are_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown format to write 'webdatset'.*did you mean 'webdataset'"
    ):
        write_set(make(), str(tmp_path / "x"), "webdatset")
    with pytest.raises(ConfigError, match=r"must end in \.pt"):
        write_set(make(), str(tmp_path / "x"), "pt")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        write_set(make(), str(tmp_path / "used"), "folder")


def test_what_is_no_set_says_what_was_found(make: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: an empty folder or nothing"):
        read_set(str(tmp_path / "nowhere"))
    with pytest.raises(
        DataError, match=r"set\.pkl: nothing, or a file that is not read; .*\.safetensors"
    ):
        read_set(str(tmp_path / "set.pkl"))
    with pytest.raises(DataError, match=r"gone\.pt does not exist"):
        read_set(str(tmp_path / "gone.pt"))
    torch.save((make().images, make().labels), tmp_path / "res.pt")
    with pytest.raises(
        DataError, match=r"no distilled set that is known; name one of its files, such as res\.pt"
    ):
        read_set(str(tmp_path))
    with pytest.raises(ConfigError, match=r"res\.pt \(pt\) does not say of which data set it is"):
        read_set(str(tmp_path / "res.pt"))
    with pytest.raises(ConfigError, match=r"unknown data set 'digts'.*did you mean 'digits'"):
        read_set(str(tmp_path / "res.pt"), info="digts")


def test_a_set_of_another_data_set_is_refused(make: Make, tmp_path: Path) -> None:
    publish(make(), str(tmp_path))
    assert read_set(str(tmp_path), info="digits").digest == make().digest
    with pytest.raises(
        DataError, match=r"has 10 classes and 1 channel.*cifar100 has 100 classes and 3 channels"
    ):
        read_set(str(tmp_path), info="cifar100")


def test_formats_are_told_apart(make: Make, tmp_path: Path) -> None:
    publish(make(), str(tmp_path / "run" / "distilled"))
    assert detect(str(tmp_path / "run")).format == "distilled"
    assert detect(str(tmp_path / "run" / "distilled" / "data.safetensors")).format == "safetensors"
    assert detect(str(tmp_path / "run" / "distilled" / "shards")).format == "webdataset"
    assert (
        detect(str(tmp_path / "run" / "distilled" / "shards" / "train-000000.tar")).format
        == "webdataset"
    )
    assert (
        read_set(str(tmp_path / "run" / "distilled" / "data.safetensors")).digest == make().digest
    )


def test_export_from_the_command_line(make: Make, tmp_path: Path) -> None:
    publish(make(), str(tmp_path / "run"))
    runner = CliRunner()
    done = runner.invoke(main, [str(tmp_path / "run"), "--to", "pt", str(tmp_path / "set.pt")])
    assert done.exit_code == 0, done.output
    assert "wrote 30 images of 10 classes as pt" in done.output
    again = runner.invoke(
        main,
        [str(tmp_path / "set.pt"), str(tmp_path / "out"), "--to", "folder", "--dataset", "digits"],
    )
    assert again.exit_code == 0, again.output
    assert len(list((tmp_path / "out").rglob("*.png"))) == 30
    failed = runner.invoke(main, [str(tmp_path / "none"), str(tmp_path / "x.pt"), "--to", "pt"])
    assert failed.exit_code == 2
    assert failed.output.startswith("error: ")
    assert "an empty folder or nothing" in failed.output


def test_info_may_be_facts(make: Make, tmp_path: Path) -> None:
    info = DatasetInfo(
        name="mine", classes=10, channels=1, height=8, width=8, mean=(0.5,), std=(0.25,)
    )
    torch.save((make().images, make().labels), tmp_path / "res.pt")
    assert raydd.load(str(tmp_path / "res.pt"), info=info).mean == (0.5,)


@pytest.mark.parametrize(("to", "name"), [("pt", "set.pt"), ("safetensors", "set.safetensors")])
def test_floats_keep_the_normalisation_they_were_written_with(
    make: Make, tmp_path: Path, to: str, name: str
) -> None:
    catalog = entry("digits").info
    made = make(info=replace(catalog, mean=(0.1,), std=(0.9,)))
    write_set(made, str(tmp_path / name), to)
    got = read_set(str(tmp_path / name), info=catalog)
    assert (got.mean, got.std) == ((0.1,), (0.9,))
    assert torch.equal(got.to_uint8(), made.to_uint8())
