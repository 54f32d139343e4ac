"""The layer W0 x + s B R A x, on a model, and how B, A and R start."""

from fedsb.adapter.layer import FACTOR_NAMES as FACTOR_NAMES
from fedsb.adapter.layer import Factors as Factors
from fedsb.adapter.layer import LoraPair as LoraPair
from fedsb.adapter.layer import LowRankLinear as LowRankLinear
