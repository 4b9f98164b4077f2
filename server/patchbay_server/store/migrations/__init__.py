"""Brings a database's tables up to what this code expects. Revisions live in `versions`, one line of them, each written
once and never edited.
"""

import threading
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from patchbay_server.errors import PatchbayError, Reason

_ALEMBIC: Final = threading.Lock()
"""Alembic hands the running migration to revisions through globals of its own, so one process migrates one database at
a time.
"""


def current_revision(tx: Connection) -> str | None:
    """The revision that the database's tables have; None before the first."""
    return MigrationContext.configure(tx).get_current_revision()


def migrate(tx: Connection) -> None:
    """Run the missing revisions within the transaction `tx`, which the caller has made the only one that migrates.

    Raises:
        DEPENDENCY_UNAVAILABLE when the database has a revision that this code does not know.
    """
    config = Config()
    config.set_main_option("script_location", "patchbay_server.store:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = tx
    with _ALEMBIC:
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        unknown = set(MigrationContext.configure(tx).get_current_heads()) - known
        if unknown:
            revisions = ", ".join(sorted(unknown))
            message = f"the database was written by a newer gateway (revision {revisions}); start that one"
            raise PatchbayError(Reason.DEPENDENCY_UNAVAILABLE, message)
        command.upgrade(config, "head")
