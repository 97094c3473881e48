from importlib.util import find_spec

import pytest

# Doctests import every module of the package; these need a package that is not always there.
collect_ignore_glob = [
    pattern
    for package, pattern in [
        ("transformers", "graphattn/hf/*.py"),
        ("matplotlib", "graphattn/viz/*.py"),
        ("triton", "graphattn/kernels/triton*.py"),
        ("triton", "graphattn/kernels/*s_jit.py"),
    ]
    if find_spec(package) is None
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return

    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; this machine has none"))
