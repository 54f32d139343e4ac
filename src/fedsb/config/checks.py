"""Which settings do not go together: all of them refused at once, before anything is read or loaded."""

from __future__ import annotations

from collections.abc import Iterator

from fedsb.config.method_checks import method_faults
from fedsb.config.privacy_checks import privacy_faults
from fedsb.config.run_config import RunConfig
from fedsb.errors import InputError


def check_settings(config: RunConfig) -> None:
    """Refuse settings that do not belong together.

    Raises:
        InputError: an unknown method, heads that do not divide, mixed ranks a method cannot do, private data
            left unprotected, ...; one line per fault.
    """
    faults = [*_cohort(config), *method_faults(config), *privacy_faults(config)]
    if len(faults) == 1:
        raise InputError(faults[0])
    if faults:
        raise InputError("\n  ".join([f"config: {len(faults)} wrong", *faults]))


def _cohort(config: RunConfig) -> Iterator[str]:
    wanted, clients = config.federation.clients_per_round, config.federation.clients
    if wanted is not None and wanted > clients:
        yield (
            f"federation.clients_per_round: expected at most {clients} (all clients), found {wanted}; "
            "null takes all of them"
        )
