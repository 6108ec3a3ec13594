import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dtp_ros.engine.ensemble import ChunkEnsemble
from dtp_ros.engine.types import GenerationConfig

PUBLISHED = GenerationConfig(ensemble="published", ensemble_weight=math.log(2), control_frequency=5.0)


def chunk(*values):
    """Actions of which every number is `value`."""
    return np.array(values, dtype=float)[:, None].repeat(7, axis=1)


def first_column(actions):
    return actions[:, 0].tolist()


def test_weights_worked_out_by_hand():
    """k = ln 2: weights 1, 2, 4, the newest heaviest."""
    ensemble = ChunkEnsemble()
    assert first_column(ensemble.add(chunk(1, 2, 3), 0.0, PUBLISHED)) == [1, 2, 3]
    # Moments 0.2, 0.4: old says 2, 3.
    found = first_column(ensemble.add(chunk(5, 6, 7), 0.2, PUBLISHED))
    assert found == pytest.approx([(2 + 2 * 5) / 3, (3 + 2 * 6) / 3, 7])
    # Moment 0.4: 3, 6 and 8; 0.6: 7 and 9; 0.8: 10.
    found = ensemble.add(chunk(8, 9, 10), 0.4, PUBLISHED)
    assert first_column(found) == pytest.approx([(3 + 2 * 6 + 4 * 8) / 7, (7 + 2 * 9) / 3, 10])
    assert np.ptp(found, axis=1).max() < 1e-12  # gripper and angles like the rest
    # The first chunk is now out of reach.
    found = first_column(ensemble.add(chunk(0, 0, 0), 0.6, PUBLISHED))
    assert found == pytest.approx([(7 + 2 * 9) / 7, 10 * 1 / 3, 0])


def test_agrees_with_the_rule_of_simpler():
    """One step each period, weights exp(0.8 r) over all chunks that reach the present, oldest first."""
    generator = np.random.default_rng(0)
    config = GenerationConfig(ensemble="published", ensemble_weight=0.8)
    ensemble, history = ChunkEnsemble(), []
    for step in range(9):
        history = [*history, generator.normal(size=(4, 7))][-4:]
        found = ensemble.add(history[-1], step / 5, config)[0]
        present = np.array([actions[len(history) - 1 - i] for i, actions in enumerate(history)])
        weights = np.exp(0.8 * np.arange(len(present)))
        np.testing.assert_allclose(found, (weights[:, None] * present).sum(axis=0) / weights.sum())


def test_chunks_are_placed_in_time_by_rounding():
    config = GenerationConfig(ensemble="published", ensemble_weight=0.0, control_frequency=5.0)
    for stamp, expected in (
        (0.29, [1.0, 1.5, 0.0]),
        (0.31, [1.5, 0.0, 0.0]),
        (0.69, [0, 0, 0]),
        (0.05, [0.5, 1.0, 1.5]),
    ):
        ensemble = ChunkEnsemble()
        ensemble.add(chunk(1, 2, 3), 0.0, config)
        assert first_column(ensemble.add(chunk(0, 0, 0), stamp, config)) == expected


def test_history_is_bounded():
    config = GenerationConfig(ensemble="published", ensemble_weight=0.0)
    ensemble = ChunkEnsemble()
    for i in range(50):  # far faster than the control period
        found = ensemble.add(chunk(i, i), i * 1e-4, config)
    assert first_column(found) == [48.5, 48.5]


@pytest.mark.parametrize("stamp", [0.9, 1.0])
def test_time_that_does_not_advance_forgets(stamp):
    ensemble = ChunkEnsemble()
    ensemble.add(chunk(1, 2, 3), 1.0, PUBLISHED)
    assert first_column(ensemble.add(chunk(5, 6, 7), stamp, PUBLISHED)) == [5, 6, 7]
    assert first_column(ensemble.add(chunk(5, 6, 7), 2.0, PUBLISHED)) == [5, 6, 7]


def test_reset_forgets():
    ensemble = ChunkEnsemble()
    ensemble.add(chunk(1, 2), 0.0, PUBLISHED)
    ensemble.reset()
    assert first_column(ensemble.add(chunk(5, 6), 0.2, PUBLISHED)) == [5, 6]


def test_off_changes_nothing_but_remembers():
    """Turned on while running, it starts from the chunks there are."""
    ensemble = ChunkEnsemble()
    for i, stamp in enumerate((0.0, 0.2)):
        actions = chunk(i, i + 1)
        assert ensemble.add(actions, stamp, GenerationConfig(ensemble="off")) is actions
    assert first_column(ensemble.add(chunk(5, 5), 0.4, PUBLISHED)) == pytest.approx([(2 + 2 * 5) / 3, 5])


def test_rotation_is_averaged_on_the_sphere():
    """Half way between no turn and 90 degrees is 45; across +-180 degrees the angles' mean would point back."""
    config = GenerationConfig(ensemble="rotation", ensemble_weight=0.0)

    def averaged(first, second):
        ensemble = ChunkEnsemble()
        old, new = np.zeros((2, 7)), np.zeros((2, 7))
        old[1], new[0] = first, second
        ensemble.add(old, 0.0, config)
        return ensemble.add(new, 0.2, config)[0]

    quarter = averaged([0, 0, 0, 0, 0, 0, 0], [2, 4, 6, math.pi / 2, 0, 0, 1])
    np.testing.assert_allclose(quarter, [1, 2, 3, math.pi / 4, 0, 0, 0.5], atol=1e-12)
    across = averaged([0, 0, 0, 0, 0, math.radians(170), 0], [0, 0, 0, 0, 0, math.radians(-170), 0])
    assert abs(across[5]) == pytest.approx(math.pi)


def test_rotation_uses_the_convention_of_the_chunk():
    """The mean is as far from one as from the other, measured with R = Rz Ry Rx built by hand."""

    def matrix(angles):
        (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
        x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
        y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
        return z @ y @ x

    def angle(a, b):
        return math.acos((np.trace(a.T @ b) - 1) / 2)

    config = GenerationConfig(ensemble="rotation", ensemble_weight=0.0)
    old, new = np.zeros((2, 7)), np.zeros((2, 7))
    old[1, 3:6], new[0, 3:6] = [0.5, -0.9, 0.7], [-0.6, 0.4, 1.1]
    ensemble = ChunkEnsemble()
    ensemble.add(old, 0.0, config)
    mean = matrix(ensemble.add(new, 0.2, config)[0, 3:6])
    a, b = matrix(old[1, 3:6]), matrix(new[0, 3:6])
    assert angle(mean, a) == pytest.approx(angle(a, b) / 2, abs=1e-6)
    assert angle(mean, b) == pytest.approx(angle(a, b) / 2, abs=1e-6)
    # And not the angles' own mean.
    assert angle(mean, matrix((old[1, 3:6] + new[0, 3:6]) / 2)) > 1e-3


def test_rotation_weighs_the_newest_most():
    config = GenerationConfig(ensemble="rotation", ensemble_weight=math.log(3))
    old, new = np.zeros((2, 7)), np.zeros((2, 7))
    new[0, 5] = 0.02
    ensemble = ChunkEnsemble()
    ensemble.add(old, 0.0, config)
    found = ensemble.add(new, 0.2, config)
    assert found[0, 5] == pytest.approx(0.015, abs=1e-5)  # small angles add up
    assert Rotation.from_euler("xyz", found[1, 3:6]).magnitude() == 0
