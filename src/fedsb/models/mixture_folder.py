"""A finished mixture in a folder: its tensors, what they are, and a loader that needs nothing of fedsb."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from safetensors.torch import load_file
from torch import Tensor, nn

from fedsb.adapter.attached import Attached
from fedsb.adapter.layer import Factors
from fedsb.adapter.mixture import Mixture, attach_mixture
from fedsb.adapter.routing import Route
from fedsb.common.files import read_json, write_bytes, write_json, write_text
from fedsb.errors import InputError
from fedsb.models import mixture_loader
from fedsb.models.mixture_loader import NAME
from fedsb.models.peft_folder import check_layers
from fedsb.models.peft_weights import safetensors_bytes

CONFIG, WEIGHTS, LOADER = f"{NAME}.json", f"{NAME}.safetensors", f"load_{NAME}.py"
PARTS = ("B", "A", "R", "G")
HEAD, GATE, USAGE = "head.", "gate", "usage"


class SavedMixture(NamedTuple):
    """What such a folder holds.

    Attributes:
        head: trained parameters outside the base, by name in the model.
        base_model: what was trained on, by name or path.
        base_weights: `layer_digest` of the layers it was trained on; None where nobody knew.
    """

    mixture: Mixture
    head: dict[str, Tensor]
    base_model: str
    base_weights: str | None


def is_mixture(folder: Path) -> bool:
    """Whether the folder holds a mixture, not a single adapter."""
    return (folder / CONFIG).is_file()


def write_mixture(
    folder: Path,
    mixture: Mixture,
    *,
    base_model: str,
    base_weights: str | None = None,
    head: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the folder; arguments as of `SavedMixture`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{layer}.{part}": value
        for layer, factors in mixture.factors.items()
        for part in PARTS
        if (value := getattr(factors, part)) is not None
    }
    tensors |= {f"{HEAD}{name}": value for name, value in (head or {}).items()}
    single = {GATE: mixture.gate, USAGE: mixture.usage}
    tensors |= {name: value for name, value in single.items() if value is not None}
    write_bytes(folder / WEIGHTS, safetensors_bytes(tensors, {"format": "pt"}))
    write_text(folder / LOADER, Path(mixture_loader.__file__).read_text(encoding="utf-8"))
    values = {
        "base_model": base_model,
        "base_weights": base_weights,
        "experts": list(mixture.experts),
        "route": mixture.route,
        "top_k": mixture.top_k,
        "layers": list(mixture.factors),
    }
    write_json(folder / CONFIG, values)


def read_mixture(folder: Path) -> SavedMixture:
    """The mixture of a folder that anybody may have written.

    Raises:
        InputError: a file is missing, cannot be read or does not hold what belongs there.
    """
    config = read_json(folder / CONFIG)
    experts, layers = (_names(folder, config, key) for key in ("experts", "layers"))
    tensors = _tensors(folder, len(experts))
    factors = {layer: _factors(folder, tensors, layer, len(experts)) for layer in layers}
    if config.get("route") not in get_args(Route):
        raise _wrong(folder, "route", f"expected one of {', '.join(get_args(Route))}", config.get("route"))
    top_k = config.get("top_k")
    if top_k is not None and not (type(top_k) is int and 1 <= top_k <= len(experts)):
        raise _wrong(folder, "top_k", f"expected a whole number up to {len(experts)}", top_k)
    mixture = Mixture(
        experts, factors, config["route"], top_k, usage=tensors.get(USAGE), gate=tensors.get(GATE)
    )
    if (mixture.gate is None) == (mixture.route == "request"):
        raise _wrong(folder, "route", "expected one gate for all layers with request alone", mixture.route)
    head = {name.removeprefix(HEAD): value for name, value in tensors.items() if name.startswith(HEAD)}
    digest = config.get("base_weights")
    return SavedMixture(
        mixture, head, str(config.get("base_model")), digest if isinstance(digest, str) else None
    )


def put_mixture_on(model: nn.Module, folder: Path) -> Attached:
    """Put the folder's mixture and its head on the model, which is in eval mode then.

    Raises:
        InputError: as `read_mixture`, or it is of another model.
    """
    saved = read_mixture(folder)
    shapes = {n: (f.B.shape[0], f.A.shape[1]) for n, f in saved.mixture.factors.items()}
    check_layers(folder, model, shapes, made_for=saved.base_model, base_weights=saved.base_weights)
    parameters = dict(model.named_parameters())
    for name, value in saved.head.items():
        here = tuple(parameters[name].shape) if name in parameters else "nothing"
        if here != tuple(value.shape):
            raise InputError(
                f"{folder}: its head {name[:200]!r} is {tuple(value.shape)}, and the model here has {here}; "
                "take the task that it was trained on"
            )
        parameters[name].data.copy_(value)
    attached = attach_mixture(model, saved.mixture)
    model.eval()
    return attached


def _names(folder: Path, config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    names = config.get(key)
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not texts or not names or len(set(names)) < len(names):
        raise _wrong(folder, key, "expected different names", names)
    return tuple(names)


def _tensors(folder: Path, experts: int) -> dict[str, Tensor]:
    try:
        tensors = load_file(folder / WEIGHTS)
    except Exception as error:  # missing, or no safetensors
        reason = next(iter(str(error).splitlines()), "")[:300]
        raise InputError(f"{folder / WEIGHTS}: this mixture cannot be read: {reason}; restore it") from None
    for name, value in tensors.items():
        if not value.is_floating_point() or not value.float().isfinite().all():
            raise InputError(f"{folder / WEIGHTS}: {name[:200]}: expected finite numbers; restore the file")
    for name in (GATE, USAGE):
        if name in tensors and len(tensors[name]) != experts:
            raise InputError(
                f"{folder / WEIGHTS}: {name}: expected {experts} rows, found {len(tensors[name])}"
            )
    return tensors


def _factors(folder: Path, tensors: Mapping[str, Tensor], layer: str, experts: int) -> Factors:
    B, A, R, G = (tensors.get(f"{layer}.{part}") for part in PARTS)
    if B is None or A is None or R is None or not _fit(B, A, R, G, experts):
        shapes = [tuple(part.shape) if part is not None else "nothing" for part in (B, A, R, G)]
        raise InputError(
            f"{folder / WEIGHTS}: {layer[:200]}: expected B (out, r), A (r, in), R ({experts}, r, r) and "
            f"perhaps G ({experts}, r + 1), found {shapes}; restore it"
        )
    return Factors(B=B, A=A, R=R, G=G)


def _fit(B: Tensor, A: Tensor, R: Tensor, G: Tensor | None, experts: int) -> bool:
    r = len(A)
    gate = G is None or tuple(G.shape) == (experts, r + 1)
    return gate and B.ndim == A.ndim == 2 and B.shape[1] == r and tuple(R.shape) == (experts, r, r)


def _wrong(folder: Path, key: str, expected: str, value: object) -> InputError:
    return InputError(f"{folder / CONFIG}: {key}: {expected}, found {str(value)[:60]!r}; restore the file")
