"""Packaging of dials_mpi."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="dials_mpi",
    version="0.1.0",
    description="Distributed influence-augmented local simulators (DIALS): parallel multi-agent RL over MPI",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[*find_packages(include=["dials_mpi", "dials_mpi.*"]), "dials_mpi.configs"],
    # configs/ stands at the top for people; an installed wheel carries it inside the package.
    package_dir={"dials_mpi.configs": "configs"},
    package_data={"dials_mpi.configs": ["*.yaml"]},
    install_requires=[
        "h5py>=3.8",
        "mpi4py>=4.0",
        "networkx>=3.0",
        "numpy>=1.24",
        "pydantic>=2.5",
        "pyyaml>=6.0",
        "torch>=2.1",
        "tqdm>=4.60",
    ],
    extras_require={
        "mpi": ["mpich>=4.2"],  # an MPI library and mpirun for machines that have none
        "traffic": ["eclipse-sumo>=1.20", "libsumo>=1.20", "traci>=1.20", "sumolib>=1.20"],  # all of one version
        "envs": ["gymnasium>=1.0", "pettingzoo>=1.24"],
        "tests": [
            "pytest>=7.4",
            "pytest-mpi>=0.6",
            "pytest-xdist>=3.5",
            "psutil>=5.9",
            "ruff>=0.6",
            "onnx>=1.15",
            "onnxruntime>=1.17",
            "tensorboard>=2.14",
        ],
        "plots": ["matplotlib>=3.7"],
        "export": ["onnx>=1.15"],  # tools/export_policy.py --format onnx; TorchScript needs nothing
        "tensorboard": ["tensorboard>=2.14"],  # log.tensorboard
    },
)
