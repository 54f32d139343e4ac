"""Seconds until `fedsb --help` is there, best of five.

python benchmarks/start_time.py
"""

import subprocess
import sys
import time

from common import verdict


def main() -> None:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "fedsb", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - began)
    verdict("seconds for fedsb --help", min(times), 0.5)


if __name__ == "__main__":
    main()
