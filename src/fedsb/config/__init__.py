"""YAML -> checked values."""

from fedsb.config.run_config import RunConfig as RunConfig
