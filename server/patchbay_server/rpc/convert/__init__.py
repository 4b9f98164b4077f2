"""Between protobuf and the gateway's own words, in both directions.

Owns what belongs to the wire: presence, enum zeros, oneofs, resource names, durations. What a value means is judged by
the core. No message that holds a credential is ever printed, logged or quoted in an error.
"""
