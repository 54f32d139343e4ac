"""`fedsb deploy init`: a folder with all that a server and its nodes need to run one config over Flower."""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from ipaddress import ip_address
from pathlib import Path

from fedsb.common.files import write_text
from fedsb.config import RunConfig
from fedsb.config.sections.task import ChatConfig
from fedsb.deploy.node_config import columns_of
from fedsb.errors import InputError
from fedsb.runner.chosen_lora import folder_names
from fedsb.runner.prepare_data import check_can_deploy
from fedsb.tasks.chat.messages import CHAT_COLUMNS

TEMPLATE = files("fedsb.deploy") / "template"
FIRST_NODE_PORT = 9100


def write_deployment(folder: Path, config: RunConfig, *, host: str, port: int) -> list[Path]:
    """Write the folder; the paths written.

    Args:
        host: name or address by which nodes reach the server; the certificate is for it and for this machine.

    Raises:
        InputError: the folder holds something, the host is none, or the config needs all rows in one place.
    """
    check_can_deploy(config)
    sites, clients = config.federation.sites, config.federation.clients
    if sites is not None and len(sites) != clients:
        raise InputError(
            f"federation.sites (--names): expected {clients} names, one for each of federation.clients, "
            f"found {len(sites)}"
        )
    _check_host(host)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty; name a new folder")
    folder = folder.resolve()
    values = _values(folder, config.with_absolute_paths(), host, port)
    written = [_write(folder / "run.yaml", config.with_absolute_paths().to_yaml())]
    written += _copy(TEMPLATE / "server", folder / "server", values)
    for client, (name, node_folder) in enumerate(node_folders(config).items()):
        node_values = values | {"CLIENT": str(client), "NODE_PORT": str(FIRST_NODE_PORT + client)}
        node_values["SITE"] = f"   # {name}" if sites is not None else ""
        written += _copy(TEMPLATE / "node", folder / "nodes" / node_folder, node_values)
    for name in ("README.md", "compose.yaml"):
        written.append(_fill(TEMPLATE / name, folder / name, values))
    return written


def node_folders(config: RunConfig) -> dict[str, str]:
    """Client by name -> its folder in `nodes/`: the name where it can be one, else `client-K`."""
    numbered = [f"client-{client}" for client in range(config.federation.clients)]
    return folder_names(config.federation.sites or numbered, "client")


def _values(folder: Path, config: RunConfig, host: str, port: int) -> dict[str, str]:
    folders = node_folders(config).values()
    return {
        "NAME": f"{config.method.name} with {config.federation.clients} clients",
        "FOLDER": str(folder),
        "HOST": host,
        "PORT": str(port),
        "NAMES": ",".join(dict.fromkeys([_alternative_name(host), "DNS:localhost", "IP:127.0.0.1"])),
        "COLUMNS": ", ".join(f"{name}: {name}" for name in dict.fromkeys(_columns(config))),
        "EPSILON": _epsilon(config),
        "DP": ",dp" if config.privacy else "",
        "NODE_SERVICES": "".join(map(_service, range(config.federation.clients), folders)).rstrip(),
        "NODE_FOLDERS": "`nodes/client-K/`" if config.federation.sites is None else "its folder in `nodes/`",
    }


def _columns(config: RunConfig) -> Sequence[str]:
    chat = CHAT_COLUMNS if isinstance(config.task, ChatConfig) else ()
    return [*columns_of(config), *chat]


def _epsilon(config: RunConfig) -> str:
    privacy = config.privacy
    return f"{privacy.epsilon:g}" if privacy and privacy.unit == "example" and privacy.epsilon else "null"


def _service(client: int, folder: str) -> str:
    return (
        f"  client-{client}:\n    image: fedsb\n    working_dir: /deployment/nodes/{folder}\n"
        f'    command: ./start.sh\n    restart: always\n    volumes: [".:/deployment"]\n'
    )


def _check_host(host: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", host):
        raise InputError(f"--host: expected a name or an IPv4 address such as fl.example.org, found {host!r}")


def _alternative_name(host: str) -> str:
    try:
        return f"IP:{ip_address(host)}"
    except ValueError:
        return f"DNS:{host}"


def _copy(source: Traversable, target: Path, values: dict[str, str]) -> list[Path]:
    """A folder for its owner's eyes: keys, databases and state come to lie in it."""
    target.mkdir(parents=True, mode=0o700)
    return [_fill(file, target / file.name, values) for file in source.iterdir() if file.is_file()]


def _fill(source: Traversable, target: Path, values: dict[str, str]) -> Path:
    text = source.read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return _write(target, text)


def _write(target: Path, text: str) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text)
    if target.suffix == ".sh":
        target.chmod(target.stat().st_mode | stat.S_IXUSR)
    return target
