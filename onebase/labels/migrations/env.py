"""Run by Alembic, on the connection and in the transaction that it is given."""

from alembic import context

from onebase.labels.schema import VERSION_TABLE, metadata


def migrate() -> None:
    """Brings the database of the connection to the version that was asked for."""
    context.configure(
        connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
    )
    with context.begin_transaction():
        context.run_migrations()


if hasattr(context, "config"):  # else imported like any module, not run by Alembic
    migrate()
