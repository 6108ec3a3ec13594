"""The nodes. Nothing else in the package imports from it, or imports rclpy."""
