"""`python -m fedsb` is the command `fedsb`."""

from fedsb.cli import main

main()
