"""The commands of the local cluster."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from . import build, images, lifecycle, network, pytorch
from .common import LocalError, say
from .tools import build_all, install_packages

DIRECTORY = Path(".local")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="main.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, *, directory: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        if directory:
            sub.add_argument(
                "--dir", type=Path, default=DIRECTORY, help="where the cluster lives (default: %(default)s)"
            )
        return sub

    command("tools", "install Debian packages and build all programs and base images that are missing", directory=False)
    up = command("up", "start a cluster")
    up.add_argument("--name", default="rdzv", help="its name in the kubeconfig (default: %(default)s)")
    up.add_argument("--nodes", type=int, choices=range(1, 9), default=2, help="number of nodes (default: %(default)s)")
    up.add_argument("--light", action="store_true", help="etcd and API server only, on the loopback")
    up.add_argument("--controllers", action="store_true", help="with --light: the controller manager too")
    command("down", "take a cluster down, without a trace")
    command("status", "show what runs")
    for name, text in (
        ("stop-node", "lose a node: network cut, everything on it killed"),
        ("start-node", "bring a lost node back"),
    ):
        command(name, text).add_argument("node")
    command("load-image", "load image archives into all nodes").add_argument("archive", nargs="+", type=Path)
    image = command("build-image", "build an image on the local base and write it as a docker-archive", directory=False)
    image.add_argument("--tag", required=True)
    image.add_argument("--file", type=Path, required=True, metavar="DOCKERFILE")
    image.add_argument("--context", type=Path, required=True)
    image.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    image.add_argument("-o", "--output", type=Path, required=True, metavar="ARCHIVE")
    torch = command("torch", "install torch for test pods once, and make the image that uses it", directory=False)
    only = torch.add_mutually_exclusive_group()
    only.add_argument("--print", action="store_true", help="only print its path: mount it read-only at /opt/torch")
    only.add_argument(
        "--image", action="store_true", help="only make the image, and print its archive's path for load-image"
    )
    return parser


def _run(options: argparse.Namespace) -> None:
    match options.command:
        case "tools":
            install_packages()
            images.pause_image(build_all())
            images.base_image()
            say("all that the cluster is made of is there")
        case "up":
            lifecycle.up(
                options.dir, options.name, nodes=options.nodes, light=options.light, controllers=options.controllers
            )
        case "down":
            lifecycle.down(options.dir)
        case "status":
            print(lifecycle.status(options.dir))
        case "stop-node":
            lifecycle.stop_node(options.dir, options.node)
        case "start-node":
            lifecycle.start_node(options.dir, options.node)
        case "load-image":
            lifecycle.load_images(options.dir, options.archive)
        case "build-image":
            arguments = build.parse_arguments(options.build_arg)
            build.build(options.tag, options.file, options.context, arguments, options.output)
        case "torch" if options.print:
            print(pytorch.folder())
        case "torch" if options.image:
            print(pytorch.image())
        case "torch":
            pytorch.install()
            pytorch.image()


def main() -> int:
    """Run a command; an error a user can act on is one message, without a traceback."""
    # A proxy that the machine uses has no way to the cluster's addresses.
    direct = ",".join(["127.0.0.1", "localhost", str(network.LINKS), network.PODS, network.SERVICES])
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = f"{os.environ[name]},{direct}" if os.environ.get(name) else direct
    try:
        _run(_parser().parse_args())
    except LocalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
