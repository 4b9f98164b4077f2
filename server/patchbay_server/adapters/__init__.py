"""One provider's dialect each. Adapters translate: they open no connection, read no clock, retry nothing and log
nothing.
"""
