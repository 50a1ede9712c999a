"""Sweeps in this process: trials, what they share, the winner's test, kills, failures."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from raydd.cli import main
from raydd.config import load_job, read_job
from raydd.core.errors import ConfigError, RunFailed
from raydd.core.storage import Storage
from raydd.runtime.control import Control
from raydd.runtime.session import Interrupted
from raydd.runtime.sweep import sweeping
from raydd.runtime.sweep.final_jobs import final_job
from raydd.runtime.sweep.sweep_plan import Sweep
from raydd.runtime.sweep.trial_tracking import tracked_here, tracked_on
from raydd.search.desk import SweepDesk
from raydd.search.results import SweepReport, place_of_test
from raydd.search.trials import Trial, TrialJournal

torch.set_num_threads(1)
pytestmark = pytest.mark.slow

DM = {"name": "dm", "network": "convnet1_w8", "iterations": 6, "batch_real": 8, "lr_img": 1.0}
LR = {"method.lr_img": {"choice": [0.1, 1.0, 10.0]}}


class Killed(BaseException):
    """What a kill looks like from inside: nothing is cleaned up by it."""


def sweep_of(folder: Path, space: Mapping[str, Any], output: str = "sweep", **job: Any) -> Sweep:
    """Return a sweep over small digits, in this process."""
    tree: dict[str, Any] = {
        "dataset": {"name": "digits"},
        "ipc": 1,
        "method": DM,
        "evaluation": {"epochs": 20, "repeats": 2},  # enough for values to differ
        "output": str(folder / output),
        "store": str(folder / "store"),
        "compute": {"workers": 0},
        "tracking": {"uri": "none"},
        **job,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(tree))
    (folder / "space.yaml").write_text(yaml.safe_dump(dict(space)))
    return sweeping.make_sweep(read_job(str(folder / "job.yaml")), str(folder / "space.yaml"))


def quiet(line: str) -> None: ...


def facts(report: SweepReport) -> list[tuple[Any, ...]]:
    """Return what of a table must not depend on kills."""
    return [(t.number, dict(t.values), t.state, t.value, t.error, t.origin) for t in report.trials]


def test_a_sweep_ends_in_a_winner_that_is_tested_once_beside_the_job_and_random(
    tmp_path: Path,
) -> None:
    sweep = sweep_of(tmp_path, {"search": "grid", "keys": LR})
    outcome = sweeping.run_sweep(sweep, quiet)
    report = outcome.report
    assert [dict(trial.values) for trial in report.trials] == [
        {"method.lr_img": value} for value in (1.0, 0.1, 10.0)
    ]
    best = max(report.trials, key=lambda trial: (trial.value or 0.0, -trial.number))
    assert report.winner == best.number
    sets = [(one.set, one.trial) for one in report.tested]
    assert ("best", best.number) in sets
    assert ("random", None) in sets
    if best.number:
        assert ("job", 0) in sets
    assert report.split == "holdout"
    for trial in report.trials:
        tree = json.loads(Path(sweep.output, sweep.place(trial.number), "report.json").read_text())
        assert tree["split"] == "holdout"
        assert {row["set"] for row in tree["rows"]} == {"dm"}
        assert trial.value == tree["rows"][0]["accuracy_mean"]
    final = json.loads(Path(sweep.output, place_of_test(best.number), "report.json").read_text())
    assert final["split"] == "test"
    text = outcome.render()
    for words in ("accuracy (holdout)", "tested once, fresh students", "random", "shared: "):
        assert words in text


def test_the_best_job_is_complete_and_makes_the_same_set_from_the_store(tmp_path: Path) -> None:
    from raydd.runtime.pipeline import run_job

    sweep = sweep_of(tmp_path, {"search": "grid", "keys": LR})
    report = sweeping.run_sweep(sweep, quiet).report
    made: list[Any] = []
    job = load_job(str(Path(sweep.output, "best.yaml")), [f"output={tmp_path / 'again'}"])
    again = run_job(job, quiet, Control(on_event=made.append)).report
    assert not [event for event in made if event.kind == "output" and not event.cached]
    own = next(one for one in report.tested if one.set == "best")
    assert again.rows[0].accuracy_mean == own.accuracy_mean
    refit = load_job(str(Path(sweep.output, "refit.yaml")))
    assert refit.dataset.holdout == 0
    best = report.trials[report.winner or 0]
    assert refit.method.lr_img == best.values["method.lr_img"]  # type: ignore[attr-defined]


def test_students_of_the_test_are_none_that_selected(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"search": "grid", "keys": LR})
    trial = sweep.trial(1, {"method.lr_img": 0.1})
    from raydd.runtime.planning import make_plan
    from raydd.runtime.session import described

    final = final_job(sweep, Trial(1, {"method.lr_img": 0.1}, "grid"))
    info = described(trial.dataset, "test").info
    one, two = make_plan(trial, info), make_plan(final, info)
    seeds = [{e.stage.seed for e in plan.evaluation.entries} for plan in (one, two)]
    assert seeds[0].isdisjoint(seeds[1])
    sets = [
        {ref.key for ref in plan.job.method.targets(plan.problems[0]).values()}
        for plan in (one, two)
    ]
    assert sets[0] == sets[1]


@pytest.mark.parametrize("search", ["grid", "random", "tpe"])
@pytest.mark.parametrize("after", [1, 3])
def test_a_killed_sweep_goes_on_to_the_same_table(
    tmp_path: Path, search: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = LR if search == "grid" else {"method.lr_img": {"loguniform": [0.1, 10]}}
    space = {"search": search, "startup": 2, "keys": keys, "budget": {"trials": 4}}
    (tmp_path / "whole").mkdir()
    whole = sweeping.run_sweep(sweep_of(tmp_path / "whole", space), quiet).report
    begun: list[int] = []
    begin = SweepDesk.begin

    def counting(self: SweepDesk, number: int) -> Any:
        begun.append(number)
        return begin(self, number)

    def killed(self: TrialJournal, trial: Trial) -> None:
        write(self, trial)
        if trial.state == "finished" and trial.number + 1 == after:
            raise Killed

    write = TrialJournal.write
    monkeypatch.setattr(SweepDesk, "begin", counting)
    monkeypatch.setattr(TrialJournal, "write", killed)
    with pytest.raises(Killed):
        sweeping.run_sweep(sweep_of(tmp_path, space), quiet)
    monkeypatch.setattr(TrialJournal, "write", write)
    again = sweeping.run_sweep(sweep_of(tmp_path, space), quiet).report
    assert len({trial.value for trial in whole.trials}) > 2
    assert facts(again) == facts(whole)
    assert again.winner == whole.winner
    assert [(one.set, one.accuracy_mean) for one in again.tested] == [
        (one.set, one.accuracy_mean) for one in whole.tested
    ]
    assert len(begun) == len(set(begun)) == len(whole.trials)


def test_a_trial_that_was_cut_goes_on_from_its_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {"search": "grid", "keys": LR, "trial": {"evaluation.every": 2}}
    judged = SweepDesk.judged

    def killed(self: SweepDesk, number: int, step: int, value: float) -> bool:
        found = judged(self, number, step, value)
        if (number, step) == (1, 4):
            raise Killed
        return found

    monkeypatch.setattr(SweepDesk, "judged", killed)
    with pytest.raises(Killed):
        sweeping.run_sweep(sweep_of(tmp_path, space), quiet)
    monkeypatch.setattr(SweepDesk, "judged", judged)
    report = sweeping.run_sweep(sweep_of(tmp_path, space), quiet).report
    assert [trial.attempts for trial in report.trials] == [1, 2, 1]
    assert [[one.step for one in trial.judged] for trial in report.trials] == [[0, 2, 4]] * 3
    assert report.trials[1].computed < report.trials[0].computed
    assert report.trials[1].reused > 0


def test_asha_stops_a_bad_trial_early_and_keeps_what_it_had(tmp_path: Path) -> None:
    space = {
        "search": "grid",
        "keys": {"method.lr_img": {"choice": [1.0, 10.0, 3.0, 1e-6]}},
        "scheduler": "asha",
        "stopping": {"grace": 5, "reduction": 2},
        "trial": {"evaluation.every": 5, "method.iterations": 60, "evaluation.epochs": 20},
    }
    sweep = sweep_of(tmp_path, space)
    report = sweeping.run_sweep(sweep, quiet).report
    bad = report.trials[3]
    assert bad.values["method.lr_img"] == 1e-6
    assert bad.state == "pruned"
    assert "stopped at step" in bad.reason
    assert bad.value == bad.judged[-1].value
    assert not Path(sweep.output, sweep.place(3), "report.json").exists()
    assert Path(sweep.output, sweep.place(3), "log.jsonl").exists()
    assert report.winner != 3


def test_what_no_key_touches_is_computed_once(tmp_path: Path) -> None:
    """EDC's teachers, statistics, recovery and labels, for trials that differ in the students' loss."""
    space = {
        "search": "grid",
        "keys": {"evaluation.ce_weight": {"choice": [0.0, 0.025, 0.1]}},
        "trial": {"evaluation.epochs": 2},
    }
    nets = ["convnet1_w8_batchnorm", "convnet1_w4_batchnorm"]
    method = {
        "name": "edc",
        "network": nets[0],
        "networks": nets,
        "label_networks": nets,
        "teachers": {"weights": "train", "epochs": 2, "augmentation": "none"},
        "labels": {"batch": 5, "epochs": 2, "shuffle": 1},
        "statistics": {"batch": 256, "patch": 4, "slices": 2},
        "init": {"kind": "real", "pool": 3},
        "iterations": 6,
        "group_size": 10,
        "groups_per_unit": 1,
    }
    evaluation = {"protocol": "edc", "networks": ["convnet1_w8_batchnorm"], "repeats": 1}
    sweep = sweep_of(tmp_path, space, method=method, evaluation=evaluation)
    report = sweeping.run_sweep(sweep, quiet).report
    assert all(trial.state == "finished" for trial in report.trials), report.trials
    stages: Counter[str] = Counter()
    for path in sorted(Path(tmp_path, "store", "units").rglob("final.json")):
        stages[json.loads(path.read_text())["stage"]] += 1
    assert stages["squeeze/TrainNetwork"] == 2
    assert stages["recover/MatchStatistics"] == 1
    first = report.shared["first"]
    assert first > 4
    for trial in report.trials:
        assert trial.computed == 1  # its students
        assert trial.reused >= first
    labels = sorted(Path(sweep.output, "labels").rglob("*.safetensors"))
    assert len(labels) == 2
    assert report.winner is not None
    tested = Path(sweep.output, place_of_test(report.winner), "distilled", "labels")
    lent = sorted(tested.glob("*.safetensors"))
    assert [path.read_bytes() for path in lent] == [path.read_bytes() for path in labels]
    assert not Path(sweep.output, sweep.place(1), "distilled", "labels").exists()


def test_trials_of_other_images_per_class_have_the_settings_of_theirs(tmp_path: Path) -> None:
    space = {
        "search": "grid",
        "keys": {"ipc": {"grid": [1, 2, 3]}, "method.lr_img": {"grid": [0.1, 5.0]}},
        "trial": {"evaluation.epochs": 2},
    }
    by_ipc = {
        2: {"method": {"batch_real": 4, "lr_img": 3.0}, "evaluation.epochs": 30},
        1: {"method.iterations": 3},
    }
    sweep = sweep_of(tmp_path, space, by_ipc=by_ipc)
    for ipc, epochs in ((1, 20), (2, 30), (3, 20)):
        values = {"ipc": ipc, "method.lr_img": 0.1}
        asked = [f"{key}={value}" for key, value in values.items()]
        alone = load_job(str(tmp_path / "job.yaml"), asked)
        assert sweep.trial(1, values).method == alone.method
        assert sweep.trial(1, values).evaluation.epochs == 2
        assert sweep.complete(values, alone.output) == alone
        final = final_job(sweep, Trial(1, values, "grid"))
        assert (final.method, final.evaluation.epochs) == (alone.method, epochs)
    report = sweeping.run_sweep(sweep, quiet).report
    assert report.trials[0].values == {"ipc": 1, "method.lr_img": 1.0}
    for trial in report.trials:
        made = json.loads(Path(sweep.output, sweep.place(trial.number), "report.json").read_text())
        assert made["ipc"] == trial.values["ipc"]
    written = yaml.safe_load(Path(sweep.output, "job.yaml").read_text())["by_ipc"]
    assert written["2"]["method.batch_real"] == 4
    assert written["3"] == {"method.iterations": 6}
    page = Path(sweep.output, "report.html").read_text()
    assert "What the job has for the images per class of other trials" in page
    assert "method.batch_real: 4" in page
    again = sweeping.run_sweep(sweep_of(tmp_path, space, by_ipc=by_ipc), quiet).report
    assert facts(again) == facts(report)
    by_ipc[2]["method"] = {"batch_real": 5, "lr_img": 3.0}
    with pytest.raises(ConfigError, match=r"by_ipc\.2\.method\.batch_real: 4 there, 5 now"):
        sweeping.run_sweep(sweep_of(tmp_path, space, by_ipc=by_ipc), quiet)


def test_another_sweep_finds_what_was_made(tmp_path: Path) -> None:
    first = sweeping.run_sweep(sweep_of(tmp_path, {"search": "grid", "keys": LR}), quiet).report
    keys = {"method.lr_img": {"choice": [10.0, 0.1, 1.0]}}
    again = sweep_of(tmp_path, {"search": "grid", "keys": keys}, "other")
    second = sweeping.run_sweep(again, quiet).report
    assert sum(trial.computed for trial in second.trials) == 0
    assert {t.values["method.lr_img"]: t.value for t in first.trials} == {
        t.values["method.lr_img"]: t.value for t in second.trials
    }
    assert first.winner is not None
    assert second.winner is not None
    assert first.trials[first.winner].value == second.trials[second.winner].value


def test_a_trial_that_cannot_be_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raydd.runtime.sweep import trial_run

    run_job = trial_run.run_job

    def breaking(job: Any, *rest: Any) -> Any:
        if job.method.lr_img == 10.0:
            raise MemoryError("no room")
        return run_job(job, *rest)

    monkeypatch.setattr(trial_run, "run_job", breaking)
    sweep = sweep_of(tmp_path, {"search": "grid", "keys": LR})
    outcome = sweeping.run_sweep(sweep, quiet)
    states = {t.values["method.lr_img"]: (t.state, t.reason) for t in outcome.report.trials}
    assert states[10.0] == ("failed", "MemoryError: no room")
    assert states[1.0][0] == states[0.1][0] == "finished"
    assert "failed: MemoryError: no room" in outcome.render()


def test_a_sweep_whose_first_trials_all_fail_stops_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raydd.runtime.sweep import trial_run

    def breaking(*rest: Any) -> Any:
        raise RunFailed("NaN in images")

    monkeypatch.setattr(trial_run, "run_job", breaking)
    space = {"keys": {"method.lr_img": {"loguniform": [0.1, 10]}}, "budget": {"trials": 9}}
    for give_up, begun in ((3, 3), (3, 3), (5, 5)):
        said = f"first {begun} trials all failed; trial {begun - 1}: NaN in images"
        with pytest.raises(RunFailed, match=said):
            sweeping.run_sweep(sweep_of(tmp_path, {**space, "give_up": give_up}), quiet)
        assert len(TrialJournal(Storage(str(tmp_path / "sweep"))).read()) == begun
    told = CliRunner().invoke(main, ["status", str(tmp_path / "sweep")])
    assert told.exit_code == 1, told.output
    assert "failed: the first 5 trials all failed; trial 4: NaN in images" in told.output
    page = CliRunner().invoke(main, ["report", str(tmp_path / "sweep")])
    assert "(failed)" in page.output
    text = Path(tmp_path, "sweep", "report.html").read_text()
    assert "The sweep gave up: the first 5 trials all failed; trial 4: NaN in images" in text

    def killed(*rest: Any) -> Any:
        raise Killed

    monkeypatch.setattr(trial_run, "run_job", killed)
    with pytest.raises(Killed):
        sweeping.run_sweep(sweep_of(tmp_path, {**space, "give_up": 6}), quiet)
    told = CliRunner().invoke(main, ["status", str(tmp_path / "sweep")])
    assert told.exit_code == 3, "it goes on"


def test_a_torn_job_file_is_said_to_be_torn(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"search": "grid", "keys": LR})
    Storage(sweep.output).put("job.yaml", b"sweep:\n  keys: {method.lr_img: [0")
    with pytest.raises(
        ConfigError, match=r"job\.yaml is torn, or no YAML: whose .* cannot be told"
    ) as error:
        sweeping.run_sweep(sweep, quiet)
    assert len(str(error.value).splitlines()) == 1
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    with pytest.raises(
        ConfigError, match=r"empty\.yaml: is empty; a mapping of keys to values is needed"
    ):
        sweeping.make_sweep(read_job(str(tmp_path / "job.yaml")), str(tmp_path / "empty.yaml"))


def test_a_table_selects_nothing_and_is_of_the_test_set(tmp_path: Path) -> None:
    space = {"search": "grid", "keys": {"ipc": {"grid": [1, 2]}}, "winner": False}
    sweep = sweep_of(tmp_path, space)
    report = sweeping.run_sweep(sweep, quiet).report
    assert (report.winner, report.split, report.tested) == (None, "test", [])
    assert not Path(sweep.output, "best.yaml").exists()
    tree = json.loads(Path(sweep.output, sweep.place(1), "report.json").read_text())
    assert tree["split"] == "test"
    assert {row["set"] for row in tree["rows"]} == {"dm", "random"}


def test_seeds_of_a_trial_repeat_its_distillation(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"search": "grid", "keys": {"ipc": {"grid": [1]}}, "seeds": 2})
    report = sweeping.run_sweep(sweep, quiet).report
    assert report.trials[0].facts["students"] == 4
    assert report.tested[0].students == 4


@pytest.mark.parametrize(
    ("space", "job", "text"),
    [
        ({"keys": {"method.network": {"choice": ["convnet1_w8", "convnet9x"]}}}, {}, "convnet9x"),
        ({"keys": LR, "holdout": 5000}, {}, "leaves none"),
        ({"keys": LR, "search": "random"}, {}, "proposes for ever"),
        ({"keys": LR, "workers_per_trial": 2}, {}, "without Ray .* trials have no workers"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    tmp_path: Path, space: dict[str, Any], job: dict[str, Any], text: str
) -> None:
    from raydd.core.errors import DataError

    with pytest.raises((ConfigError, DataError), match=text):
        sweeping.run_sweep(
            sweep_of(
                tmp_path,
                {"budget": {"trials": 2}, **space} if "search" not in space else space,
                **job,
            ),
            quiet,
        )
    assert not Path(tmp_path, "sweep", "journal").exists()
    assert not Path(tmp_path, "store", "units").exists()


def test_an_output_of_another_sweep_is_refused_and_a_larger_budget_is_not(tmp_path: Path) -> None:
    space = {"search": "random", "keys": LR, "budget": {"trials": 2}}
    before = sweeping.run_sweep(sweep_of(tmp_path, space), quiet).report
    with pytest.raises(ConfigError, match=r"sweep\.seed: 0 there, 1 now"):
        sweeping.run_sweep(sweep_of(tmp_path, {**space, "seed": 1}), quiet)
    with pytest.raises(ConfigError, match=r"method\.batch_real: 8 there, 4 now"):
        sweeping.run_sweep(sweep_of(tmp_path, space, method={**DM, "batch_real": 4}), quiet)
    report = sweeping.run_sweep(
        sweep_of(tmp_path, {**space, "budget": {"trials": 4}}), quiet
    ).report
    assert len(report.trials) == 4
    assert all(trial.attempts == 1 for trial in report.trials if trial.same is None)
    for winner in (before.winner, report.winner):
        assert winner is not None
        assert Path(tmp_path, "sweep", place_of_test(winner), "distilled").is_dir()


def test_a_sweep_that_is_stopped_says_how_to_go_on(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"search": "grid", "keys": LR, "trial": {"evaluation.every": 2}})
    runs: list[Any] = []
    init = sweeping._Run.__init__

    def keeping(self: Any, *rest: Any) -> None:
        init(self, *rest)
        runs.append(self)

    judged, stop, stopped = SweepDesk.judged, Control.stop, threading.Event()

    def telling(self: Control) -> None:
        stop(self)
        stopped.set()

    def stopping(self: SweepDesk, number: int, step: int, value: float) -> bool:
        if (number, step) == (1, 2):
            runs[-1].stop()
            assert stopped.wait(120), "the trial asks the desk once a second"
        return judged(self, number, step, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeping._Run, "__init__", keeping)
        patch.setattr(SweepDesk, "judged", stopping)
        patch.setattr(Control, "stop", telling)
        with pytest.raises(Interrupted, match="the same command goes on"):
            sweeping.run_sweep(sweep, quiet)
    trials = TrialJournal(Storage(sweep.output)).read()
    assert [trial.state for trial in trials] == ["finished", "running"]
    assert json.loads(Path(sweep.output, "sweep.json").read_text())["winner"] == 0
    report = sweeping.run_sweep(sweep, quiet).report
    assert [trial.state for trial in report.trials] == ["finished"] * 3


@pytest.mark.parametrize(
    ("there", "gpus", "refused"),
    [
        ({"CPU": 8.02}, 0.0, ""),
        ({"CPU": 8.0}, 0.0, r"2 trials at once x 4 workers x 1 CPU = 8 CPU and 0\.02 for the trials themselves, and"),
        ({"CPU": 64.0}, 0.5, r"2 trials at once x 4 workers x 0\.5 GPU = 4 GPU, and the cluster has 0:"),
        ({"CPU": 64.0, "GPU": 4.0}, 0.5, ""),
    ],
)  # fmt: skip
def test_groups_that_would_wait_for_each_other_are_refused_with_the_arithmetic(
    there: dict[str, float],
    gpus: float,
    refused: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    from raydd.runtime.sweep.tune_trials import check_room

    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    space = {"search": "grid", "keys": LR, "workers_per_trial": 4}
    sweep = sweep_of(tmp_path, space, compute={"workers": 2, "gpus_per_worker": gpus})
    if not refused:
        check_room(sweep, 2)
        return
    with pytest.raises(ConfigError, match=refused):
        check_room(sweep, 2)


def test_a_desk_that_dies_is_said_to_be_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.exceptions import RayActorError

    from raydd.runtime.sweep.tune_trials import TuneTrials

    answers: list[Any] = [([], ""), ([], ""), RayActorError()]

    def get(ref: object) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ray, "get", get)
    over = threading.Event()
    monkeypatch.setattr(TuneTrials, "_fit", lambda self: over.wait(60))
    trials = object.__new__(TuneTrials)
    trials.handle = SimpleNamespace(poll=SimpleNamespace(remote=lambda: None))
    trials.error = None
    with pytest.raises(
        RunFailed, match=r"the desk of the sweep is gone .* the same command goes on"
    ):
        trials.run(lambda trial: None, threading.Event())
    over.set()


@pytest.mark.parametrize(
    ("uri", "machines", "tracked"),
    [
        ("sqlite:///m.db", 1, True),
        ("sqlite:///m.db", 2, False),
        ("http://127.0.0.1:5000", 2, True),
        ("none", 2, True),
    ],
)
def test_trials_on_other_machines_write_no_database_of_this_one(
    uri: str, machines: int, tracked: bool, tmp_path: Path
) -> None:
    given = sweep_of(tmp_path, {"search": "grid", "keys": LR}, tracking={"uri": uri})
    sweep, line = tracked_on(given, machines)
    assert sweep.tracked is tracked
    assert (sweep.trial(0, {}).tracking.uri == "none") is (uri == "none" or not tracked)
    assert bool(line) is not tracked


@pytest.mark.parametrize(
    ("uri", "said", "trial", "environment"),
    [
        (None, None, None, "sqlite:///{here}/runs/mlflow.db"),
        (None, "http://me:secret@there", None, "http://me:secret@there"),
        ("sqlite:///m.db", None, "sqlite:///{here}/m.db", None),
        ("http://there", None, "http://there", None),
        ("none", None, "none", None),
    ],
)
def test_trials_are_tracked_where_the_sweep_is_wherever_they_run(
    uri: str | None,
    said: str | None,
    trial: str | None,
    environment: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MLFLOW_TRACKING_")]:
        monkeypatch.delenv(name)
    if said is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", said)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t")
    given = sweep_of(tmp_path, {"search": "grid", "keys": LR}, tracking={"uri": uri})
    sweep = tracked_here(given)

    def absolute(text: str | None) -> str | None:
        return text and text.format(here=tmp_path)

    assert sweep.trial(0, {}).tracking.uri == absolute(trial)
    assert sweep.environment.get("MLFLOW_TRACKING_URI") == absolute(environment)
    assert sweep.environment.get("MLFLOW_TRACKING_TOKEN") == (None if uri == "none" else "t")
    assert "secret" not in repr(sweep)


def test_a_table_has_no_winner_to_distil_anew(tmp_path: Path) -> None:
    space = {"search": "grid", "keys": {"ipc": {"grid": [1, 2]}}, "winner": False}
    sweep_of(tmp_path, space)
    files = ["--config", str(tmp_path / "job.yaml"), "--space", str(tmp_path / "space.yaml")]
    told = CliRunner().invoke(main, ["sweep", *files, "--refit", "--dry-run"])
    assert told.exit_code == 2, told.output
    assert "has winner: false, so there is none" in told.output
