"""Clients of a simulated run trained side by side, in processes of their own: one for each GPU."""

from fedsb.runner.processes.pool import pool as pool
