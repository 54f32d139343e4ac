"""The layer W0 x + s B R A x, on a model, and how B, A and R start."""

from fedsb.adapter.attached import attach as attach
from fedsb.adapter.attached import collect as collect
from fedsb.adapter.attached import detach as detach
from fedsb.adapter.attached import find_targets as find_targets
from fedsb.adapter.attached import fold as fold
from fedsb.adapter.attached import load as load
from fedsb.adapter.attached import merge as merge
from fedsb.adapter.bases import bases_from_update as bases_from_update
from fedsb.adapter.bases import bases_from_weight as bases_from_weight
from fedsb.adapter.bases import orthonormal_bases as orthonormal_bases
from fedsb.adapter.layer import FACTOR_NAMES as FACTOR_NAMES
from fedsb.adapter.layer import Factors as Factors
from fedsb.adapter.layer import LoraPair as LoraPair
from fedsb.adapter.layer import LowRankLinear as LowRankLinear
from fedsb.adapter.update_estimate import estimate_update as estimate_update
