"""dtp_ros/study/server.py: over vla-eval's own protocol a policy acts as it does by itself, and the log says so."""

import time

import anyio
import numpy as np
import pytest
import torch
from vla_eval.api import serve_background
from vla_eval.connection import Connection
from vla_eval.runners.base import EnvStepError
from vla_eval.runners.sync_runner import SyncEpisodeRunner
from vla_eval.specs import check_specs

from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.errors import ActionDecodeError, ConfigError
from dtp_ros.models.base import Observation
from dtp_ros.models.registry import load_adapter, model_defaults
from dtp_ros.sim.lockstep import LockStep
from dtp_ros.study import log
from dtp_ros.study.server import Constants, DtpModelServer, series
from dtp_ros.study.tabletop_benchmark import TabletopBenchmark, study_layout

STEPS = 8


@pytest.fixture(scope="module")
def adapter():
    return load_adapter("tabletop", "shipped", device="cpu")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    path = tmp_path_factory.mktemp("server") / "log.jsonl"
    server = DtpModelServer(device="cpu", log=str(path))
    with serve_background(server, host="127.0.0.1") as handle:
        yield server, handle.url, path


def acted(server, url, episodes, steps=STEPS):
    """Run (task, episode) pairs at the same time, each over a connection of its own."""

    async def one(name, number):
        benchmark = TabletopBenchmark(setting="lookalike")
        task = {**next(t for t in benchmark.get_tasks() if t["name"] == name), "episode_idx": number}
        async with Connection(url) as connection:
            await SyncEpisodeRunner().run_episode(benchmark, task, connection, max_steps=steps)
        benchmark.cleanup()

    async def all_of_them():
        async with anyio.create_task_group() as group:
            for name, number in episodes:
                group.start_soon(one, name, number)

    anyio.run(all_of_them)
    end = time.monotonic() + 20
    while server.running:
        assert time.monotonic() < end, "an episode did not end"
        time.sleep(0.01)


def by_itself(adapter, name, number, parameters, steps=STEPS):
    """The engine and the tabletop without vla-eval, whose messages carry actions in float32."""
    constants = Constants.of("tabletop", "shipped", 5.0, parameters).of_episode("bench", name, number)
    policy, episode = DtpPolicy(adapter), LockStep(study_layout(name, number, "lookalike"))
    traces = []
    for step in range(steps):
        table = episode.table
        seen = Observation((table.render(),), table.task.instruction, None, None, step / 5.0)
        result = policy.step(seen, constants.pruning, constants.generation)
        traces.append(result.trace)
        episode.act(result.chunk.actions[0].astype(np.float32).astype(np.float64))
    episode.close()
    return traces


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param({"variant": "off"}, marks=pytest.mark.long),
        {"tolerance": 0.25},
        pytest.param({"tolerance_mode": "min_entropy"}, marks=pytest.mark.long),
        {"variant": "random_all", "tolerance": 0.25},
    ],
)
def test_episodes_of_two_shards_are_those_of_the_policy_alone(served, adapter, parameters):
    server, url, path = served
    server.begin("here", parameters, benchmark="bench")
    episodes = [("stack_blocks", 1), ("eggplant_in_basket", 2)]
    acted(server, url, episodes)
    logged = {(e.task, e.episode): e for e in log.read([path])}
    assert logged.keys() == set(episodes)
    for name, number in episodes:
        episode = logged[name, number]
        expected = series(by_itself(adapter, name, number, parameters))
        for figure, values in expected.items():
            np.testing.assert_allclose(episode.series[figure], values, rtol=1e-4, err_msg=figure)
        assert (episode.arm, episode.benchmark, episode.steps, episode.holds) == ("here", "bench", STEPS, 0)
        for key, value in parameters.items():
            assert episode.setup[key] == value
        assert torch.backends.cpu.get_cpu_capability() in episode.setup["processor"]
    if parameters.get("tolerance"):
        assert any(sum(e.series["pruned"]) > 0 for e in logged.values()), "nothing was pruned: choose other episodes"
    path.unlink()


def test_an_episode_whose_simulator_failed_is_forgotten_when_the_next_begins(served, monkeypatch):
    """vla-eval goes on over the same connection, without an end of the first."""
    server, url, path = served
    server.begin("here", {"variant": "off"})
    broken = iter([False, True])  # at its second step
    apply = TabletopBenchmark.apply_action

    async def fail(self, action):
        if next(broken, False):
            raise RuntimeError("the simulator failed")
        await apply(self, action)

    async def both():
        benchmark = TabletopBenchmark(setting="plain")
        task = {**next(iter(benchmark.get_tasks())), "episode_idx": 1}
        async with Connection(url) as connection:
            with pytest.raises(EnvStepError, match="the simulator failed"):
                await SyncEpisodeRunner().run_episode(benchmark, task, connection, max_steps=3)
            assert server.running == 1
            await SyncEpisodeRunner().run_episode(benchmark, task | {"episode_idx": 2}, connection, max_steps=3)
        benchmark.cleanup()

    monkeypatch.setattr(TabletopBenchmark, "apply_action", fail)
    anyio.run(both)
    end = time.monotonic() + 20
    while server.running and time.monotonic() < end:
        time.sleep(0.01)
    assert server.running == 0
    assert [e.episode for e in log.read([path])] == [2]
    path.unlink()


def test_a_random_variant_draws_anew_for_each_episode():
    """The same for the same episode under any server: what a row of the evidence needs to be repeated."""
    constants = Constants.of("tabletop", "shipped", 5.0, {"variant": "random_all"})
    which = [("bench", "stack_blocks", 1), ("bench", "stack_blocks", 2), ("bench", "spoon", 1), ("other", "spoon", 1)]
    seeds = [constants.of_episode(*one).pruning.seed for one in which]
    assert len(set(seeds)) == len(which)
    assert seeds == [constants.of_episode(*one).pruning.seed for one in which]
    other = Constants.of("tabletop", "shipped", 5.0, {"variant": "random_all", "seed": 1})
    assert other.of_episode(*which[0]).pruning.seed not in seeds


def test_tokens_that_do_not_decode_hold_with_the_gripper_as_it_was(served, monkeypatch):
    server, url, path = served
    server.begin("here", {"variant": "off"})

    def refuse(adapter, ids):
        raise ActionDecodeError("no action")

    monkeypatch.setattr(type(server._adapter), "decode", refuse)
    acted(server, url, [("stack_blocks", 1)], steps=3)
    (episode,) = log.read([path])
    assert episode.holds == 3
    path.unlink()


def test_constants_are_the_models_own_unless_they_are_given():
    own = Constants.of("spatialvla", "tiny", 5.0, {})
    assert (own.pruning.mask_schedule, own.pruning.top_k, own.generation.ensemble) == ("per_step", 109, "published")
    given = Constants.of("spatialvla", "tiny", 3.0, {"tolerance": 1, "relevance_layers": [2], "ensemble": "off"})
    assert (given.pruning.tolerance, given.pruning.relevance_layers, given.generation.ensemble) == (1.0, (2,), "off")
    assert given.generation.control_frequency == 3.0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"speed": 1}, "speed not known .*tolerance"),
        ({"tolerance": 3.0}, "tolerance = 3.0"),
        ({"relevance_layers": [40]}, "relevance_layers"),
        ({"top_k": 65}, "top_k"),
        ({"execute_horizon": 2}, "execute_horizon"),
        ({"variant": "on"}, "variant = 'on'"),
    ],
)
def test_constants_that_do_not_fit_are_refused_and_change_nothing(served, parameters, message):
    server, _, _ = served
    server.begin("before", {"tolerance": 0.75})
    with pytest.raises(ConfigError, match=message):
        server.begin("after", parameters)
    assert server._constants.pruning.tolerance == 0.75


def test_server_and_tabletop_agree_on_what_they_exchange(served):
    server, benchmark = served[0], TabletopBenchmark()
    specs = [s() for s in (server.get_action_spec, benchmark.get_action_spec)]
    seen = [s() for s in (server.get_observation_spec, benchmark.get_observation_spec)]
    assert check_specs(*specs, *seen) == []


@pytest.mark.parametrize(("given", "asked"), [("", str(model_defaults("openvla")["revision"])), ("v2", "v2")])
def test_the_log_says_which_commit_of_the_hub_acted(monkeypatch, given, asked):
    """What a hub answers is tested with the checkpoints; here, that its answer is what is loaded and logged."""
    published, calls = str(model_defaults("openvla")["checkpoint"]), []

    def load(model, checkpoint, *, revision, **_):
        calls.append((checkpoint, revision))
        return load_adapter(model, "tiny", device="cpu")

    monkeypatch.setattr("dtp_ros.study.server.commit_of", lambda *weights: calls.append(weights) or "c0ffee")
    monkeypatch.setattr("dtp_ros.study.server.load_adapter", load)
    server = DtpModelServer(model="openvla", revision=given)
    assert calls == [(published, asked), (published, "c0ffee")]
    assert server.setup()["checkpoint"] == f"{published}@c0ffee"
