"""Decisions: who may call, which connector answers, what a failure means for the call, and what is written down about
it.

Imports no transport. Data flows from here to adapters, wire and store; nothing comes back but events and
`PatchbayError`.
"""
