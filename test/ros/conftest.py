"""Fixtures of the node tests."""

import pytest


@pytest.fixture(scope="session")
def arm_messages(request):
    """interbotix_xs_msgs and control_msgs, real ones, importable here; the environment for other processes."""
    import message_types
    from arm_messages import provide

    if missing := message_types.missing():
        pytest.skip(f"to build message types it needs {missing}")  # Humble's generators are called otherwise
    return provide(request.config.cache.mkdir("message_types"))
