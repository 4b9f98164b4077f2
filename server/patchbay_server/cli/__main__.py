"""`python -m patchbay_server.cli` is `patchbay`."""

from patchbay_server.cli import main

main()
