"""What is installed is what is there."""

import configparser
from pathlib import Path

ROOT = Path(__file__).parent.parent


def settings():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def test_every_package_is_installed():
    folders = {path.parent for path in (ROOT / "npllama").rglob("__init__.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    listed = set(settings()["options"]["packages"].split())
    assert listed == names | {"npllama_weights"}


def test_run_time_needs_three_libraries():
    needs = settings()["options"]["install_requires"].split()
    assert [need.split(">")[0] for need in needs] == [
        "numpy",
        "tiktoken",
        "sentencepiece",
    ]
