"""Whether pruning helps a policy: benchmarks, arms, logs, statistics and reports, without ROS."""
