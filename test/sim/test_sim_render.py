"""Pictures: the camera against the pinhole formula, and that things are where they should be."""

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from sim_hand import joints_at

from dtp_ros.errors import ConfigError, SimulationError
from dtp_ros.sim.camera import BRIDGE_CAMERA, SINK_CAMERA
from dtp_ros.sim.gl import load_mujoco
from dtp_ros.sim.scene import CAMERA, add_camera
from dtp_ros.sim.tabletop import Tabletop
from dtp_ros.sim.tasks import TASKS
from dtp_ros.sim.textures import SURFACES, texture

# SIMPLER's figures: focal length and centre in pixels, poses (position in m, quaternion w x y z).
F, CX, CY = 623.588, 319.501, 239.545
POSES = {
    "bridge": ((0, -0.16, 0.336), (0.909182, -0.0819809, 0.347277, 0.214629)),
    "sink": ((-0.003, -0.21, 0.39), (-0.907313, 0.0782, -0.36434, -0.194741)),
}
CAMERAS = {"bridge": BRIDGE_CAMERA, "sink": SINK_CAMERA}
POINTS = [(0.3, 0.0, 0.0), (0.35, 0.1, 0.0), (0.24, -0.1, 0.0), (0.4, -0.1, 0.1), (0.5, 0.2, 0.05)]


def pinhole(point, pose):
    """u, v by the pinhole formula; camera axes x forward, y left, z up."""
    position, (w, x, y, z) = pose
    local = Rotation.from_quat([x, y, z, w]).inv().apply(np.subtract(point, position))
    return CX - F * local[1] / local[0], CY - F * local[2] / local[0]


def spot(camera, point, width=640, height=480):
    """Centre of a bright little sphere in MuJoCo's picture."""
    mujoco = load_mujoco()
    spec = mujoco.MjSpec()
    spec.visual.map.znear = 0.01
    spec.visual.headlight.ambient = [1.0] * 3
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=(0.003, 0, 0), pos=point, rgba=(1, 1, 1, 1))
    add_camera(spec, camera)
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, height, width) as renderer:
        renderer.update_scene(data, camera=CAMERA)
        v, u = np.nonzero(renderer.render().sum(axis=2) > 60)
    return u.mean(), v.mean()


@pytest.mark.parametrize("name", POSES)
@pytest.mark.parametrize("point", POINTS)
def test_rendered_point_is_where_the_pinhole_formula_says(name, point):
    expected = pinhole(point, POSES[name])
    np.testing.assert_allclose(spot(CAMERAS[name], point), expected, atol=0.35)
    np.testing.assert_allclose(CAMERAS[name].project(np.array([point]))[0], expected, atol=1e-6)


def test_another_size_is_stretched_not_cropped():
    u, v = pinhole(POINTS[1], POSES["bridge"])
    expected = ((u + 0.5) * 224 / 640 - 0.5, (v + 0.5) * 224 / 480 - 0.5)
    np.testing.assert_allclose(spot(BRIDGE_CAMERA, POINTS[1], 224, 224), expected, atol=0.5)


def test_a_point_behind_the_camera_has_no_pixel():
    assert np.isnan(BRIDGE_CAMERA.project(np.array([[-1.0, 0, 0.3]]))).all()


@pytest.fixture(scope="module")
def pictures():
    shown = {}
    for task in TASKS:
        with Tabletop(task, 2) as table:
            shown[task] = (table.render(), table.object_poses(), table.layout)
    return shown


@pytest.mark.parametrize("task", TASKS)
def test_picture_is_a_scene(pictures, task):
    picture = pictures[task][0]
    assert picture.shape == (480, 640, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 25
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 2000
    assert (picture == 255).all(axis=2).mean() < 0.02, "overexposed"


HUES = {  # task: a test of (red, green, blue) for the source's colour
    "spoon_on_towel": lambda r, g, b: (g > 1.15 * r) & (g > 2 * b),
    "carrot_on_plate": lambda r, g, b: (r > 1.7 * g) & (g > 2.5 * b) & (r > 150),
    "stack_blocks": lambda r, g, b: (g > 1.5 * r) & (g > 1.2 * b),
    "eggplant_in_basket": lambda r, g, b: (b > 1.5 * g) & (r > 1.5 * g),
}


@pytest.mark.parametrize("task", TASKS)
def test_source_is_seen_where_it_lies(pictures, task):
    picture, poses, layout = pictures[task]
    v, u = np.nonzero(HUES[task](*np.moveaxis(picture.astype(float), 2, 0)))
    assert len(u) > 100
    position = poses[layout.names[0]][0]
    expected = pinhole(position, POSES["sink" if task == "eggplant_in_basket" else "bridge"])
    assert np.hypot(np.median(u) - expected[0], np.median(v) - expected[1]) < 35  # half the length of the longest


def test_same_state_same_picture_bit_for_bit(pictures):
    with Tabletop("carrot_on_plate", 2) as table:
        np.testing.assert_array_equal(table.render(), pictures["carrot_on_plate"][0])


def test_arm_and_its_shadow_move_in_the_picture():
    with Tabletop("stack_blocks", 0) as table:
        before = table.render().astype(int)
        for height in (0.12, 0.08):
            table.step(joints_at(0.3, 0.0, height), 0.074)
        moved = np.abs(table.render().astype(int) - before).max(axis=2) > 20
    tip = pinhole((0.3, 0.0, 0.10), POSES["bridge"])
    near = moved[int(tip[1]) - 40 : int(tip[1]) + 40, int(tip[0]) - 90 : int(tip[0]) + 90]
    assert near.mean() > 0.1
    assert moved.mean() < 0.4, "the room stands still"


def test_settings_look_different():
    shown = {}
    for setting in ("plain", "unseen"):
        with Tabletop("stack_blocks", 0, setting=setting) as table:
            shown[setting] = table.render().astype(int)
    assert np.abs(shown["plain"] - shown["unseen"]).mean() > 10


@pytest.mark.parametrize("size", [(0, 480), (640, 5000), (-3, 3)])
def test_impossible_sizes_are_refused(size):
    with Tabletop("stack_blocks", 0) as table, pytest.raises(ConfigError, match="out of range"):
        table.render(*size)


def test_drawing_goes_on_after_close_and_after_another_table():
    one, two = Tabletop("stack_blocks", 0), Tabletop("stack_blocks", 1)
    first = one.render()
    two.render()
    np.testing.assert_array_equal(one.render(), first)
    one.close()
    two.close()
    np.testing.assert_array_equal(one.render(), first)
    one.close()


def test_no_graphics_says_what_to_install():
    code = (
        "from dtp_ros.errors import SimulationError\n"
        "from dtp_ros.sim.tabletop import Tabletop\n"
        "try:\n    Tabletop('stack_blocks', 0).render()\n"
        "except SimulationError as error:\n    print(error)\n"
    )
    environment = os.environ | {"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "77"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "apt-get install libegl1" in done.stdout
    assert issubclass(SimulationError, Exception)


def test_importing_the_package_does_not_import_mujoco():
    code = "import sys, os; import dtp_ros.sim.tabletop; print('mujoco' in sys.modules, 'MUJOCO_GL' in os.environ)"
    environment = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"], done.stderr


@pytest.mark.parametrize("name", SURFACES)
def test_textures_are_pictures_with_structure(name):
    picture = texture(name, 128)
    assert picture.shape == (128, 128, 3)
    assert picture.dtype == np.uint8
    assert picture.std(axis=(0, 1)).max() > 1


def test_an_unknown_texture_is_refused():
    with pytest.raises(ConfigError, match="cherry"):
        texture("marble", 64)


def test_tabletops_that_take_turns_draw_what_each_draws_alone():
    """Several contexts in one thread: each picture shows its own scene, whatever was drawn in between."""
    alone = []
    for episode in range(3):
        with Tabletop("carrot_on_plate", episode) as table:
            alone.append(table.render(160, 120))
    tables = [Tabletop("carrot_on_plate", episode) for episode in range(3)]
    for _ in range(2):
        for table, picture in zip(tables, alone, strict=True):
            np.testing.assert_array_equal(table.render(160, 120), picture)
    for table in tables:
        table.close()
