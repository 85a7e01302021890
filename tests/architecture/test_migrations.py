"""A revision of the expand phase takes no long lock, and takes nothing from older builds; each check has its plant.

Looked at is the SQL that PostgreSQL would be told, so it doesn't matter by which words a revision says it. Revisions up
to 0007 were made before there were phases.
"""

from __future__ import annotations

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest
from sqlalchemy.dialects import postgresql

from broker.database.history import INSTALLED, Revision
from broker.database.migrating import Planned, statements_of

BEFORE_PHASES = "0007"

REASON_WORDS_MIN = 5

DIALECT = postgresql.dialect()

FORBIDDEN = {
    "an index that locks out writers: name it in `online_indexes`": re.compile(
        r"CREATE (UNIQUE )?INDEX (?!CONCURRENTLY)\S+ ON (?P<table>\S+)"
    ),
    "a column that must be filled, without a default": re.compile(
        r"ALTER TABLE (?P<table>\S+) ADD COLUMN (?!.* DEFAULT ).* NOT NULL"
    ),
    "a default that is computed for each row, which rewrites the table": re.compile(
        r"ALTER TABLE (?P<table>\S+) ADD COLUMN .* DEFAULT .*(random|clock_timestamp|nextval|uuid\w*)\("
    ),
    "a generated or serial column, which rewrites the table": re.compile(
        r"ALTER TABLE (?P<table>\S+) ADD COLUMN .* (GENERATED|\w*SERIAL)\b"
    ),
    "a change of type, which may rewrite the table": re.compile(r"ALTER TABLE (?P<table>\S+) ALTER COLUMN .* TYPE "),
    "a scan under the strongest lock": re.compile(r"ALTER TABLE (?P<table>\S+) ALTER COLUMN .* SET NOT NULL"),
    "a constraint that is checked at once: add it NOT VALID": re.compile(
        r"ALTER TABLE (?P<table>\S+) ADD (CONSTRAINT|FOREIGN|CHECK|UNIQUE|PRIMARY|EXCLUDE)(?!.*NOT VALID)"
    ),
    "something that older builds use is taken away or renamed": re.compile(
        r"(ALTER TABLE (?P<table>\S+) (DROP|RENAME)|DROP (TABLE|COLUMN|INDEX) (?P<dropped>\S+))"
    ),
    "all rows of a table are written": re.compile(
        r"(UPDATE (?!broker_schema)(?P<table>\S+) SET|DELETE FROM (?P<emptied>\S+)|CLUSTER|VACUUM|TRUNCATE)"
    ),
    "a table is locked by name": re.compile(r"LOCK TABLE (?P<table>\S+)"),
}


def faults_of(planned: Planned) -> list[str]:
    """What is wrong with a revision; of the contract phase that its reason or its floor is missing."""
    module = planned.revision.module
    if planned.revision.is_contract:
        floor = getattr(module, "oldest_served", "")
        if not re.fullmatch(r"\d{4}", floor) or floor > planned.revision.number:
            return ["names no `oldest_served`, the revision of the oldest build that it still serves"]
        if len(getattr(module, "contract_reason", "").split()) < REASON_WORDS_MIN:
            return ["gives no `contract_reason`"]
        return []
    created = {name for text in planned.statements for name in re.findall(r"^CREATE TABLE (\S+)", text)}
    faults = []
    for statement in planned.statements:
        for fault, pattern in FORBIDDEN.items():
            if (match := pattern.match(statement)) and not set(match.groupdict().values()) & created:
                faults.append(f"{fault}: {statement}")
        if statement.startswith("…"):
            faults.append("its statements can't be seen without a database")
    return faults


def test_revisions_that_expand_do_so_in_use():
    revisions = INSTALLED.after(BEFORE_PHASES)
    assert revisions
    found = {one.number: faults_of(Planned(one, statements_of(one, DIALECT))) for one in revisions}
    assert {number: faults for number, faults in found.items() if faults} == {}


def planted(folder, name, text):
    """A revision that says this, its phase in its file name."""
    path = folder / name
    path.write_text(
        f"import sqlalchemy as sa\nfrom alembic import op\nfrom migrations.online import OnlineIndex\n{text}\n"
    )
    spec = spec_from_file_location("planted", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules.pop("planted", None)
    phase = "contract" if "_contract_" in name else "expand"
    revision = Revision("0042", phase, "planted", module)
    return faults_of(Planned(revision, statements_of(revision, DIALECT)))


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("op.create_index('ix', 'shard', ['lane'])", "locks out writers"),
        ("op.create_index('ix', 'shard', ['lane'], unique=True)", "locks out writers"),
        ("op.execute('CREATE INDEX ix ON ONLY attempt (lane)')", "locks out writers"),
        ("op.add_column('shard', sa.Column('zone', sa.Text, nullable=False))", "without a default"),
        (
            "op.add_column('shard', sa.Column('u', sa.Uuid, server_default=sa.text('gen_random_uuid()')))",
            "computed for each row",
        ),
        ("op.add_column('shard', sa.Column('n', sa.Integer, sa.Computed('1 + 1')))", "generated or serial"),
        ("op.alter_column('shard', 'jobs_count', type_=sa.BigInteger)", "change of type"),
        ("op.alter_column('shard', 'lane', nullable=False)", "scan under the strongest lock"),
        ("op.create_check_constraint('few', 'shard', 'jobs_count < 9')", "checked at once"),
        ("op.create_foreign_key('fk', 'shard', 'lane', ['lane'], ['name'])", "checked at once"),
        ("op.create_unique_constraint('uq', 'shard', ['lane'])", "checked at once"),
        ("op.drop_column('shard', 'lane')", "taken away or renamed"),
        ("op.drop_table('share_limit')", "taken away or renamed"),
        ("op.drop_index('ix_shard_open', 'shard')", "taken away or renamed"),
        ("op.rename_table('shard', 'piece')", "taken away or renamed"),
        ("op.alter_column('shard', 'lane', new_column_name='road')", "taken away or renamed"),
        ("op.execute(\"UPDATE shard SET lane = 'x'\")", "all rows"),
        ("op.execute('LOCK TABLE shard')", "locked by name"),
        ("op.get_bind().execute(sa.text('SELECT 1')).scalar_one()", "can't be seen"),
    ],
)
def test_a_revision_that_would_be_noticed_is_found(tmp_path, body, fault):
    faults = planted(tmp_path, "0042_careless.py", f"def upgrade():\n    {body}")
    assert len(faults) == 1
    assert fault in faults[0]


@pytest.mark.parametrize(
    "body",
    [
        "op.add_column('shard', sa.Column('zone', sa.Text))",
        "op.add_column('shard', sa.Column('zone', sa.Text, nullable=False, server_default=''))",
        "op.create_table('zone', sa.Column('n', sa.Text)); op.create_index('ix', 'zone', ['n'])",
        "op.execute('ALTER TABLE shard ADD CONSTRAINT few CHECK (jobs_count < 9) NOT VALID')",
        "pass\nonline_indexes = (OnlineIndex('ix', 'shard', ['lane']),)",
    ],
)
def test_a_revision_that_only_adds_is_let_be(tmp_path, body):
    assert planted(tmp_path, "0042_careful.py", f"def upgrade():\n    {body}") == []


def test_a_contract_names_its_floor_and_its_reason(tmp_path):
    name, body = "0042_contract_shares.py", "def upgrade():\n    op.drop_table('share_limit')"
    assert "oldest_served" in planted(tmp_path, name, body)[0]
    assert "oldest_served" in planted(tmp_path, name, f"oldest_served = '0043'\n{body}")[0]
    assert "contract_reason" in planted(tmp_path, name, f"oldest_served = '0041'\ncontract_reason = 'old'\n{body}")[0]
    reason = "contract_reason = 'nothing reads it since the build of 0041'"
    assert planted(tmp_path, name, f"oldest_served = '0041'\n{reason}\n{body}") == []
