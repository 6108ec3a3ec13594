"""Settings of hypothesis: no deadline, since these machines are shared; the same examples on every run."""

from hypothesis import settings

settings.register_profile("dtp_ros", deadline=None, derandomize=True)
settings.load_profile("dtp_ros")
