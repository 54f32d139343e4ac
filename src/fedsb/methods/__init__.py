"""Federated methods, one per file. Adding one: its file, one line here, a recipe, a test.

Methods of other packages are found by the entry-point group `fedsb.methods` (docs/guides/adding-a-method.md).
"""

from difflib import get_close_matches

from fedsb.common.registry import Registry
from fedsb.errors import InputError
from fedsb.methods.fed_mixer import fed_mixer as fed_mixer
from fedsb.methods.fed_sb import fed_sb as fed_sb
from fedsb.methods.fedask import method as fedask
from fedsb.methods.fedex_lora import fedex_lora as fedex_lora
from fedsb.methods.fedit import fedit as fedit
from fedsb.methods.fedmomentum import method as fedmomentum
from fedsb.methods.fedrot_lora import method as fedrot_lora
from fedsb.methods.fedsa_lora import fedsa_lora as fedsa_lora
from fedsb.methods.fedsvd import fedsvd as fedsvd
from fedsb.methods.ffa_lora import ffa_lora as ffa_lora
from fedsb.methods.flexlora import flexlora as flexlora
from fedsb.methods.flora import flora as flora
from fedsb.methods.florg import florg as florg
from fedsb.methods.fr_lora import fr_lora as fr_lora
from fedsb.methods.hetlora import hetlora as hetlora
from fedsb.methods.la_lora import method as la_lora
from fedsb.methods.lora_fair import method as lora_fair
from fedsb.methods.lora_xs import lora_xs as lora_xs
from fedsb.methods.method import Aggregation as Aggregation
from fedsb.methods.method import AggregationInputs as AggregationInputs
from fedsb.methods.method import Averaged as Averaged
from fedsb.methods.method import BaseUpdate as BaseUpdate
from fedsb.methods.method import Counts as Counts
from fedsb.methods.method import FollowUp as FollowUp
from fedsb.methods.method import Method as Method
from fedsb.methods.method import Shape as Shape
from fedsb.methods.method import Upload as Upload
from fedsb.methods.method import UploadInputs as UploadInputs
from fedsb.methods.ravan import ravan as ravan
from fedsb.methods.rolora import rolora as rolora

ALL: tuple[Method, ...] = (
    fed_sb,
    fedit,
    ffa_lora,
    flora,
    fedex_lora,
    lora_xs,
    flexlora,
    hetlora,
    ravan,
    fedsvd,
    rolora,
    fedsa_lora,
    fedrot_lora,
    lora_fair,
    fedmomentum,
    fr_lora,
    la_lora,
    florg,
    fedask,
    fed_mixer,
)
"""Those of this package."""

METHODS = Registry("fedsb.methods", Method, ALL)
"""These, and those of other packages."""
register = METHODS.register


def by_name(name: str) -> Method:
    """The method of that name.

    Raises:
        InputError: no such method; the message lists those that exist and the close ones.
    """
    method = METHODS.get(name)
    if method is None:
        close = get_close_matches(name, METHODS.names(), n=2, cutoff=0.4)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise InputError(f"method.name: expected one of {', '.join(METHODS.names())}, found {name!r}.{hint}")
    return method
