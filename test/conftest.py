"""What every test's ROS graph needs, set before any participant is made."""

import os

from dtp_ros.resources import share_file

# Fast DDS's own shared memory segment is smaller than one 640x480 image: most best-effort images would be lost.
os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(share_file("config/fastdds.xml")))
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")


def pytest_addoption(parser):
    parser.addoption("--path", choices=("speculative", "sequential", "static"), default="speculative",
                     help="which way the engine takes in every test: `make test-all` goes each of them")  # fmt: skip


def pytest_configure(config):
    """Before anything imports `generate`: it takes the path that is asked for, whatever its caller says."""
    path = config.getoption("--path")
    if path == "speculative":
        return
    from dtp_ros.engine import refine
    from dtp_ros.engine.static import StaticPasses

    generate = refine.generate

    def on_path(adapter, prompt, constants, *, speculative=True, passes=None, **rest):
        if path == "sequential":
            speculative = False
        elif not isinstance(passes, StaticPasses):
            passes = StaticPasses(adapter)
        return generate(adapter, prompt, constants, speculative=speculative, passes=passes, **rest)

    refine.generate = on_path
