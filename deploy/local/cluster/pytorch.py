"""PyTorch for test pods: one installation in the cache, mounted read-only, and a thin image that finds it.

With CUDA's libraries torch takes 5.4 GB. One copy on the machine, reached through a hostPath volume, spares the nodes their own.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

from . import images
from .common import Command, LocalError, cache_root, cached, digest, progress, run

VERSION = "2.15.0"
PYTHON = Path("/usr/bin/python3")  # Debian 12's, the same that is in the base image
IMAGE = f"localhost/pytorch:{VERSION}"
MOUNT = "/opt/torch"

# What pip writes as /usr/local/bin/torchrun where torch is installed.
TORCHRUN = "#!/usr/bin/python3\nimport sys\nfrom torch.distributed.run import main\nsys.exit(main())\n"


def folder(version: str = VERSION) -> Path:
    """Return where the installation is or will be: mount it at /opt/torch; its site-packages is what Python needs."""
    return cache_root() / _key(version)


def _key(version: str) -> str:
    return f"torch-{version}-cp311"


def install(version: str = VERSION) -> Path:
    """Install torch, numpy and python-etcd (for torch's etcd backends) once; returns `folder(version)`."""

    def build(stage: Path) -> None:
        python = run([PYTHON, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).strip()
        if python != "3.11":
            raise LocalError(
                f"{PYTHON} is Python {python}; the base image has Debian 12's 3.11, and torch must be of the same"
            )
        with progress(f"installing torch {version} from PyPI", "3 min") as update:
            run([PYTHON, "-m", "venv", stage / "venv"])
            update("downloading 3 GB")
            pip: Command = [stage / "venv/bin/pip", "install", "--no-cache-dir", "--target", stage / "site-packages"]
            run([*pip, f"torch=={version}", "numpy", "python-etcd"])
            shutil.rmtree(stage / "venv")

    return cached(_key(version), build)


def image() -> Path:
    """Return the archive of the stand-in for PyTorch's image: the base, with a .pth file and torchrun."""

    def file(tar: tarfile.TarFile, name: str, text: str, mode: int) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(text.encode()), mode
        tar.addfile(info, io.BytesIO(text.encode()))

    def layer(tar: tarfile.TarFile) -> None:
        # Not PYTHONPATH: users set that themselves, and injection may.
        file(tar, "usr/local/lib/python3.11/dist-packages/torch-mount.pth", f"{MOUNT}/site-packages\n", 0o644)
        file(tar, "usr/local/bin/torchrun", TORCHRUN, 0o755)
        info = tarfile.TarInfo(MOUNT.lstrip("/"))
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(info)

    def build(stage: Path) -> None:
        images.write_archive(stage / "image.tar", IMAGE, layer, {}, base=base)

    base = images.base_image()
    return cached(f"images/pytorch-{VERSION}-{digest(str(base), Path(__file__).read_bytes())}", build) / "image.tar"
