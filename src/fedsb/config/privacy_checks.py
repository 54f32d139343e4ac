"""Which settings would leave private data unprotected, or claim what does not hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from importlib.util import find_spec

from fedsb.config.method import able_names, method_of
from fedsb.config.run_config import RunConfig
from fedsb.config.sections.privacy import PrivacyConfig
from fedsb.errors import InputError
from fedsb.methods import Method


def privacy_faults(config: RunConfig) -> Iterator[str]:
    """What privacy rules out.

    Raises:
        InputError: the method is unknown.
    """
    method, privacy = method_of(config), config.privacy
    yield from _start(config, method)
    if privacy is not None:
        yield from _packages(privacy)
        yield from _training(config, privacy)
        yield from _by_unit(config, privacy, method)
        yield from _owner(config, privacy)
        yield from _banded(config, privacy, method)


def _start(config: RunConfig, method: Method) -> Iterator[str]:
    init = config.method.init
    if init.private and (config.privacy is None or config.privacy.unit != "example"):
        yield "method.init.private: a noised start needs privacy.unit: example; leave it out otherwise"
    if init.private and init.public:
        yield "method.init: take private: true or a public file, not both"
    if config.privacy is None:
        return
    makes_bases = method.draw is None and method.bases == "init"
    if makes_bases and init.kind == "gradient" and not (init.private or init.public):
        yield (
            "method.init.kind: gradient would publish raw gradients of private rows. Set method.init.kind to "
            "weights or orthonormal (no data), or method.init.private: true (clipped and noised, charged "
            "to the budget), or method.init.public to a file that needs no protection"
        )
    if init.private and config.privacy.epsilon is None and config.privacy.noise_multiplier is None:
        yield "method.init.private: set privacy.epsilon, of which the start gets budget_share"
    if init.head_warmup is not None and not init.public:
        yield (
            "method.init.head_warmup: it would train the head on private rows without noise; set it to null, "
            "or method.init.public to a file that needs no protection"
        )


def _packages(privacy: PrivacyConfig) -> Iterator[str]:
    needed = ["cryptography", "dp_accounting"] + (["opacus"] if privacy.unit == "example" else [])
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        yield f"privacy: {', '.join(missing)} is needed and missing; pip install 'fedsb[dp]'"


def _training(config: RunConfig, privacy: PrivacyConfig) -> Iterator[str]:
    init = config.method.init
    if config.method.refresh_every is not None and init.kind == "gradient" and not init.public:
        yield (
            "method.refresh_every: each refresh would look at private rows again; leave it out, or take "
            "method.init.kind: orthonormal"
        )
    if config.method.refresh_when is not None:
        yield (
            "method.refresh_when: with privacy noise alone keeps the core moving, so that its changes do not "
            "tell when it has stopped learning; take method.refresh_every"
        )
    if config.training.class_weights == "balanced":
        yield (
            "training.class_weights: balanced is made of counts of private labels, which no noise covers; "
            "give numbers that are known without them, e.g. {negative: 1, positive: 4}"
        )
    if privacy.unit == "example" and config.training.grad_clip is not None:
        yield "training.grad_clip: privacy.clip_norm clips every example already; leave grad_clip out"


def _by_unit(config: RunConfig, privacy: PrivacyConfig, method: Method) -> Iterator[str]:
    federation = config.federation
    if privacy.unit == "example":
        if federation.upload_dtype == "float16":
            yield (
                "federation.upload_dtype: a number too large for float16 would fail, and tell of private "
                "rows without being charged; take bfloat16, which holds them all"
            )
        return
    if not method.averages:
        yield (
            f"privacy.unit: client needs a method that averages factors, found {method.name}; take one of "
            f"{able_names(lambda m: m.averages and not m.stays)}"
        )
    if federation.weighting != "uniform":
        yield (
            "federation.weighting: privacy.unit client bounds what one client can do, so all weigh the same; "
            "set federation.weighting: uniform"
        )
    if federation.client_ranks or federation.client_heads:
        yield "federation.client_ranks, client_heads: not with privacy.unit: client; leave them out"


def _owner(config: RunConfig, privacy: PrivacyConfig) -> Iterator[str]:
    """What would release a sum that one owner's rows together move further than noise is made for."""
    if privacy.owner is None:
        return
    if config.method.init.private:
        yield (
            "method.init.private: its noise covers single rows, not all rows of an owner; leave it out, "
            "and take "
            "method.init.kind: weights or orthonormal, or public rows (method.init.public)"
        )
    if config.scores_at_clients:
        yield (
            "evaluation.at_clients: the noise on counts covers single rows, not all rows of an owner; leave "
            "at_clients and data.client_test out, or privacy.owner"
        )
    if config.data.group not in (None, privacy.owner):
        yield (
            f"data.group: the rows of one owner stay on one side, so group is {privacy.owner!r} here; "
            "leave it out"
        )


def _banded(config: RunConfig, privacy: PrivacyConfig, method: Method) -> Iterator[str]:
    """What noise that cancels over steps does not go with."""
    if privacy.mechanism != "banded":
        return
    training, federation, key = config.training, config.federation, "privacy.mechanism: banded"
    if privacy.unit == "example" and (training.optimizer != "sgd" or training.schedule == "cosine"):
        yield f"{key} is for training.optimizer: sgd with schedule: constant or linear; set them"
    if privacy.unit == "example" and federation.clients_per_round is not None:
        yield f"{key} needs every client in every round; leave federation.clients_per_round out"
    if privacy.unit == "client" and federation.secure_aggregation is not None:
        yield f"{key}: clients share independent noise under federation.secure_aggregation; leave one out"
    if refreshes := config.method.refreshes:
        yield f"{key}: later noise takes earlier noise back, over bases {refreshes} replaces; leave one out"
    if method.experts is not None or method.trains(1) != method.trains(2) or method.trains_in_step:
        yield f"{key}: {method.name} does not train the same numbers in every round; take another method"


def check_delta(config: RunConfig, sizes: Collection[int]) -> float:
    """Delta of this run.

    Args:
        sizes: examples of each client, or owners where `privacy.owner` is set.

    Raises:
        InputError: delta is so large that publishing one whole unit at random would satisfy it.
    """
    assert config.privacy is not None
    unit = config.privacy.protects
    num_units = len(sizes) if unit == "client" else min(sizes)
    delta = config.privacy.delta
    if delta is None:
        return min(1e-5, 1 / (10 * num_units))
    what = "clients" if unit == "client" else f"{unit}s of the smallest client"
    refuse_large_delta("privacy.delta", delta, num_units, what)
    return delta


def refuse_large_delta(key: str, delta: float, num_units: int, what: str) -> None:
    """Refuse a delta that publishing one whole unit at random would satisfy.

    Args:
        key: the config's key or the option.
        what: the units.

    Raises:
        InputError: it is at least one over `num_units`.
    """
    if delta >= 1 / num_units:
        raise InputError(
            f"{key}: expected less than 1 / {num_units} (the {what}), found {delta:g}: at that "
            f"delta, giving away one of them in full counts as private. Try {0.1 / num_units:.1g}"
        )
