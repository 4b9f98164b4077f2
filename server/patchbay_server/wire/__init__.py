"""Bytes to frames and back: framing, signing, the one place that opens connections. Knows no provider and no call."""
