"""Package metadata. Exact versions that were tested together are in deploy/constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="recall",
    version="0.1.0",
    description="Offline candidate generation after YouTubeDNN on Spark, Petastorm, Horovod, PyTorch and FAISS",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["jobs", "recall_lib", "recall_lib.*"]),
    package_data={"recall_lib.spark": ["log4j2.properties"], "recall_lib.report": ["*.html.j2"]},
    entry_points={"console_scripts": ["recall=recall_lib.commands.cli:main"]},
    install_requires=[
        "pyspark>=3.5.7,<4.4",
        "petastorm>=0.12.1,<0.13",  # 0.13 asks for setuptools<70, PyTorch for >=77
        "pyarrow>=18,<27",
        "numpy>=2,<3",
        "pandas>=2.2,<3",  # PySpark 4.3 warns of pandas 3
        "scipy",
        "torch>=2.10",
        "faiss-cpu>=1.9",
        "pydantic>=2",
        "PyYAML",
        "Jinja2",
        "matplotlib",
        "tqdm",
        "safetensors",
        "tensorboard",
    ],
    extras_require={
        "horovod": ["horovod==0.28.1"],
        "dev": [
            "hypothesis",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "mypy",
            "pandas-stubs",
            "types-PyYAML",
            "types-tqdm",
            "import-linter",
        ],
    },
)
