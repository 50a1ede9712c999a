"""Sets of others evaluated from the command line: several experiments, whitened spaces, uneven
classes; nothing is overwritten.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from sklearn.datasets import load_digits

import raydd
from raydd.artifacts.formats import read_set
from raydd.artifacts.reading import Reading
from raydd.artifacts.whitening import fit
from raydd.cli import main
from raydd.core.errors import ConfigError
from raydd.data.catalog import entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data
from raydd.training.fit_whitening import FitWhitening

INFO = entry("digits").info
FEW = [
    "--dataset",
    "digits",
    "--networks",
    "convnet1_w8",
    "--epochs",
    "1",
    "--repeats",
    "2",
    "--baselines",
    "random",
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def real(shift: int = 0, classes: range = range(10)) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one real image of each class, normalised."""
    found = load_digits()
    ids = [(found.target == c).nonzero()[0][shift] for c in classes]
    pixels = torch.tensor(found.images[ids] / 16, dtype=torch.float32)[:, None]
    return (pixels - INFO.mean[0]) / INFO.std[0], torch.tensor(found.target[ids], dtype=torch.int64)


def evaluate(*args: str) -> Result:
    return CliRunner().invoke(main, ["evaluate", *args, "store=store"])


def report(folder: Path | str) -> dict[str, Any]:
    return dict(json.loads((Path(folder) / "report.json").read_text()))


@pytest.mark.slow
def test_all_experiments_are_pooled_beside_the_published_accuracies(here: Path) -> None:
    theirs = {"ConvNet": [0.5, 0.52, 0.6, 0.62, 0.7, 0.72], "MyNet": [0.1] * 6}
    torch.save(
        {"data": [list(real(k)) for k in range(3)], "accs_all_exps": theirs},
        "res_DM_digits_ConvNet_1ipc.pt",
    )
    file = "res_DM_digits_ConvNet_1ipc.pt"
    done = evaluate(file, *FEW, "--networks", "ConvNet", "--experiment", "all", "--output", "all")
    assert done.exit_code == 0, done.output
    row = report("all")["rows"][0]
    assert (row["seeds"], row["networks"]) == (3, 2)
    singles = []
    for k in range(3):
        one = evaluate(
            file, *FEW, "--networks", "ConvNet", "--experiment", str(k), "--output", f"one{k}"
        )
        assert "already in the store" in one.output, (
            "each experiment's students are those of the pool"
        )
        singles.append(report(f"one{k}")["rows"][0]["accuracy_mean"])
    assert row["accuracy_mean"] == pytest.approx(sum(singles) / 3)
    published = {p["network"]: p for p in report("all")["published"]}
    assert published["convnet3_w128"]["accuracy_mean"] == pytest.approx(61.0)
    assert published["convnet3_w128"]["networks"] == 6
    assert published["MyNet"]["accuracy_mean"] == pytest.approx(10.0)
    assert "published, %" in done.output
    assert {p["network"]: p["accuracy_mean"] for p in report("one1")["published"]}[
        "convnet3_w128"
    ] == pytest.approx(61.0)
    assert {p["network"]: p["accuracy_mean"] for p in report("one2")["published"]}[
        "convnet3_w128"
    ] == pytest.approx(71.0)
    for args, message in (
        ((file, *FEW, "--experiment", "3"), "holds 3 experiments; 3 is none of them"),
        ((file, *FEW, "--experiment", "every"), "'every' must be a number, or all"),
    ):
        refused = evaluate(*args)
        assert refused.exit_code == 2
        assert message in refused.output
    torch.save(real()[0], "images_best.pt")
    torch.save(real()[1], "labels_best.pt")
    assert (
        "experiment=all has no effect"
        in evaluate("images_best.pt", *FEW, "--experiment", "all").output
    )


def test_what_is_another_runs_is_never_overwritten(here: Path) -> None:
    torch.save(list(real()), "one.pt")
    torch.save(list(real(1)), "two.pt")
    assert evaluate("one.pt", *FEW, "--output", "report").exit_code == 0
    before = {path.name: path.read_bytes() for path in Path("report").iterdir()}
    again = evaluate("one.pt", *FEW, "--output", "report")
    assert again.exit_code == 0, again.output
    for name in ("log.jsonl", "report.html"):  # that it ran again
        before[name] = Path("report", name).read_bytes()
    for args, message in (
        (("two.pt", *FEW), "set: '"),
        (("one.pt", *FEW, "--epochs", "2"), "evaluation.epochs: 1 there, 2 now"),
        (("one.pt", *FEW, "seed=3"), "seed: 0 there, 3 now"),
    ):
        refused = evaluate(*args, "--output", "report")
        assert refused.exit_code == 2, refused.output
        assert "was made by a different job" in refused.output
        assert message in refused.output
    assert {path.name: path.read_bytes() for path in Path("report").iterdir()} == before
    Path("distilled").mkdir()
    Path("distilled/report.json").write_text("{}")
    refused = evaluate("one.pt", *FEW, "--output", "distilled")
    assert refused.exit_code == 2
    assert "holds report.json, not made by this job" in refused.output
    Path("pictures").mkdir()
    Path("pictures/grid.png").write_text("mine")
    refused = evaluate("one.pt", *FEW, "--output", "pictures")
    assert refused.exit_code == 2
    assert "holds grid.png, not made by this job" in refused.output
    assert [path.read_text() for path in Path("pictures").iterdir()] == ["mine"]
    Path("job").mkdir()
    Path("job/job.yaml").write_text(
        "name: quickstart\nmethod: {name: dm}\ndataset: {name: digits}\n"
    )
    assert "was made by a different job" in evaluate("one.pt", *FEW, "--output", "job").output
    assert Path("distilled/report.json").read_text() == "{}"


def test_guesses_are_printed_and_stay_in_the_report(here: Path) -> None:
    torch.save(list(real()), "one.pt")
    plan = evaluate("one.pt", *FEW, "--dry-run")
    assert "space: normalised (guessed: values range from -0.81" in plan.output
    done = evaluate("one.pt", *FEW, "--output", "report")
    assert "space: normalised (guessed" in done.output
    assert any("guessed" in note for note in report("report")["notes"])
    stated = evaluate("one.pt", *FEW, "--space", "normalised", "--output", "report")
    assert "guessed" not in stated.output.splitlines()[0]
    wrong = evaluate("one.pt", *FEW, "--space", "pixels255")
    assert wrong.exit_code == 2
    assert "space=pixels255 cannot be" in wrong.output


def test_classes_without_images_are_counted(here: Path) -> None:
    torch.save(list(real(classes=range(5))), "half.pt")
    done = evaluate("half.pt", *FEW, "--output", "report")
    assert done.exit_code == 0, done.output
    assert "5 images of 5 of 10 classes" in done.output
    assert "1 image per class" not in done.output
    assert report("report")["size"] == "5 images of 5 of 10 classes"
    assert (
        "set has 5 images of 5 of 10 classes, the other sets 1 of each class."
        in report("report")["notes"]
    )
    images, labels = real()
    torch.save([torch.cat([images, images[:3]]), torch.cat([labels, labels[:3]])], "more.pt")
    assert evaluate("more.pt", *FEW, "--output", "more").exit_code == 0
    assert report("more")["size"] == "13 images, 1 to 2 of each class"


def test_labels_are_a_kind_or_a_place(here: Path) -> None:
    images, labels = real()
    torch.save([images, torch.nn.functional.one_hot(labels) * 5.0], "logits.pt")
    assert "labels: logits" in evaluate("logits.pt", *FEW, "--dry-run").output
    assert (
        "labels: logits"
        not in evaluate("logits.pt", *FEW, "--labels", "logits", "--dry-run").output
    )
    assert (
        "labels=probabilities cannot be"
        in evaluate("logits.pt", *FEW, "--labels", "probabilities", "--dry-run").output
    )
    assert (
        "holds no epoch_<e>/batch_<j>.tar"
        in evaluate("logits.pt", *FEW, "--labels", "./logits", "--dry-run").output
    )


# -- whitened spaces -------------------------------------------------------------------------------------------------


def train_pixels() -> torch.Tensor:
    data = open_data(DatasetConfig(name="digits"))["train"]
    return data.take(torch.arange(len(data))).flatten(1).double() / 255


def test_the_whitenings_are_those_of_the_published_code() -> None:
    values = train_pixels()
    data = open_data(DatasetConfig(name="digits"))["train"]
    found = fit(data, "zca")  # as kornia's ZCAWhitening(eps=0.1) has it
    covariance = torch.cov(values.T)
    u, s, _ = torch.linalg.svd(covariance)
    torch.testing.assert_close(
        found.matrix.double(), u @ torch.diag((s + 0.1).rsqrt()) @ u.T, atol=1e-6, rtol=0
    )
    torch.testing.assert_close(found.mean.double(), values.mean(0), atol=1e-6, rtol=0)
    own = values - values.mean(1, keepdim=True)
    own = own / own.norm(dim=1, keepdim=True)
    found = fit(data, "zca_per_image")
    s, u = torch.linalg.eigh(own.T @ own / len(own))
    assert float(s.sum()) == pytest.approx(1)
    torch.testing.assert_close(
        found.matrix.double(), u @ torch.diag((s + 0.1 / 64).rsqrt()) @ u.T, atol=1e-4, rtol=1e-5
    )
    assert found.per_image
    assert not found.mean.any()


@pytest.mark.parametrize("space", ["zca", "zca_per_image"])
def test_test_images_of_a_whitened_set_are_whitened(here: Path, space: str) -> None:
    images, labels = real()
    pixels = images * INFO.std[0] + INFO.mean[0]
    whitening = fit(open_data(DatasetConfig(name="digits"))["train"], space)
    torch.save(whitening.apply(pixels), "images_best.pt")
    torch.save(labels, "labels_best.pt")
    done = evaluate(".", *FEW, "--space", space, "--output", "report")
    assert done.exit_code == 0, done.output
    assert "init/FitWhitening" in done.output
    assert any("Test images are whitened" in note for note in report("report")["notes"])
    row = report("report")["rows"][0]
    assert (row["stored"], row["seen"], row["further_bytes"]) == (
        len(labels),
        len(labels),
        4 * 64 * 65,
    )
    assert "in all" in done.output
    dataset = raydd.load(".", info="digits", space=space)
    whitening = dataset.distilled.whitening
    assert whitening is not None
    torch.testing.assert_close(dataset[0][0], whitening.apply(pixels)[0], atol=1e-5, rtol=0)
    if space == "zca":
        torch.testing.assert_close(dataset.to_rgb(), pixels, atol=1e-4, rtol=0)
    for to, name in (("pt", "out.pt"), ("safetensors", "out.safetensors")):
        written = CliRunner().invoke(
            main, ["export", ".", name, "--to", to, "--dataset", "digits", "--space", space]
        )
        assert written.exit_code == 0, written.output
        back = read_set(name)
        assert back.digest == dataset.distilled.digest
        assert torch.equal(back.whitening.matrix, whitening.matrix)  # type: ignore[union-attr]


def test_a_whitened_protocol_whitens_what_stands_beside_a_whitened_set(here: Path) -> None:
    """The set is a random one, whitened by hand: its students are those of the pixels it was made of."""
    images, labels = real()
    pixels = images * INFO.std[0] + INFO.mean[0]
    whitening = fit(open_data(DatasetConfig(name="digits"))["train"], "zca_per_image")
    torch.save({"images": whitening.apply(pixels), "labels": labels}, "white.pt")
    torch.save({"images": pixels, "labels": labels}, "plain.pt")
    found = []
    for name, space in (("white.pt", "zca_per_image"), ("plain.pt", "pixels")):
        done = evaluate(
            name, "--dataset", "digits", "--protocol", "rat_bptt", "--networks", "convnet1_w8", "--epochs", "5",
            "--repeats", "1", "--space", space, "--output", f"of_{space}",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        assert done.output.count("init/FitWhitening") >= 1
        found.append(report(f"of_{space}"))
        assert not any("not whitened" in note for note in found[-1]["notes"])
    white, plain = ([row["accuracy_mean"] for row in of["rows"]] for of in found)
    assert white == pytest.approx(plain, abs=0.6), "rounding may turn one of 359 test images"
    assert found[0]["rows"][0]["whitening_bytes"] == 4 * 64 * 65


def test_a_whitening_that_cannot_be_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"space=zca: the whitening of images of 150,528 values .* at most 20,000"
    ):
        FitWhitening(seed=0, dataset=entry("imagenet").info, space="zca")
    info = entry("cifar10").info
    torch.save([torch.randn(10, *info.shape), torch.arange(10)], "set.pt")
    with pytest.raises(
        ConfigError,
        match=r"space=zca: the whitening is that of cifar10's training images: .*cifar-10",
    ):
        raydd.load("set.pt", info="cifar10", space="zca")
    assert (
        read_set("set.pt", info=replace(info, name="mine"), reading=Reading(space="zca")).recipe[
            "space"
        ]
        == "zca"
    )


def test_students_learn_from_the_tiles_of_a_packed_file(here: Path) -> None:
    torch.save(real(), "best.pt")
    asked = ["best.pt", *FEW, "--space", "normalised", "--decoding", "partition"]
    done = evaluate(*asked, "--output", "report")
    assert done.exit_code == 0, done.output
    row = report("report")["rows"][0]
    assert (row["stored"], row["seen"], row["image_bytes"], row["further_bytes"]) == (
        10,
        40,
        10 * 64 * 4,
        0,
    )
    assert "stored  seen" in done.output
    assert "set: 10 images, of which students see 40, at " in done.output
    assert report("report")["size"] == "1 image per class stored, 40 images seen"
    assert "digits, 1 image per class stored, 40 images seen" in done.output
    assert (
        "set has 1 image per class stored, 40 images seen, the other sets 1 of each class"
        in done.output
    )
    written = CliRunner().invoke(
        main, ["export", "best.pt", "out.pt", "--to", "pt", "--dataset", "digits", *asked[-4:]]
    )
    assert written.exit_code == 0, written.output
    seen = raydd.load("best.pt", info="digits", space="normalised", decoding="partition")
    assert torch.equal(raydd.load("out.pt").tensors()[0], seen.tensors()[0])
    refused = evaluate("best.pt", *FEW, "--decoding", "partitions")
    assert refused.exit_code == 2
    assert "did you mean 'partition'" in refused.output
    refused = evaluate(*asked, "--factor", "3")
    assert "factor=3 does not divide images of 8×8" in refused.output


def test_students_learn_from_the_images_of_a_grid(here: Path) -> None:
    images, labels = real()
    torch.save([(images * INFO.std[0] + INFO.mean[0]).clamp(0, 1), labels], "data.pt")
    done = evaluate("data.pt", *FEW, "--space", "pixels", "--factor", "2", "--output", "report")
    assert done.exit_code == 0, done.output
    assert report("report")["rows"][0]["image_bytes"] == 10 * 64 * 4, (
        "what is stored, not what is cut out of it"
    )
    assert report("report")["ipc"] == 1
