"""The nodes. Nothing outside this folder imports from it, and only it imports rclpy."""
