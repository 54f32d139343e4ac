"""`fedsb cost` for a Gemma-2 9B config, all methods: seconds (best of three) and peak memory of the command.

python benchmarks/cost.py
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import verdict

GEMMA_2_9B = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "vocab_size": 256000,
}


def measure(folder: str) -> tuple[float, float, int]:
    """(seconds, seconds of CPU, peak resident bytes) of one call in a process of its own."""
    command = [sys.executable, "-m", "fedsb", "cost", "--model", folder]
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--rank", "32", "--clients", "25", "--json"], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(GEMMA_2_9B))
        seconds, cpu, peaks = zip(*(measure(folder) for _ in range(3)), strict=True)
    verdict("seconds for fedsb cost, Gemma-2 9B", min(seconds), 5.0)
    print(f"of which CPU: {min(cpu):.3f}")  # tells a slow command from a busy machine
    verdict("peak memory of the same, GB", max(peaks) / 1e9, 1.0)


if __name__ == "__main__":
    main()
