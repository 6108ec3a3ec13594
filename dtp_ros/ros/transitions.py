"""Lifecycle transitions that may turn out impossible, without an end of the executor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node


def one_line(error: BaseException) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def try_transition(node: Node, transition: Callable[[], TransitionCallbackReturn]) -> bool:
    """Make a transition, unless somebody else made it impossible meanwhile; returns whether it succeeded."""
    try:
        return bool(transition() == TransitionCallbackReturn.SUCCESS)
    except RuntimeError as error:  # rclpy's RCLError
        node.get_logger().debug(f"no transition: {one_line(error)}")
        return False


def refuse_impossible_transitions(node: Node) -> None:
    """Make ~/change_state answer an impossible request with success = false: rclpy lets it end the executor instead."""
    service = next(s for s in node.services if s.srv_name.endswith("change_state"))
    change_state = service.callback

    def guarded(request: Any, response: Any) -> Any:
        try:
            return change_state(request, response)
        except RuntimeError as error:
            node.get_logger().warning(f"transition {request.transition.id} refused: {one_line(error)}")
            response.success = False
            return response

    service.callback = guarded
