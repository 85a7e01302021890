"""An HTTP peer of OCI Queue for tests and local development; see README.md beside this file."""

from infra.emulators.ociqueue.emulator import COMPARTMENT, Emulator, Options
from infra.emulators.ociqueue.faults import Action, Fault, Point
from infra.emulators.ociqueue.limits import Limits
from infra.emulators.ociqueue.queues import Description
from infra.emulators.ociqueue.signatures import PublicKey, public_key

__all__ = [
    "COMPARTMENT",
    "Action",
    "Description",
    "Emulator",
    "Fault",
    "Limits",
    "Options",
    "Point",
    "PublicKey",
    "public_key",
]
