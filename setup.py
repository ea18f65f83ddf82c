"""Build the package from `settings.ini`, the one place where its metadata lives."""

import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
SUFFIX = "_requirements"

parser = ConfigParser(delimiters=["="])
parser.read(HERE / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]


def words(key: str) -> list[str]:
    """The words of the setting `key`, which may span several lines."""
    return shlex.split(settings.get(key, ""))


name = settings["lib_name"]
setup(
    name=name,
    version=settings["version"],
    description=settings["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    license=settings["license"].upper(),
    keywords=settings["keywords"],
    packages=find_packages(include=[name, f"{name}.*"]),
    package_data={name: words("package_data")},
    python_requires=f">={settings['min_python']}",
    install_requires=words("requirements"),
    # every setting called X_requirements is the extra X
    extras_require={key.removesuffix(SUFFIX): words(key) for key in settings if key.endswith(SUFFIX)},
    entry_points={
        "console_scripts": words("console_scripts"),
        "nbdev": [f"{name}={name}._modidx:d"],  # lets `name` in a notebook's prose link to its page
    },
)
