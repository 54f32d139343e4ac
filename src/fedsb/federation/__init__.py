"""One round, and the start: what a client does, what the server does, the messages between them."""

from fedsb.federation.client import client_update as client_update
from fedsb.federation.exchange import Exchange as Exchange
from fedsb.federation.server import aggregate as aggregate
from fedsb.federation.server import broadcasts as broadcasts
from fedsb.federation.state import ServerState as ServerState
