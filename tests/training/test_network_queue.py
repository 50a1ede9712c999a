"""The queue's plan: against the published loop played with a list, its figures, and what it depends on."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from raydd.core.errors import ConfigError
from raydd.core.typed_tree import build
from raydd.training.network_queue import FIRST, QueueConfig, QueuePlan


def played(plan: QueuePlan, iterations: int, period: int) -> list[tuple[int, int, float, int]]:
    """Play the published loop; return of each iteration the network it matches, how often that was
    trained, its meter in per cent, and the length of the queue.

    Networks are numbers in a list; each training of network ``n`` for the ``e``-th time knows
    ``(7 * n + 3 * e) % 11`` of 10 images (at most all).
    """
    queue, born = list(range(FIRST)), FIRST
    trained, meter = Counter[int](), {}
    found = []
    for t in range(iterations):
        if t and t % period == 0:
            meter = {}
        if t % plan.interval == 0:
            if len(queue) == plan.net_num:
                queue.pop(0)
            queue.append(born)
            born += 1
        assert queue == list(plan.alive(t))
        network = plan.matched(t)
        assert network in queue
        correct, seen = meter.get(network, (0, 0))
        found.append((network, trained[network], 100 * correct / seen if seen else 0.0, len(queue)))
        chosen = plan.trained(t)
        assert len(set(chosen)) == min(plan.fetch, len(queue))
        for other in chosen:
            assert other in queue
            correct, seen = meter.get(other, (0, 0))
            known = min(10, (7 * other + 3 * trained[other]) % 11)
            meter[other] = (correct + known, seen + 10)
            trained[other] += 1
    return found


@pytest.mark.parametrize(
    ("net_num", "interval", "fetch", "period"),
    [(10, 3, 2, 25), (5, 1, 3, 7), (3, 4, 5, 1000), (100, 5, 2, 100)],
)
def test_the_plan_is_the_published_loop_with_a_list(
    net_num: int, interval: int, fetch: int, period: int
) -> None:
    plan = QueuePlan(4, net_num, interval, fetch)
    for t, (network, age, meter, length) in enumerate(played(plan, 2500, period)):
        assert len(plan.alive(t)) == length
        reading = plan.reading(t)
        assert (reading.network, reading.age) == (network, age)
        life = plan.life(network)
        assert life.ages[reading.row] == age
        correct = torch.tensor(
            [min(10, (7 * network + 3 * e) % 11) for e in range(len(life.trained))]
        )
        assert plan.percent(t, period, correct, 10) == pytest.approx(meter)


@pytest.mark.parametrize(("interval", "full"), [(30, 2880), (5, 480)])
def test_the_queue_grows_to_its_length_and_then_loses_its_oldest(interval: int, full: int) -> None:
    plan = QueueConfig(net_generate_interval=interval).plan
    assert [len(plan.alive(t)) for t in (0, interval - 1, interval)] == [4, 4, 5]
    assert [len(plan.alive(t)) for t in (full - 1, full, full + interval)] == [99, 100, 100]
    assert plan.alive(full).start == 0
    assert plan.alive(full + interval).start == 1


def test_the_meter_counts_in_per_cent_and_a_reset_makes_it_zero() -> None:
    plan = QueueConfig(net_num=3, net_generate_interval=50, fetch_net_num=3).plan
    t = 100 + 7
    assert plan.percent(t, None, torch.full((200,), 3), 4) == 75.0
    assert plan.percent(100, 100, torch.full((200,), 3), 4) == 0.0
    assert plan.percent(t, 100, torch.full((200,), 3), 4) in (75.0, 0.0)
    network, age, _ = plan.reading(t)
    assert len(plan.since_reset(t, 100)) == min(7, age), "all three are trained in each iteration"
    assert network in plan.alive(t)


@pytest.mark.parametrize(
    ("period", "part", "within"),
    [(100, 0.437, 0.02), (500, 0.114, 0.015), (1000, 0.065, 0.015), (None, 0.015, 0.005)],
)
def test_parts_of_iterations_without_a_cross_entropy(
    period: int | None, part: float, within: float
) -> None:
    plan = QueueConfig().plan
    empty = [not plan.since_reset(t, period) for t in range(4000, 20_000)]
    assert sum(empty) / len(empty) == pytest.approx(part, abs=within)


@pytest.mark.parametrize(
    ("interval", "mean", "low", "high", "never"),
    [(30, 303, 60, 550, 0.015), (5, 50, 0, 100, 0.10)],
)
def test_how_far_networks_are_trained_that_are_matched(
    interval: int, mean: float, low: float, high: float, never: float
) -> None:
    plan = QueueConfig(net_generate_interval=interval).plan
    steps = torch.tensor([10.0 * plan.reading(t).age for t in range(4000, 20_000)])
    assert float(steps.mean()) == pytest.approx(mean, rel=0.03)
    assert float(steps.quantile(0.1)) == pytest.approx(low, abs=10)
    assert float(steps.quantile(0.9)) == pytest.approx(high, abs=20)
    assert float((steps == 0).double().mean()) == pytest.approx(never, abs=0.01)


def test_each_network_in_the_queue_is_matched_and_trained_as_often() -> None:
    plan = QueuePlan(1, 10, 1000, 2)
    matched, trained = Counter[int](), Counter[int]()
    for t in range(7000, 7990):
        matched[plan.matched(t)] += 1
        trained.update(plan.trained(t))
    assert set(matched) == set(trained) == set(plan.alive(7000))
    for counts, expected in ((matched, 99), (trained, 198)):
        assert sum((n - expected) ** 2 / expected for n in counts.values()) < 28, "chi square"


def test_a_shorter_run_reads_what_a_longer_one_reads() -> None:
    short, long = QueueConfig(net_num=10).plan.needed(90), QueueConfig(net_num=10).plan.needed(400)
    assert set(short) <= set(long)
    assert max(short) <= FIRST + 3
    assert QueueConfig(net_num=10).plan.matched(80) == QueuePlan(0, 10, 30, 2).matched(80)


def test_draws_do_not_depend_on_the_order_of_questions() -> None:
    one, two = QueuePlan(3, 20, 7, 2), QueuePlan(3, 20, 7, 2)
    late = [one.reading(t) for t in range(5000, 5010)]
    early = [two.reading(t) for t in range(10)]
    assert [two.reading(t) for t in range(5000, 5010)] == late
    assert [one.reading(t) for t in range(10)] == early
    assert [QueuePlan(4, 20, 7, 2).reading(t) for t in range(10)] != early


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"net_num": 2}, r"net_num"),
        ({"storage": "fp16"}, r"storage.*fp16"),
        ({"fetch_num": 2}, r"fetch_num.*did you mean.*fetch_net_num"),
        ({"lr_net": 0}, "lr_net"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build(QueueConfig, fields, "job", prefix=("method", "queue"))
