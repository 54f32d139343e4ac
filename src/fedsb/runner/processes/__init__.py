"""Clients of a simulated run trained side by side, in processes of their own: one for each GPU, or Ray's."""

from fedsb.runner.processes.engine import check_engine as check_engine
from fedsb.runner.processes.engine import workers as workers
from fedsb.runner.processes.pool import pool as pool
