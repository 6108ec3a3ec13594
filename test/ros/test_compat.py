"""What the executor of the policy node survives, which rclpy's own does not, and answers that are lost."""

import threading
import time

import pytest
import rclpy
from graph import spinning
from policy_harness import wait_until
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.task import Future
from std_msgs.msg import String
from std_srvs.srv import Trigger

from dtp_ros.ros.compat import LastingExecutor, Question, unknown_parameters

DOMAIN = 72


@pytest.fixture
def nodes():
    rclpy.init(domain_id=DOMAIN)
    with spinning(Node("source")) as source, spinning(Node("sink"), LastingExecutor(num_threads=4)) as sink:
        yield source, sink
    rclpy.try_shutdown()


def test_subscriptions_that_come_and_go_under_a_stream_leave_the_node_alive(nodes):
    """As a policy that is cleaned up while images arrive; rclpy's executor lasts a second or two here."""
    source, sink = nodes
    publisher, heard, ended = source.create_publisher(String, "stream", 10), [], threading.Event()

    def publish():
        while not ended.wait(0.0005):
            publisher.publish(String(data="x"))

    stream = threading.Thread(target=publish)
    stream.start()
    try:
        end = time.monotonic() + 5.0
        while time.monotonic() < end:
            subscription = sink.create_subscription(String, "stream", heard.append, 10)
            time.sleep(0.02)
            sink.destroy_subscription(subscription)
        assert heard
        sink.create_subscription(String, "stream", heard.append, 10)
        before = len(heard)
        wait_until(lambda: len(heard) > before + 10, "what the last subscription hears", 10.0)
    finally:
        ended.set()
        stream.join()


def test_a_parameter_that_is_misspelt_is_named_with_the_one_that_was_meant():
    """ROS ignores it without a word; a limit that somebody believes in would be none."""
    rclpy.init(domain_id=DOMAIN)
    given = {"max_joint_velocty": 0.3, "model_options.convention": "bridge", "tolerance": 1.0, "use_sim_time": False}
    overrides = [Parameter(name, value=value) for name, value in given.items()]
    node = Node("misspelt", parameter_overrides=overrides)
    try:
        for name in ("max_joint_velocity", "model_options"):
            node.declare_parameter(name, "")
        assert unknown_parameters(node, elsewhere=["tolerance"]) == [
            "parameter max_joint_velocty is none of this node's (is it max_joint_velocity?)",
            "parameter model_options.convention is none of this node's (is it model_options?)",
        ]
    finally:
        node.destroy_node()
        rclpy.shutdown()


def test_a_question_whose_answer_is_lost_is_asked_again(nodes):
    source, sink = nodes
    asked = []

    async def serve(request, response):
        asked.append(time.monotonic())
        if len(asked) == 1:
            await Future()  # this answer never comes
        response.message = f"asked {len(asked)} times"
        return response

    sink.create_service(Trigger, "ask", serve, callback_group=ReentrantCallbackGroup())
    client = source.create_client(Trigger, "ask")
    assert client.wait_for_service(10.0)
    question = Question(client, Trigger.Request(), again=0.5)
    wait_until(question.answered, "an answer", 10.0)
    assert question.answer().message == "asked 2 times"
    assert asked[1] - asked[0] >= 0.4
