"""What every test's ROS graph needs, set before any participant is made."""

import os

from dtp_ros.resources import share_file

# Fast DDS's own shared memory segment is smaller than one 640x480 image: most best-effort images would be lost.
os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(share_file("config/fastdds.xml")))
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
