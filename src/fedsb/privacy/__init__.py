"""Differential privacy. The parts do not know each other; `plan` couples them from the same fields.

    noise        Gaussian noise from the operating system's entropy
    sampling     Poisson batches, and Poisson cohorts
    clipping     vectors cut to a norm, and their sum, which knows its sensitivity
    per_example  per-example gradients of the adapter's factors, for Opacus
    accounting   mechanisms -> epsilon; a target epsilon -> noise
    plan         what is sampled, clipped, noised and accounted, as one frozen value
    ledger       what was spent, kept on disk

Clipping per example is Opacus' work, accounting dp-accounting's: the extra `dp` installs both.
"""
