"""Space files: what is read of them, and what is refused before anything starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from raydd.config import JobFile
from raydd.core.dotted_keys import with_values
from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.core.typed_tree import plain
from raydd.search.domains import Choice, Integer, Stepped, Uniform, domain, label
from raydd.search.searchers import searcher
from raydd.search.space import Space
from raydd.search.space_reading import parse_space
from raydd.search.whole_settings import whole_settings

JOB: dict[str, Any] = {
    "name": "job",
    "dataset": {"name": "digits"},
    "ipc": 1,
    "method": {"name": "dm", "network": "convnet1_w8", "iterations": 6, "lr_img": 0.5},
    "evaluation": {"epochs": 2, "repeats": 2},
    "output": "/nowhere/output",
    "store": "/nowhere/store",
}
GIVEN = JobFile("job.yaml", JOB)
TREE = plain(GIVEN.job())


def space_of(keys: Mapping[str, Any], job: JobFile = GIVEN, **more: Any) -> Space:
    """Return the space of a tree named ``space.yaml``."""
    return parse_space({"keys": dict(keys), **more}, job, "space.yaml")


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ({"choice": [1, 2]}, Choice((1, 2))),
        ({"grid": ["a", [1, 2]]}, Choice(("a", [1, 2]))),
        ({"uniform": [0, 1]}, Uniform(0.0, 1.0)),
        ({"loguniform": ["1e-3", 10]}, Uniform(1e-3, 10.0, logarithmic=True)),
        ({"quniform": [0, 1, 0.25]}, Stepped(0.0, 1.0, 0.25)),
        ({"randint": [1, 3]}, Integer(1, 3)),
    ],
)
def test_kinds_are_read(entry: Mapping[str, Any], wanted: object) -> None:
    assert domain("key", entry, "space.yaml") == wanted


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"unifrom": [0, 1]}, "keys.key.unifrom: unknown kind (did you mean 'uniform'?)"),
        ({}, "give one of"),
        ({"uniform": [0, 1], "choice": [1]}, "give one of"),
        ({"uniform": [1, 0]}, "low 1 must be below high 0"),
        ({"uniform": [0]}, "write [low, high]"),
        ({"uniform": [0, True]}, "write [low, high]"),
        ({"uniform": [0, float("inf")]}, "write [low, high]"),
        ({"loguniform": [0, 1]}, "low 0 must be above 0"),
        ({"quniform": [0, 1, 2]}, "step 2"),
        ({"quniform": [0, 1, 0]}, "step 0"),
        ({"randint": [0, 1.5]}, "whole numbers"),
        ({"choice": []}, "write a list"),
        ({"choice": "ab"}, "write a list"),
        ({"choice": [1, 1]}, "holds a value twice"),
    ],
)
def test_kinds_that_are_none_are_refused(entry: Mapping[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        domain("key", entry, "space.yaml")
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("keys", "more", "text"),
    [
        ({"method.lr_imgg": {"uniform": [0.1, 1]}}, {}, "did you mean 'method.lr_img'?"),
        ({"method.lr_img": {"uniform": [-1, 1]}}, {}, "method.lr_img"),
        ({"method.iterations": {"choice": [5, 2.5]}}, {}, "method.iterations"),
        ({"evaluation.networks": {"choice": [["convnet3"], ["convet3"]]}}, {}, "convet3"),
        ({"output": {"choice": ["a", "b"]}}, {}, "output changes nothing of a set"),
        ({"compute.workers": {"choice": [1, 2]}}, {}, "compute changes nothing of a set"),
        ({"seed": {"choice": [1, 2]}}, {}, "seed is the sweep's own"),
        ({"dataset.holdout": {"uniform": [0.1, 0.2]}}, {}, "dataset.holdout is the sweep's own"),
        ({"numerics": {"choice": [1]}}, {}, "is a group of keys; search one of them: numerics."),
        ({}, {}, "name at least one key"),
        (
            {"method.lr_img": {"uniform": [0.1, 1]}},
            {"search": "grid"},
            "a grid needs choice or grid",
        ),
        (
            {"method.lr_img": {"uniform": [0.1, 1]}},
            {"metric": "acuracy"},
            "did you mean 'accuracy'?",
        ),
        ({"method.lr_img": {"uniform": [0.1, 1]}}, {"metric": "hlr"}, "'whole'"),
        (
            {"method.lr_img": {"uniform": [0.1, 1]}},
            {"metric": "best_accuracy"},
            "evaluation.test_every",
        ),
        (
            {"method.lr_img": {"uniform": [0.1, 1]}},
            {"metric": "accuracy/lenet"},
            "evaluation.networks",
        ),
        ({"method.lr_img": {"uniform": [0.1, 1]}}, {"scheduler": "asha"}, "evaluation.every"),
        (
            {"method.lr_img": {"uniform": [0.1, 1]}},
            {"trial": {"method.lr_img": 1.0}},
            "stands under trial",
        ),
        (
            {"method.lr_img": {"uniform": [0.1, 1]}},
            {"trial": {"method.iteration": 1}},
            "'method.iterations'?",
        ),
        (
            {"method.lr_img": {"uniform": [0.1, 1]}},
            {"final": {"method.iterations": 1}},
            "keys of evaluation only",
        ),
        (
            {"method.lr_img": {"uniform": [0.1, 1]}},
            {"points": [{"method.lr_img": 2.0}]},
            "2 is outside 0.1 to 1",
        ),
        (
            {"method.lr_img": {"uniform": [0.1, 1]}},
            {"points": [{"method.lr_im": 0.2}]},
            "did you mean 'method.lr_img'?",
        ),
        (
            {"method.lr_img": {"uniform": [0.1, 1]}},
            {"stopping": {"grace": 5}},
            "stopping.grace has no effect with scheduler: none",
        ),
        (
            {"method.lr_img": {"uniform": [0.1, 1]}},
            {"stopping": {"reduction": 2}, "scheduler": "median"},
            "stopping.reduction has no effect with scheduler: median",
        ),
        ({"method.lr_img": {"uniform": [0.1, 1]}}, {"holdout": 1.5}, "holdout"),
        (
            {"method.lr_img": {"uniform": [0.1, 1]}},
            {"holdout": 0},
            "holdout: Input should be greater than 0, not 0",
        ),
        ({"method.lr_img": {"uniform": [0.1, 1]}}, {"serch": "tpe"}, "did you mean 'search'?"),
        ({"method.lr_img": {"uniform": [0.1, 1], "when": {"ipcc": 1}}}, {}, "did you mean 'ipc'?"),
        (
            {"method.lr_img": {"uniform": [0.1, 1], "when": {"ipc": 1}}, "ipc": {"choice": [1, 2]}},
            {},
            "searched above this one if it is searched",
        ),
        ({"method.batch_real": {"uniform": [1, 8]}}, {}, "valid integer"),
        ({"method.batch_real": {"loguniform": [16, 128]}}, {}, "valid integer"),
        ({"method.batch_real": {"quniform": [1, 4, 1.5]}}, {}, "valid integer"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(
    keys: Mapping[str, Any], more: Mapping[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError) as error:
        space_of(keys, **more)
    assert text in str(error.value)


def test_all_mistakes_are_told_together() -> None:
    with pytest.raises(ConfigError) as error:
        space_of({"method.lr": {"uniform": [0, 1]}, "output": {"choice": ["a"]}})
    assert "keys.method.lr:" in str(error.value)
    assert "keys.output:" in str(error.value)


def test_nested_keys_of_overrides_are_dotted_ones() -> None:
    found = parse_space(
        {
            "keys": {
                "method.lr_img": {"uniform": [0.1, 1]},
                "method": {"lr_img": {"uniform": [0.2, 1]}},
            },
            "trial": {"method.iterations": 5, "method": {"iterations": 4}},
        },
        GIVEN,
        "space.yaml",
    )
    assert found.keys[0].domain == Uniform(0.2, 1.0)
    assert found.file.trial == {"method.iterations": 4}


def test_a_grid_holds_every_combination_once_without_idle_keys() -> None:
    found = space_of(
        {
            "ipc": {"grid": [1, 2]},
            "method.lr_img": {"grid": [0.1, 0.2], "when": {"ipc": 2}},
        },
        search="grid",
    )
    assert found.grid() == [
        {"ipc": 1},
        {"ipc": 2, "method.lr_img": 0.1},
        {"ipc": 2, "method.lr_img": 0.2},
    ]
    assert found.own == {"ipc": 1}


def test_corners_are_the_job_each_end_and_a_point_between() -> None:
    found = space_of({"method.lr_img": {"loguniform": [0.1, 1]}, "ipc": {"randint": [1, 3]}})
    own = {"method.lr_img": 0.5, "ipc": 1}
    assert found.corners() == [
        own,
        {**own, "method.lr_img": 0.1},
        {**own, "method.lr_img": 1.0},
        {**own, "method.lr_img": pytest.approx(0.4438, abs=1e-4)},
        {**own, "ipc": 3},
    ]


def test_values_are_set_without_changing_the_tree() -> None:
    tree = with_values(TREE, {"method.lr_img": 2.0, "evaluation.ce_weight": 0.1})
    assert (tree["method"]["lr_img"], tree["evaluation"]["ce_weight"]) == (2.0, 0.1)
    assert (TREE["method"]["lr_img"], TREE["evaluation"]["ce_weight"]) == (0.5, None)


@pytest.mark.parametrize(("metric", "mode"), [("accuracy", "max"), ("image_bytes", "min")])
def test_a_metric_says_which_way_is_better(metric: str, mode: str) -> None:
    found = space_of({"ipc": {"choice": [1, 2]}}, metric=metric)
    assert found.mode == mode
    assert space_of({"ipc": {"choice": [1, 2]}}, metric=metric, mode="min").mode == "min"


def test_a_key_that_never_has_an_effect_is_not_tried() -> None:
    keys = {"method.lr_img": {"uniform": [0.1, 1], "when": {"ipc": [10, 50]}}}
    assert space_of(keys).corners() == [{}]
    assert len(space_of({"ipc": {"choice": [1, 10, 50]}, **keys}).corners()) == 6


def test_a_condition_is_of_what_trials_have() -> None:
    keys = {"method.lr_img": {"grid": [1, 2], "when": {"method.iterations": 5}}}
    assert space_of(keys, search="grid").grid() == [{}]
    shorter = space_of(keys, search="grid", trial={"method.iterations": 5})
    assert shorter.grid() == [{"method.lr_img": 1}, {"method.lr_img": 2}]


def test_what_a_job_leaves_to_its_protocol_is_its_own_value() -> None:
    keys = {"evaluation.lr": {"loguniform": [1e-3, 0.1]}}
    assert space_of(keys).own == {"evaluation.lr": 0.01}
    augmented = JobFile("job.yaml", {**JOB, "evaluation": {"protocol": "dc"}})
    found = space_of({"evaluation.epochs": {"choice": [9]}}, augmented)
    assert found.own == {"evaluation.epochs": None}, "300, or 1000 where augmented: not one number"


@pytest.mark.parametrize(("one", "two"), [(1, 1.0), ([0, 1.0], (0.0, 1)), ({"a": 2}, {"a": 2.0})])
def test_equal_values_have_equal_labels(one: object, two: object) -> None:
    assert label(one) == label(two)
    assert label(True) != label(1)
    assert label(0.5) == "0.5"


BY_IPC = dataclasses.replace(
    GIVEN,
    by_ipc={1: {"method.batch_real": 9}, 5: {"method.lr_img": 7.0, "method.batch_real": 8}},
    overrides=("method.iterations=3",),
)
"""At one image per class and at five a job of its own, each with an override."""


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({}, (9, 0.5, 3)),
        ({"ipc": 1}, (9, 0.5, 3)),
        ({"ipc": 5}, (8, 7.0, 3)),
        ({"ipc": 3}, (256, 0.5, 3)),
        ({"ipc": 4}, (256, 0.5, 3)),
    ],
)
def test_a_trial_has_what_the_job_sets_for_its_images_per_class(
    values: Mapping[str, Any], found: tuple[Any, ...]
) -> None:
    space = space_of({"ipc": {"choice": [1, 3, 4, 5]}}, BY_IPC)
    method = space.tree(values)["method"]
    assert (method["batch_real"], method["lr_img"], method["iterations"]) == found
    assert space.by_ipc() == {
        "3": {"method.batch_real": 256},
        "4": {"method.batch_real": 256},
        "5": {"method.batch_real": 8, "method.lr_img": 7.0},
    }
    assert space_of({"ipc": {"choice": [1, 5]}}).by_ipc() == {}
    lr = {"choice": [0.5, 1]}
    searched = space_of({"ipc": {"choice": [1, 5]}, "method.lr_img": lr}, BY_IPC)
    assert searched.by_ipc() == {"5": {"method.batch_real": 8}}, "the others have what they set"
    kept = space_of({"ipc": {"choice": [1, 5]}}, BY_IPC, trial={"method.batch_real": 4})
    assert kept.by_ipc() == {"5": {"method.lr_img": 7.0}}
    sometimes = {"method.lr_img": lr | {"when": {"ipc": 1}}}
    assert (
        "method.lr_img" in space_of({"ipc": {"choice": [1, 5]}, **sometimes}, BY_IPC).by_ipc()["5"]
    )


def test_what_a_space_sets_for_all_trials_says_what_the_job_sets_by_it() -> None:
    space = space_of({"method.lr_img": {"choice": [1, 2]}}, BY_IPC, trial={"ipc": 5})
    assert space.tree({"method.lr_img": 1})["method"]["batch_real"] == 8
    assert space.by_ipc() == {"5": {"method.batch_real": 8}}
    assert space.tree({"ipc": 1})["method"]["batch_real"] == 9


def test_every_number_with_settings_of_its_own_is_tried() -> None:
    wrong = dataclasses.replace(BY_IPC, by_ipc={5: {"method.batch_real": -8}})
    assert space_of({"ipc": {"randint": [1, 4]}}, wrong).by_ipc() == {}
    with pytest.raises(ConfigError, match=r"method\.batch_real: .* not -8"):
        space_of({"ipc": {"randint": [1, 9]}}, wrong)


def test_a_condition_on_what_is_set_by_ipc_is_of_the_trials_ipc() -> None:
    lr = {"method.lr_img": {"choice": [1.0], "when": {"method.batch_real": 8}}}
    space = space_of({"ipc": {"grid": [1, 5]}, **lr}, BY_IPC, search="grid")
    assert space.grid() == [{"ipc": 1}, {"ipc": 5, "method.lr_img": 1.0}]
    with pytest.raises(ConfigError, match=r"job\.yaml sets it by ipc: search ipc above this key"):
        space_of({**lr, "ipc": {"grid": [1, 5]}}, BY_IPC, search="grid")


WINDOWS = JobFile(
    "job.yaml",
    {
        **JOB,
        "method": {
            **{
                "name": "rat_bptt",
                "network": "convnet1_w8",
                "iterations": 6,
                "space": "normalised",
            },
            **{"window": 10, "totwindow": 20},
        },
        "evaluation": {"protocol": "rat_bptt", "space": "normalised", "epochs": 2, "repeats": 2},
    },
)
LONGER = {"method.window": {"randint": [5, 100]}, "method.totwindow": {"randint": [30, 400]}}


def test_an_end_that_goes_with_other_values_than_the_jobs_own_is_none_too_many() -> None:
    """A window of 100 does not fit the job's 20 steps, but the 400 that are searched, too."""
    found = space_of(LONGER, WINDOWS)
    settings, mistakes = whole_settings(found, found.refusal)
    assert mistakes == []
    assert {"method.window": 100, "method.totwindow": 400} in settings
    assert settings[0] == {"method.window": 10, "method.totwindow": 20}
    assert all(found.refusal(values) is None for values in settings)


def test_two_keys_are_moved_where_one_does_not_do() -> None:
    """Steps before a window of 100 are at least 50: only with 400 in all, and such a window."""
    keys = {**LONGER, "method.minwindow": {"choice": [0, 300]}}
    settings, mistakes = whole_settings(space_of(keys, WINDOWS), space_of(keys, WINDOWS).refusal)
    assert mistakes == []
    assert all(
        values["method.totwindow"] == 400 for values in settings if values["method.minwindow"]
    )


def test_an_end_that_goes_with_nothing_is_named_with_what_it_hangs_on() -> None:
    keys = {**LONGER, "method.totwindow": {"choice": [20, 50]}}
    with pytest.raises(ConfigError) as error:
        space_of(keys, WINDOWS)
    text = str(error.value)
    assert "method.window=100 goes with no value of method.totwindow that is tried" in text
    assert "method.window=100, method.totwindow=20: " in text
    assert "totwindow=20 is shorter than the window of 100" in text
    assert "method.lr_img" not in text


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_what_cannot_be_is_drawn_again(search: str) -> None:
    keys = {"method.window": {"randint": [5, 100]}, "method.totwindow": {"randint": [20, 110]}}
    found = space_of(keys, WINDOWS, search=search, budget={"trials": 30})
    proposals = [searcher(found).propose(number, []) for number in range(30)]
    assert all(values["method.window"] <= values["method.totwindow"] for values in proposals)
    assert proposals == [searcher(found).propose(number, []) for number in range(30)]
    if search == "tpe":
        return
    first = [
        {
            key: domain(key, keys[key], "").draw(generator(0, "sweep", number, place))
            for place, key in enumerate(keys)
        }
        for number in range(30)
    ]
    kept = [one for one in first if one["method.window"] <= one["method.totwindow"]]
    assert 5 < len(kept) < 30
    assert [one for one in proposals if one in first] == kept, "what can be stays as it is drawn"


def test_a_grid_leaves_out_what_cannot_be() -> None:
    keys = {"method.window": {"grid": [10, 100]}, "method.totwindow": {"grid": [20, 400]}}
    found = space_of(keys, WINDOWS, search="grid")
    assert [tuple(values.values()) for values in found.grid()] == [(10, 20), (10, 400), (100, 400)]
    assert len(found.combinations()) == 4
