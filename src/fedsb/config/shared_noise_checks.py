"""Which settings do not go with noise that clients share: what has no sum of gradients to add it to."""

from __future__ import annotations

from collections.abc import Iterator

from fedsb.config.method import able_names, method_of
from fedsb.config.run_config import RunConfig
from fedsb.methods import Method

KEY = "privacy.noise: shared"
SECURE = "federation.secure_aggregation"


def shared_noise_faults(config: RunConfig) -> Iterator[str]:
    """What is wrong with `privacy.noise` and `privacy.honest`, if they are set.

    Raises:
        InputError: the method is unknown.
    """
    privacy = config.privacy
    if privacy is None:
        return
    if privacy.noise == "shared" and not config.shares_noise:
        yield f"{KEY} is added under the masks of {SECURE}; set that, or leave noise out"
    elif privacy.honest is not None and not config.shares_noise:
        yield (
            f"privacy.honest: clients share the noise of privacy.unit: client or of {KEY}, with {SECURE}; "
            "leave honest out"
        )
    if privacy.noise == "each" and privacy.unit == "client":
        yield (
            "privacy.noise: each: with privacy.unit: client the server adds it, or clients share it; leave "
            "noise out"
        )
    if config.sums_gradients:
        yield from _one_step(config)
        yield from _sum(config, method_of(config))


def one_sum(method: Method) -> bool:
    """Whether a step along the sum of all clients' gradients is a round of this method."""
    as_trained = method.sends_what_it_trains and method.finish_upload is None and not method.trains_in_step
    return method.averages and as_trained and method.experts is None and not method.stays


def _one_step(config: RunConfig) -> Iterator[str]:
    """What a client would do in steps of its own."""
    training, federation = config.training, config.federation
    if training.optimizer != "sgd":
        yield f"{KEY} is for one step of plain SGD a round; set training.optimizer: sgd"
    if training.momentum:
        yield f"training.momentum: with {KEY} a client takes no step; set federation.server.momentum"
    if training.weight_decay:
        yield f"training.weight_decay: with {KEY} a step is along the gradients alone; leave it out"
    if training.epochs > 1:
        yield (
            f"training.epochs: with {KEY} a round is one step, and each row is in it by a coin of this "
            f"probability; expected at most 1, found {training.epochs:g}"
        )
    if training.accumulation > 1:
        yield (
            f"training.accumulation: with {KEY} a round is one step, whose rows pass in batches of "
            "training.batch_size anyway; leave it out"
        )
    if federation.proximal is not None:
        yield f"federation.proximal: with {KEY} no client moves away from the broadcast; leave it out"


def _sum(config: RunConfig, method: Method) -> Iterator[str]:
    """What is no sum of clipped gradients, or would need noise of a client's own."""
    privacy, init = config.privacy, config.method.init
    assert privacy is not None
    refused_anyway = not method.averages or method.experts is not None or method.stays
    if not refused_anyway and not one_sum(method):
        yield (
            f"method.name: with {KEY} all that trains is one sum of gradients that the server steps along, "
            f"and {method.name} sends something else; take one of {able_names(one_sum)}"
        )
    if config.federation.weighting != "examples":
        yield f"federation.weighting: with {KEY} every row weighs the same; leave it out"
    if privacy.mechanism == "banded":
        yield f"privacy.mechanism: with {KEY} noise is independent between rounds; leave banded out"
    if privacy.quantile is not None:
        yield (
            f"privacy.quantile: with {KEY} nobody counts the gradients within the clip norm; leave quantile "
            "out, or clip_norm: auto"
        )
    if init.private:
        yield (
            f"method.init.private: each client would noise its sum of the start alone, which {KEY} is not "
            "calibrated with; take method.init.kind: weights or orthonormal, or method.init.public"
        )
