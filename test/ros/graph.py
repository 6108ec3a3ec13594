"""What the harnesses of the node tests share."""

import threading
from contextlib import contextmanager

from rclpy.executors import SingleThreadedExecutor


@contextmanager
def spinning(node, executor=None):
    """Spin a node in a thread, in an executor of its own unless one is given; destroy it at the end."""
    executor = executor or SingleThreadedExecutor()
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin)
    thread.start()
    try:
        yield node
    finally:
        executor.shutdown()
        thread.join()
        node.destroy_node()
