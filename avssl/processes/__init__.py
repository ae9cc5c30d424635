"""Processes that may be killed: their limits, pools of them, and the messages between processes."""
