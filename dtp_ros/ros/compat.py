"""What differs between the rclpy of Humble and of later releases."""

from __future__ import annotations

from rclpy.subscription import Subscription

# Whether a subscription's callback may take (message, info): rclpy 3.4 and later, so not Humble.
HAS_MESSAGE_INFO = hasattr(Subscription, "CallbackType")
