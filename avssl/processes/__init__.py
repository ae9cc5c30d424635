"""Processes that may be killed: limits, pools and the messages between them."""
