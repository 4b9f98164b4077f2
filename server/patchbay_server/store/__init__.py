"""What must survive: connectors, policy, tokens, the audit trail and the record of every call. `protocol` says what;
`sql` and `memory` do it.
"""
