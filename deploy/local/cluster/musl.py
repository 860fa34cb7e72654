"""A CPython that is linked with musl, as in Alpine's images, built from Debian's sources: for tests/compat only."""

from __future__ import annotations

import os
from pathlib import Path

from .common import cached, digest, progress, run
from .images import debian_mirror
from .tools import install_packages

PACKAGES = ("dpkg-dev", "gcc", "linux-libc-dev", "musl-tools")
#: Of Debian 12, as it has them now.
SOURCES = ("zlib", "libffi", "openssl", "python3.11")
_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
#: `$0` is where it goes. musl-gcc has no headers of the kernel, which belong to no C library; and it says of itself
#: that it compiles for glibc, so that CPython's configure ends and its setup.py takes glibc's headers. Debian's pyexpat,
#: which pip needs, compiles only as a part of the interpreter.
_BUILD = """
set -e
mkdir -p $0/include
ln -s /usr/include/linux /usr/include/asm-generic $0/include
ln -s /usr/include/$(uname -m)-linux-gnu/asm $0/include/asm
cat > $0/cc << 'END'
#!/bin/sh
case "$*" in *-print-multiarch) echo $(uname -m)-linux-musl ;; *) exec musl-gcc "$@" ;; esac
END
chmod +x $0/cc
export CC=$0/cc CFLAGS="-O1 -fPIC -I$0/include" LDFLAGS="-L$0/lib"
(cd zlib-*/ && ./configure --static --prefix=$0 && make -j2 install)
(cd libffi-*/ && ./configure --disable-shared --disable-docs --disable-multi-os-directory --prefix=$0 && make -j2 install)
(
  cd openssl-*/
  without="no-shared no-tests no-engine no-dso no-afalgeng"
  ./Configure linux-$(uname -m) $without --prefix=$0 --openssldir=/etc/ssl --libdir=lib
  make -j2 build_libs
  make install_dev
)
cd python3.11-*/
sed -i '1i #define Py_BUILD_CORE_MODULE 1' Modules/pyexpat.c
./configure --prefix=$0 --with-openssl=$0 --without-ensurepip --disable-test-modules --without-doc-strings
make -j2
make install
"""


def build_python() -> Path:
    """Return the interpreter; it is built if it is missing."""

    def make(stage: Path) -> None:
        with progress("building a Python with musl", "45 min beside other work") as update:
            install_packages(PACKAGES)
            source = stage / "source"
            lists = source / "lists"
            (lists / "partial").mkdir(parents=True)
            (source / "list").write_text(f"deb-src [signed-by={_KEYS}] {debian_mirror()} bookworm main\n")
            places = {"Etc::sourcelist": source / "list", "Etc::sourceparts": "-", "State::lists": lists}
            apt = ["apt-get", *(f"-oDir::{name}={place}" for name, place in places.items())]
            update("sources")
            run([*apt, "update"])
            run([*apt, "source", *SOURCES], cwd=source)
            update("compiling")
            run(["sh", "-c", _BUILD, stage / "python"], cwd=source)
            run(["rm", "-r", source])

    return cached(f"pythons/musl-{digest(_BUILD, *SOURCES)}-{os.uname().machine}", make) / "python/bin/python3"
