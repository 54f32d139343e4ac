"""Keys as `make-key.sh` and `register.sh` leave them."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


def make_key(file: Path, curve: ec.EllipticCurve | None = None) -> Path:
    """The private key's file, and beside it the public one, ending in .pub."""
    key = ec.generate_private_key(curve or ec.SECP384R1())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(0o600)
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    file.with_name(f"{file.name}.pub").write_bytes(public + b" " + file.name.encode() + b"\n")
    return file


def register(private: Path, client: int, clients: Path) -> None:
    clients.mkdir(exist_ok=True, mode=0o755)
    (clients / f"client-{client}.pub").write_bytes(private.with_name(f"{private.name}.pub").read_bytes())
