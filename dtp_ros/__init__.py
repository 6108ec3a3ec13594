"""Vision-language-action models with Distracting Token Pruning, on WidowX arms, in ROS 2."""

__version__ = "0.1.0"
