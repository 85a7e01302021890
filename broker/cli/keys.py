"""`broker keys`: who may sign what. Private keys go to files, never to the database nor to the screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.options import (
    CatalogOption,
    DatabaseOption,
    DataOption,
    FormatOption,
    needed_database_url,
    read_settings,
)
from broker.cli.printing import OutputFormat, print_rows, say
from broker.clock import utc_now_us
from broker.domain.bus_jobs import is_tenant_name
from broker.domain.errors import UsageError

if TYPE_CHECKING:
    from broker.settings import Settings
    from broker.signing import KeyRole

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Signing keys of lanes and producers.")
lane_app = typer.Typer(no_args_is_help=True, help="What a lane's workers sign with.")
app.add_typer(lane_app, name="lane")
producer_app = typer.Typer(no_args_is_help=True, help="What producers sign the jobs with that they send over the bus.")
app.add_typer(producer_app, name="producer")


@lane_app.command("create")
def create_lane_key(
    lane: Annotated[str, typer.Argument(help="A lane of the catalog.")],
    to: Annotated[Path, typer.Option("--to", help="Folder for lane-NAME.key and broker.pub.")] = Path(),
    database_url: DatabaseOption = None,
    data: DataOption = None,
    catalog: CatalogOption = None,
) -> None:
    """Make a lane's signing key, and write it where its worker will find it, with the broker's public keys."""
    from broker.catalog.lanes import load_lanes
    from broker.signing import KeyRole

    settings = read_settings(data, catalog)
    names = sorted(str(one.name) for one in load_lanes(settings.catalog))
    if lane not in names:
        raise UsageError(f"{lane!r} is no lane of the catalog; it has {', '.join(names)}")
    _create(settings, database_url, to, f"lane-{lane}", KeyRole.LANE, lane)


@producer_app.command("create")
def create_producer_key(
    tenant: Annotated[str, typer.Argument(help="Whose jobs it signs: 1 to 64 of a-z, 0-9, - and _.")],
    to: Annotated[Path, typer.Option("--to", help="Folder for producer-TENANT.key and broker.pub.")] = Path(),
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Make a producer's signing key, and write it with the broker's public keys, which replies are verified with."""
    from broker.signing import KeyRole

    if not is_tenant_name(tenant):
        raise UsageError(
            f"TENANT is {tenant[:80]!r}; it must be 1 to 64 of a-z, 0-9, - and _, and begin with a letter or a digit"
        )
    _create(read_settings(data), database_url, to, f"producer-{tenant}", KeyRole.PRODUCER, tenant)


def _create(settings: Settings, database_url: str | None, to: Path, name: str, role: KeyRole, owner: str) -> None:
    """The key file and `broker.pub`, the public halves known to the broker."""
    from broker.bootstrap.stored_keys import remember_signer
    from broker.database.drivers.postgres.database import open_postgres
    from broker.database.keys import all_keys
    from broker.keys import load_or_create_signer, trust_text
    from broker.signing import KeyRole

    database = open_postgres(needed_database_url(database_url, settings), name="broker keys")
    path = to / f"{name}.key"
    try:
        brokers = settings.data / "keys"
        load_or_create_signer(brokers, "broker")
        remember_signer(database, brokers / "broker.key", KeyRole.BROKER, "broker", utc_now_us)
        load_or_create_signer(to, name)
        signer = remember_signer(database, path, role, owner, utc_now_us)
        known = database.read(all_keys)
    finally:
        database.close()
    stored = next(key for key in known if key.key_id == signer.key_id)
    if stored.revoked_us is not None:
        raise UsageError(f"{path} holds the revoked key {signer.key_id}: move it away for a new one")
    if (stored.role, stored.owner) != (role, owner):
        raise UsageError(f"{path} holds a key of {stored.role} {stored.owner}: move it away for one of {role} {owner}")
    trusted = [(key.key_id, key.public_key) for key in known if key.role == KeyRole.BROKER and key.revoked_us is None]
    (to / "broker.pub").write_text(trust_text(trusted))
    whose = "workers" if role is KeyRole.LANE else "producers"
    say(f"{path}   key {signer.key_id} of {role} {owner}: keep it secret, for its {whose} alone")
    say(f"{to / 'broker.pub'}   the broker's public keys, {len(trusted)} of them")


@app.command("list")
def list_keys(
    database_url: DatabaseOption = None, data: DataOption = None, output: FormatOption = OutputFormat.TABLE
) -> None:
    """Every public key there ever was."""
    from broker.database.drivers.postgres.database import open_postgres
    from broker.database.keys import all_keys

    database = open_postgres(needed_database_url(database_url, read_settings(data)), name="broker keys")
    try:
        known = database.read(all_keys)
    finally:
        database.close()
    rows = [
        {"key": key.key_id, "role": key.role, "owner": key.owner, "state": "revoked" if key.revoked_us else "in force"}
        for key in known
    ]
    print_rows(rows, output, title="Keys", empty="There are no keys.")


@app.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(help="Its id, as `broker keys list` shows it.")],
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Accept nothing more that this key signs; every process of the broker follows within ten seconds."""
    from broker.database.drivers.postgres.database import open_postgres
    from broker.database.keys import revoke

    database = open_postgres(needed_database_url(database_url, read_settings(data)), name="broker keys")
    try:
        done = database.write(lambda connection: revoke(connection, key, utc_now_us()))
    finally:
        database.close()
    if not done:
        raise UsageError(f"there is no key {key!r} in force")
    say(f"Revoked {key}.")
