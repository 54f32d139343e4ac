"""Bytes of a serialized update beside 4 per trained number: rank 64 on a MiniLM's query and value, and head.

python benchmarks/message_size.py
"""

import torch
from common import verdict

from fedsb.federation import wire

NUMBERS = 12 * 64 * 64 + 384 * 2 + 2


def main() -> None:
    header = wire.Header("fed-sb", 100, "0" * 16, client=199, num_examples=123456, train_loss=0.123456789)
    message = wire.pack(header, torch.randn(NUMBERS))
    print(f"{NUMBERS} numbers, {len(message)} bytes")
    verdict("serialized update / 4 bytes per number", len(message) / (4 * NUMBERS), 1.01)


if __name__ == "__main__":
    main()
