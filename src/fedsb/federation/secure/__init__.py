"""Sums of what clients hold, of which the server learns nothing else (Bonawitz et al. 2017).

keys    each client: two fresh public keys, signed          -> everybody's, to everybody
shares  each client: its two secrets in shares, encrypted   -> to their holders
work    each client: its numbers under masks                -> added up
unmask  each client that is left: of those that sent, a share of the self-mask; of those lost, of the mask key
        -> the masks that are left in the sum are taken off
"""
