"""Debian's packages and sources in a folder of their own: nothing is installed into the system."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Debian:
    """apt with lists and a cache below `folder`, for one architecture. Raises CalledProcessError where apt has failed.

    It asks the mirrors that the system's apt knows, for the releases that it knows and `releases`.
    """

    def __init__(self, folder: Path, architecture: str, releases: tuple[str, ...] = ()) -> None:
        self._archives = folder / "archives"
        for each in (folder / "lists" / "partial", self._archives / "partial"):
            each.mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        asks = ("--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages", "Origin: Debian")
        known = subprocess.run(["apt-get", "indextargets", *asks], check=True, capture_output=True, text=True)
        lines = set(known.stdout.splitlines())
        if not lines:
            raise FileNotFoundError("apt has no lists of Debian's packages: run apt-get update")
        mirrors = {line.split()[0] for line in lines if "security" not in line}
        lines |= {f"{mirror} {release}" for mirror in mirrors for release in releases}
        sources = [f"{kind} {line} main\n" for kind in ("deb", "deb-src") for line in sorted(lines)]
        (folder / "sources.list").write_text("".join(sources), encoding="utf-8")
        settings = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",
            "Dir::State": folder,
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder,
            "Dir::Etc::sourcelist": folder / "sources.list",
            "Dir::Etc::sourceparts": "-",
        }
        options = (word for name, value in settings.items() for word in ("-o", f"{name}={value}"))
        self._apt = ["apt-get", "-qq", *options]
        subprocess.run([*self._apt, "update"], check=True)

    def unpack(self, system: Path, *packages: str) -> None:
        """Unpack packages into the folder `system`, without what they depend on."""
        subprocess.run([*self._apt, "download", *packages], cwd=self._archives, check=True)
        for package in sorted(self._archives.glob("*.deb")):
            subprocess.run(["dpkg-deb", "--extract", package, system], check=True)

    def source(self, package: str, folder: Path) -> None:
        """Unpack the newest source of a package, as its authors released it, into a new folder."""
        subprocess.run([*self._apt, "source", "--download-only", "--tar-only", package], cwd=self._archives, check=True)
        (archive,) = self._archives.glob(f"{package}_*.orig.tar.*")
        folder.mkdir(parents=True)
        subprocess.run(["tar", "--extract", "--strip-components=1", "--file", archive], cwd=folder, check=True)
