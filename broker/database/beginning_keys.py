"""The secret of each tenant that keys the digests of its prompts' beginnings: made once, never shown."""

from __future__ import annotations

import os

from sqlalchemy import Connection, bindparam, select, update

from broker.database.tables import tenant

__all__ = ["BeginningKeys"]

_KEY_BYTES = 32
_GET = select(tenant.c.beginning_key).where(tenant.c.tenant_id == bindparam("of_tenant"))
# Of two processes at once the first one's holds.
_MAKE = (
    update(tenant)
    .where(tenant.c.tenant_id == bindparam("of_tenant"), tenant.c.beginning_key.is_(None))
    .values(beginning_key=bindparam("fresh"))
)


class BeginningKeys:
    """Remembers those that it has read, which never change."""

    def __init__(self) -> None:
        self._known: dict[str, bytes] = {}

    def of(self, connection: Connection, tenant_id: str) -> bytes:
        """The key of a tenant that exists, inside a write: it is kept with what is kept under it."""
        if key := self._known.get(tenant_id):
            return key
        asked = {"of_tenant": tenant_id}
        if key := connection.execute(_GET, asked).scalar_one():
            self._known[tenant_id] = bytes(key)  # it was there before, so this transaction can't take it back
            return bytes(key)
        connection.execute(_MAKE, asked | {"fresh": os.urandom(_KEY_BYTES)})
        return bytes(connection.execute(_GET, asked).scalar_one())
