"Packaging: everything comes from settings.ini."
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
readme = here / "README.md"
repository, branch = settings["git_url"], settings["branch"]


def absolute(text):
    "Markdown that can be read away from the repository: links point there, pictures to the files themselves."
    raw = repository.replace("https://github.com/", "https://raw.githubusercontent.com/")
    text = re.sub(r"(!\[[^]]*]\()(?![a-z]+:|#|/)", rf"\g<1>{raw}/{branch}/", text)
    text = re.sub(r"(?<!!)(\[[^]]*]\()(?![a-z]+:|#|/)", rf"\g<1>{repository}/blob/{branch}/", text)
    return text.replace("](#", f"]({repository}#")


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=absolute(readme.read_text("utf-8")) if readme.is_file() else settings["description"],
    long_description_content_type="text/markdown",
    license="Apache-2.0 AND MIT",   # MIT: a part of the drawings
    license_files=["LICENSE", "vqgen/drawings/NOTICE.txt"],
    author=settings["author"],
    author_email=settings["author_email"],
    url=repository,
    project_urls={"Source": repository, "Notebooks": f"{repository}/tree/{branch}/nbs",
                  "Issues": f"{repository}/issues"},
    keywords=settings["keywords"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["vqgen", "vqgen.*"]),
    package_data={"vqgen": ["py.typed", "configs/*.yaml", "drawings/*", "export/page/*", "trained/*/*",
                            "trained/*/*/*"]},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={name: settings[f"{name}_requirements"].split()
                    for name in ("dev", "bench", "distances", "docs", "export", "widgets")},
    entry_points={"console_scripts": settings["console_scripts"].splitlines()},
    zip_safe=False,
)
