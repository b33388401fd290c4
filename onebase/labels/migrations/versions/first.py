"""People, invitations, tasks, leases, and judgements that nobody can change."""

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None

_REFUSED = "a judgement stays as it was given; withdraw it, and give another"
_IMMUTABLE = ("judgements", "withdrawals")


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "people",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(100), nullable=False, unique=True),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("password", sa.Text),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("added", moment, nullable=False),
    )
    op.create_table(
        "invitations",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("token_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("name", sa.String(100)),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("until", moment, nullable=False),
        sa.Column("used_by", sa.Integer, sa.ForeignKey("people.id")),
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("key", sa.String(64), nullable=False, unique=True),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("answers", sa.Text, nullable=False),
        sa.Column("sources", sa.Text, nullable=False),
        sa.Column("ended", sa.Text),
        sa.Column("tools", sa.Text, nullable=False),
        sa.Column("gold", sa.Text),
        sa.Column("chosen", sa.String(20), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("place", sa.Text, nullable=False),
        sa.Column("overlap", sa.Integer, nullable=False),
        sa.Column("added", moment, nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("task_id", sa.Integer, sa.ForeignKey("tasks.id"), nullable=False),
        sa.Column("person_id", sa.Integer, sa.ForeignKey("people.id"), nullable=False),
        sa.Column("given", moment, nullable=False),
        sa.Column("until", moment, nullable=False),
        sa.UniqueConstraint("person_id", "task_id", name="one_lease_each"),
    )
    op.create_index("leases_by_task", "leases", ["task_id", "until"])
    op.create_table(
        "judgements",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("task_id", sa.Integer, sa.ForeignKey("tasks.id"), nullable=False),
        sa.Column("person_id", sa.Integer, sa.ForeignKey("people.id"), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("grades", sa.Text),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("late", sa.Boolean, nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.UniqueConstraint("person_id", "key", name="one_judgement_per_key"),
        sa.UniqueConstraint("person_id", "task_id", "attempt", name="one_judgement_per_attempt"),
    )
    op.create_index("judgements_by_task", "judgements", ["task_id"])
    op.create_table(
        "withdrawals",
        sa.Column("judgement_id", sa.Integer, sa.ForeignKey("judgements.id"), primary_key=True),
        sa.Column("at", moment, nullable=False),
    )
    _refuse_changes()


def _refuse_changes() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for table in _IMMUTABLE:
            for change in ("UPDATE", "DELETE"):
                op.execute(
                    f"CREATE TRIGGER {table}_refuse_{change.lower()} BEFORE {change} ON {table} "
                    f"BEGIN SELECT RAISE(ABORT, '{_REFUSED}'); END"
                )
        # INSERT OR REPLACE deletes without the trigger of DELETE.
        op.execute(
            "CREATE TRIGGER judgements_refuse_replace BEFORE INSERT ON judgements WHEN EXISTS ("
            "SELECT 1 FROM judgements WHERE id = NEW.id OR (person_id = NEW.person_id AND "
            "(key = NEW.key OR (task_id = NEW.task_id AND attempt = NEW.attempt)))) "
            f"BEGIN SELECT RAISE(ABORT, '{_REFUSED}'); END"
        )
        return
    op.execute(
        "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{_REFUSED}'; END $$"
    )
    for table in _IMMUTABLE:
        op.execute(
            f"CREATE TRIGGER {table}_refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
