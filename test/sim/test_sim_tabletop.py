import math

import numpy as np
import pytest
from sim_hand import ARM, CLOSED, OPEN, grasp, joints_at, move, yaw_of

from dtp_ros.errors import ActionError, ConfigError
from dtp_ros.sim.arm import START_JOINTS
from dtp_ros.sim.tabletop import CONTROL_PERIOD, Tabletop
from dtp_ros.sim.tasks import TASKS
from dtp_ros.widowx.kinematics import forward


def hold_still(table, seconds):
    table.command(table.joints, table.gripper)
    table.advance(seconds)


def test_end_effector_equals_the_product_of_exponentials():
    table = Tabletop("stack_blocks", 0)
    rng = np.random.default_rng(0)
    for _ in range(25):
        table.reset(rng.uniform(ARM.lower, ARM.upper))  # some touch the table: the measured joints count
        np.testing.assert_allclose(table.transform_ee_to_base, forward(ARM, table.joints), atol=1e-9)


def test_start_pose_is_above_the_table_pointing_down():
    table = Tabletop("carrot_on_plate", 0)
    expected = [[0, 0, 1, 0.3], [0, 1, 0, 0], [-1, 0, 0, 0.15], [0, 0, 0, 1]]
    np.testing.assert_allclose(table.transform_ee_to_base, expected, atol=1e-3)
    assert table.gripper == pytest.approx(0.074, abs=1e-4)


def test_limits_are_interbotix_limits():
    table = Tabletop("stack_blocks", 0)
    np.testing.assert_allclose(np.degrees(table.lower), [-180, -108, -123, -180, -100, -180], atol=1e-9)
    np.testing.assert_allclose(np.degrees(table.upper), [180, 114, 92, 180, 123, 180], atol=1e-9)


@pytest.mark.parametrize("joint", range(6))
def test_a_target_beyond_a_limit_is_refused_by_name(joint):
    table = Tabletop("stack_blocks", 0)
    for limit, sign in ((table.upper, 1), (table.lower, -1)):
        target = np.array(START_JOINTS)
        target[joint] = limit[joint] + sign * 0.001
        with pytest.raises(ActionError, match=ARM.joint_names[joint]):
            table.command(target, OPEN)


@pytest.mark.parametrize("gripper", [0.029, 0.075, math.nan, math.inf])
def test_a_gripper_out_of_range_is_refused(gripper):
    with pytest.raises(ActionError, match="gripper"):
        Tabletop("stack_blocks", 0).command(START_JOINTS, gripper)


@pytest.mark.parametrize("joints", [[0, 0, math.nan, 0, 0, 0], [0.0] * 5, [0, 0, 0, 0, 0, -math.inf]])
def test_joints_that_are_not_six_finite_angles_are_refused(joints):
    table = Tabletop("stack_blocks", 0)
    with pytest.raises(ActionError, match="six finite"):
        table.step(joints, OPEN)
    assert table.time == 0


@pytest.mark.parametrize("way", [(0.05, 0, 0), (0, 0.05, 0), (0, 0, -0.05), (-0.03, -0.03, 0.02)])
def test_a_bridge_step_arrives_within_one_period_without_overshoot(way):
    table = Tabletop("stack_blocks", 0)
    start, way = np.array([0.3, 0, 0.15]), np.array(way)
    table.command(joints_at(*(start + way)), OPEN)
    along = []
    for _ in range(round(CONTROL_PERIOD / 0.005)):
        table.advance(0.005)
        along.append((table.transform_ee_to_base[:3, 3] - start) @ way / np.linalg.norm(way) ** 2)
    assert np.linalg.norm(table.transform_ee_to_base[:3, 3] - start - way) < 1e-3
    assert max(along) < 1.03


def test_arm_holds_against_gravity_and_load():
    table = Tabletop("stack_blocks", 0)
    before = table.joints
    table.command(START_JOINTS, OPEN)
    table.advance(2.0)
    np.testing.assert_allclose(table.joints, before, atol=1e-4)


def test_advance_takes_multiples_of_the_time_step():
    table = Tabletop("stack_blocks", 0)
    table.advance(0.02)
    assert table.time == pytest.approx(0.02)
    with pytest.raises(ConfigError, match="multiple"):
        table.advance(0.012)


def test_a_block_falls_with_gravity_and_comes_to_rest():
    table = Tabletop("stack_blocks", 0)
    table.place("green_block", (0.3, -0.2, 0.3))
    table.advance(0.2)
    fallen = 0.3 - table.object_poses()["green_block"][0][2]
    assert fallen == pytest.approx(0.5 * 9.81 * 0.2**2, rel=0.05)
    table.advance(2.0)
    assert table.object_poses()["green_block"][0][2] == pytest.approx(0.015, abs=5e-4)


@pytest.mark.parametrize("task", TASKS)
def test_everything_rests_on_the_table_and_does_not_drift(task):
    table = Tabletop(task, 3, setting="clutter")
    laid = {
        name: (p.x, p.y, p.item.model().rest_height)
        for name, p in zip(table.layout.names, table.layout.placements, strict=True)
    }
    hold_still(table, 5.0)
    for name, (position, quaternion) in table.object_poses().items():
        np.testing.assert_allclose(position, laid[name], atol=1e-3, err_msg=name)
        assert 1 - 2 * (quaternion[1] ** 2 + quaternion[2] ** 2) > 0.9995, f"{name} has tipped over"


@pytest.mark.parametrize("task", TASKS)
def test_friction_alone_lifts_carries_and_lets_go(task):
    table = Tabletop(task, 1)
    assert table._model.neq == 1, "the only constraint is the mirrored finger: nothing is welded"
    source = table.source
    yaw = grasp(table, source)
    assert table.grasped() == source
    x, y, z = table.object_poses()[source][0]
    move(table, x, y, 0.20, yaw, CLOSED)
    lifted = table.object_poses()[source][0]
    assert lifted[2] > z + 0.12
    in_hand = lifted - table.transform_ee_to_base[:3, 3]
    move(table, 0.33, 0.02, 0.20, yaw, CLOSED)
    hold_position = table.object_poses()[source][0] - table.transform_ee_to_base[:3, 3]
    assert np.linalg.norm(hold_position - in_hand) < 2e-3, "it slips"
    for _ in range(20):
        table.step(table.joints, CLOSED)
    assert table.grasped() == source, "it creeps out of the fingers"
    table.step(table.joints, OPEN)
    table.advance(0.6)
    assert table.grasped() is None
    assert table.object_poses()[source][0][2] < 0.08


def test_closing_beside_an_object_grasps_nothing():
    table = Tabletop("carrot_on_plate", 1)
    table.step(START_JOINTS, CLOSED)
    assert table.grasped() is None
    assert table.gripper == pytest.approx(CLOSED, abs=1e-3)


def test_same_commands_same_episode_bit_for_bit():
    def play():
        table = Tabletop("carrot_on_plate", 2, distractors=3)
        grasp(table, "carrot")
        move(table, 0.3, 0.0, 0.15, 0.3, CLOSED)
        values = [table.joints, [table.gripper, table.time]]
        return np.concatenate([*values, *(np.concatenate(pose) for pose in table.object_poses().values())])

    np.testing.assert_array_equal(play(), play())


def test_reset_repeats_the_episode():
    table = Tabletop("eggplant_in_basket", 5, distractors=2)
    first = table.object_poses()
    grasp(table, "eggplant")
    table.reset()
    assert table.time == 0
    for name, (position, quaternion) in table.object_poses().items():
        np.testing.assert_array_equal(position, first[name][0])
        np.testing.assert_array_equal(quaternion, first[name][1])


def on_target_position(table, dx=0.0, dy=0.0, dz=0.0):
    """Where the source lies on its target, offset in the target's frame; heights from the objects' sizes."""
    position, quaternion = table.object_poses()[table.target]
    height = {
        "spoon_on_towel": 0.004 + 0.006,
        "carrot_on_plate": 0.0005 + 0.0115,
        "stack_blocks": 0.030,
        "eggplant_in_basket": 0.004 + 0.015,
    }[table.task.name]
    yaw = yaw_of(quaternion)
    x = position[0] + math.cos(yaw) * dx - math.sin(yaw) * dy
    y = position[1] + math.sin(yaw) * dx + math.cos(yaw) * dy
    return x, y, position[2] + height + dz


OFF = {
    "spoon_on_towel": (0.0, 0.08),
    "carrot_on_plate": (0.10, 0.0),
    "stack_blocks": (0.0, 0.04),
    "eggplant_in_basket": (0.0, 0.12),
}


@pytest.mark.parametrize("task", TASKS)
def test_success_of_hand_placed_states(task):
    table = Tabletop(task, 0)
    table.reset(joints_at(0.2, 0.0, 0.25))
    hold_still(table, 0.2)
    assert not table.success(), "at the start"
    table.place(table.source, on_target_position(table, dz=0.002))
    hold_still(table, 0.6)
    assert table.on_target()
    assert table.success()
    dx, dy = OFF[task]
    table.place(table.source, on_target_position(table, dx, dy, dz=0.03))
    hold_still(table, 0.8)
    assert not table.on_target()
    assert not table.success(), "beside the target"
    table.place(table.source, on_target_position(table, dz=0.08))
    assert not table.success(), "above the target"


def test_no_success_while_it_moves():
    table = Tabletop("eggplant_in_basket", 0)
    table.place("eggplant", on_target_position(table, dz=0.025))
    table.advance(0.05)
    assert table.on_target()
    assert not table.success()


def test_no_success_while_it_is_held():
    table = Tabletop("stack_blocks", 1)
    table.place("green_block", on_target_position(table, dz=0.0005), (1, 0, 0, 0))
    hold_still(table, 0.4)
    assert table.success()
    grasp(table, "green_block")
    assert table.grasped() == "green_block"
    assert table.on_target()
    assert not table.success()


def test_placing_what_is_fixed_or_unknown_is_refused():
    table = Tabletop("spoon_on_towel", 0)
    with pytest.raises(ConfigError, match="fixed"):
        table.place("towel", (0.3, 0, 0.1))
    with pytest.raises(ConfigError, match="spoon, towel"):
        table.place("plate", (0.3, 0, 0.1))
