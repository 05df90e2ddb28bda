"""Installs fedbias_plugin and its console script ``fedbias``."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.*)"', (HERE / "fedbias_plugin/__init__.py").read_text()).group(1)

setup(
    name="fedbias_plugin",
    version=VERSION,
    description="Social bias in federated fine-tuning of LLMs: poisoned clients, per-round bias, BAMA aggregation",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The fedbias_plugin authors",
    license="Apache-2.0",
    project_urls={
        "Paper": "https://doi.org/10.1609/aaai.v40i46.41316",
        "OpenFedLLM": "https://github.com/rui-ye/OpenFedLLM",
    },
    keywords="federated learning, social bias, large language models, LoRA, OpenFedLLM, CrowS-Pairs, StereoSet",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["fedbias_plugin", "fedbias_plugin.*"]),
        "fedbias_plugin.configs",
        "fedbias_plugin.patches",
    ],
    package_dir={"fedbias_plugin.configs": "configs", "fedbias_plugin.patches": "patches"},
    package_data={
        "fedbias_plugin.assets": ["mini/*", "tiny_llama/*"],
        "fedbias_plugin.configs": ["*.yaml", "*/*.yaml"],
        "fedbias_plugin.patches": ["*.yaml"],
        "fedbias_plugin.study": ["templates/*"],
    },
    install_requires=[
        "torch>=2.0",
        "transformers>=4.31",
        "peft>=0.4",
        "datasets>=2.13",
        "accelerate>=0.21",
        "safetensors>=0.3.3",
        "numpy>=1.25",
        "pandas>=2",
        "scipy>=1.10",
        "psutil>=5.9",
        "pyarrow>=13",
        "pyyaml>=6",
        "rich>=13",
    ],
    extras_require={
        "openfedllm": ["trl>=0.7.2", "tqdm", "sentencepiece"],
        "wandb": ["wandb>=0.17"],
        "workspace": ["wandb>=0.17", "wandb-workspaces>=0.4"],  # wants a newer pydantic than OpenFedLLM pins
        "tensorboard": ["tensorboard>=2.13"],
        "report": ["matplotlib>=3.7", "jinja2>=3.1"],
        "slurm": ["submitit>=1.5"],
        "flower": ["flwr>=1.41,<1.43; python_version >= '3.11'"],  # its workings are used where it has no API
        "rouge": ["rouge-score>=0.1.2"],
        "harness": ["lm-eval>=0.4.13,<0.4.15"],  # its own way of aggregating results is used, which has no API
        "sentiment": ["vaderSentiment>=3.3"],
        "privacy": ["opacus>=1.6"],
        "quantization": ["bitsandbytes>=0.43"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "ruff>=0.8",
            "mypy>=1.11",
            "import-linter>=2.1",
            "types-PyYAML",
            "pip-audit>=2.7",
            "nbclient>=0.10",
            "ipykernel>=6.29; python_version >= '3.11'",
            "mkdocs-material>=9.5; python_version >= '3.11'",
            "mkdocstrings[python]>=0.26; python_version >= '3.11'",
        ],
    },
    entry_points={"console_scripts": ["fedbias = fedbias_plugin.cli.main:main"]},
)
