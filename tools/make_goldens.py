"""Record the answers of other libraries in tests/goldens/.

    python tools/make_goldens.py                  every golden that can be made here
    python tools/make_goldens.py model beam       only these
    python tools/make_goldens.py --list           what there is, and what it needs

A golden is made by `make(folder)` of a module in tools/goldens/, with the versions
of other libraries that ``NEEDS`` there names.  Where another version is installed
the golden is skipped with a line that says so: no environment has them all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from goldens import NEEDS  # noqa: E402


def discover() -> list[str]:
    """Names of the modules that make a golden, found without importing them."""
    modules = sorted((ROOT / "tools" / "goldens").glob("*.py"))
    return [m.stem for m in modules if "\ndef make(" in m.read_text(encoding="utf-8")]


def needs(name: str) -> str:
    """What a golden needs, in words."""
    parts = [
        f"{distribution} {' or '.join(versions)}"
        for distribution, versions in NEEDS.get(name, {}).items()
    ]
    return ", ".join(parts) or "nothing else"


def lacking(name: str) -> Iterator[str]:
    """What this environment has instead of what a golden needs, in words."""
    for distribution, versions in NEEDS.get(name, {}).items():
        try:
            found = version(distribution)
        except PackageNotFoundError:
            yield f"no {distribution}"
            continue
        if not any(f"{found}.".startswith(f"{known}.") for known in versions):
            yield f"{distribution} {found}"


def make(name: str, folder: Path) -> bool:
    """Make one golden; False, and a line that says why, where that is impossible."""
    found = ", ".join(lacking(name))
    if found:
        print(f"{name}: skipped, needs {needs(name)}; found {found}")
        return False
    print(f"{name}: {needs(name)}", flush=True)
    import_module(f"goldens.{name}").make(folder)
    return True


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 1 if a golden that was asked for by name was skipped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="all if none is given")
    parser.add_argument("--folder", type=Path, default=ROOT / "tests" / "goldens")
    parser.add_argument("--list", action="store_true", help="list them, make nothing")
    args = parser.parse_args(argv)
    known = discover()
    for name in args.names:
        if name not in known:
            parser.error(f"no golden {name!r}; there are {', '.join(known)}")
    if args.list:
        print("\n".join(f"{name}: {needs(name)}" for name in known))
        return 0
    args.folder.mkdir(parents=True, exist_ok=True)
    made = [make(name, args.folder) for name in args.names or known]
    return 0 if all(made) or not args.names else 1


if __name__ == "__main__":
    sys.exit(main())
