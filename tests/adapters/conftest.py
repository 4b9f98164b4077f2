"""What of this folder is no test of the gateway."""

# Packages of others with tests of their own, which run once they are installed.
collect_ignore = ["plugins"]
