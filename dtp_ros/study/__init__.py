"""Training, and experiments on the tabletop without ROS."""
