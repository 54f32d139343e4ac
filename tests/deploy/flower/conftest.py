"""Everything here needs the extra fedsb[flower]."""

import pytest

pytest.importorskip("flwr", reason="needs the extra fedsb[flower]")
