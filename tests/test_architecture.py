"""Who may import whom: the table of the architecture, read from every file's import statements."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("viditq_jax", "pallas_kernels", "converters")
EVERYTHING = ("viditq_jax", "pallas_kernels", "converters")

# The longest matching row applies. A package may import itself and what its row names.
ALLOWED: dict[str, tuple[str, ...]] = {
    "pallas_kernels": (),
    "converters": (
        "viditq_jax.models", "viditq_jax.net", "viditq_jax.checkpoint", "viditq_jax.plugins",
        "viditq_jax.files",
    ),
    "viditq_jax.files": (),
    "viditq_jax.net": (),
    "viditq_jax.plugins": (),
    "viditq_jax.nn": ("viditq_jax.net", "pallas_kernels"),
    "viditq_jax.models": ("viditq_jax.nn", "viditq_jax.net"),
    "viditq_jax.quant": (
        "viditq_jax.nn", "viditq_jax.net", "viditq_jax.plugins", "viditq_jax.files", "pallas_kernels",
    ),
    "viditq_jax.sampling": (),
    "viditq_jax.evaluate": (
        "viditq_jax.nn", "viditq_jax.net", "viditq_jax.plugins", "viditq_jax.generate",
        "viditq_jax.conditions", "converters",
    ),
    "viditq_jax.quality": ("viditq_jax.evaluate", "viditq_jax.conditions"),
    "viditq_jax.sealed": ("viditq_jax.files",),
    "viditq_jax.checkpoint": ("viditq_jax.net", "viditq_jax.files", "viditq_jax.sealed"),
    "viditq_jax.conditions": (),
    "viditq_jax.aspect_ratios": (),
    "viditq_jax.facts": ("viditq_jax.sampling", "viditq_jax.plugins"),
    "viditq_jax.programs": ("viditq_jax.net", "viditq_jax.sampling", "viditq_jax.quant.ranges"),
    "viditq_jax.encoder": (
        "viditq_jax.models", "viditq_jax.conditions", "viditq_jax.aspect_ratios", "viditq_jax.facts",
        "viditq_jax.programs",
    ),
    "viditq_jax.pipeline": (
        "viditq_jax.quant", "viditq_jax.sampling", "viditq_jax.checkpoint", "viditq_jax.encoder",
        "viditq_jax.facts", "viditq_jax.programs", "viditq_jax.replicas", "viditq_jax.net",
        "viditq_jax.conditions",
    ),
    "viditq_jax.replicas": ("viditq_jax.programs", "viditq_jax.net", "viditq_jax.quant"),
    "viditq_jax.load": (
        "viditq_jax.pipeline", "viditq_jax.models", "viditq_jax.quant", "viditq_jax.checkpoint",
        "viditq_jax.net", "viditq_jax.plugins", "viditq_jax.speed", "viditq_jax.replicas", "converters",
    ),
    "viditq_jax.doctor": (
        "viditq_jax.net", "viditq_jax.pipeline", "viditq_jax.programs", "viditq_jax.speed", "pallas_kernels",
    ),
    "viditq_jax.export": (
        "viditq_jax.checkpoint", "viditq_jax.encoder", "viditq_jax.facts", "viditq_jax.files",
        "viditq_jax.net", "viditq_jax.pipeline", "viditq_jax.programs", "viditq_jax.sampling",
        "viditq_jax.sealed", "pallas_kernels", "converters",
    ),
    "viditq_jax.calibrate": (
        "viditq_jax.models", "viditq_jax.quant", "viditq_jax.sampling", "viditq_jax.checkpoint",
        "viditq_jax.pipeline", "viditq_jax.programs", "viditq_jax.net", "viditq_jax.files",
        "viditq_jax.conditions",
    ),
    "viditq_jax.stress": ("viditq_jax.net",),
    "viditq_jax.drift": (
        "viditq_jax.net", "viditq_jax.nn", "viditq_jax.quant", "viditq_jax.sampling", "viditq_jax.programs",
        "viditq_jax.pipeline",
    ),
    "viditq_jax.compare": (
        "viditq_jax.stress", "viditq_jax.drift", "viditq_jax.calibrate", "viditq_jax.post_training",
        "viditq_jax.pipeline", "viditq_jax.quant", "viditq_jax.generate", "viditq_jax.evaluate",
        "viditq_jax.checkpoint", "viditq_jax.files", "viditq_jax.conditions",
    ),
    "viditq_jax.bench": (
        "viditq_jax.models", "viditq_jax.quant", "viditq_jax.sampling", "viditq_jax.pipeline",
        "viditq_jax.programs", "viditq_jax.load", "viditq_jax.checkpoint", "viditq_jax.compare",
        "viditq_jax.net", "viditq_jax.plugins", "viditq_jax.speed", "viditq_jax.files", "pallas_kernels",
    ),
    "viditq_jax.speed": (
        "viditq_jax.net", "viditq_jax.nn", "viditq_jax.quant", "viditq_jax.sampling", "viditq_jax.programs",
        "viditq_jax.pipeline", "pallas_kernels",
    ),
    "viditq_jax.video": ("viditq_jax.files",),
    "viditq_jax.generate": (
        "viditq_jax.checkpoint", "viditq_jax.files", "viditq_jax.pipeline", "viditq_jax.programs",
        "viditq_jax.video", "viditq_jax.conditions", "viditq_jax.sampling",
    ),
    "viditq_jax.search": (
        "viditq_jax.calibrate", "viditq_jax.checkpoint", "viditq_jax.compare", "viditq_jax.conditions",
        "viditq_jax.evaluate", "viditq_jax.files", "viditq_jax.net", "viditq_jax.pipeline",
        "viditq_jax.plugins", "viditq_jax.post_training", "viditq_jax.programs", "viditq_jax.quant",
        "viditq_jax.speed", "pallas_kernels",
    ),
    "viditq_jax.report": ("viditq_jax.video", "viditq_jax.files"),
    "viditq_jax.serve": (
        "viditq_jax.pipeline", "viditq_jax.post_training", "viditq_jax.conditions", "viditq_jax.evaluate",
        "viditq_jax.quant", "viditq_jax.files", "viditq_jax.video",
    ),
    "viditq_jax.cli": EVERYTHING,
    "viditq_jax.assets": (),
    "viditq_jax": EVERYTHING,
}  # fmt: skip
THIRD_PARTY_FREE = {
    "pallas_kernels": {"jax", "numpy", "jaxtyping"},
    "viditq_jax.sampling": {"jax", "numpy", "jaxtyping"},
}
# XLA:CPU has no way to its instructions but machine code, and Pallas has no backend for CPUs. On NVIDIA GPUs
# before Hopper it has none with jax 0.10.
MAKES_MACHINE_CODE = {
    "pallas_kernels/x86": {"llvmlite"},
    "pallas_kernels/triton_kernels": {"triton", "jax_triton"},
}
NEVER = {"torch", "diffusers", "transformers"}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> set[str]:
    """Absolute names of all imported modules, wherever in the file the statement stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module in ("viditq_jax", "converters") else {node.module or ""}
    return found


def row(module: str) -> str:
    return max((name for name in ALLOWED if module == name or module.startswith(name + ".")), key=len)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_a_file_imports_only_what_the_table_allows(file: Path) -> None:
    module = module_name(file)
    here = row(module)
    ours = {name for name in imports(file) if name.split(".")[0] in PACKAGES}
    wrong = {
        name for name in ours if not within(name, here) and not any(within(name, to) for to in ALLOWED[here])
    }
    assert not wrong, f"{module} ({here}) may not import {sorted(wrong)}"


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_the_library_never_imports_torch(file: Path) -> None:
    assert not NEVER & {name.split(".")[0] for name in imports(file)}


@pytest.mark.parametrize("package", THIRD_PARTY_FREE)
def test_some_packages_need_jax_and_numpy_only(package: str) -> None:
    import sys

    for file in (ROOT / package.replace(".", "/")).rglob("*.py"):
        foreign = {name.split(".")[0] for name in imports(file)} - sys.stdlib_module_names - set(PACKAGES)
        allowed = THIRD_PARTY_FREE[package] | MAKES_MACHINE_CODE.get(
            str(file.parent.relative_to(ROOT)), set()
        )
        assert foreign <= allowed, file


def writes(file: Path) -> set[int]:
    """Lines that write a file by themselves."""
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    found = set()
    for call in calls:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        modes = [part.value for part in ast.walk(call) if isinstance(part, ast.Constant)]
        if name in ("write_text", "write_bytes") or (name == "open" and {"w", "wb", "a", "ab"} & set(modes)):
            found.add(call.lineno)
    return found


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_only_one_module_writes_files(file: Path) -> None:
    """What it does against full disks and kills is then done everywhere."""
    assert bool(writes(file)) == (module_name(file) == "viditq_jax.files")


def test_the_table_refuses_a_forbidden_arrow() -> None:
    assert row("viditq_jax.quant.apply") == "viditq_jax.quant"
    assert not any(within("viditq_jax.models.dit", to) for to in ALLOWED["viditq_jax.quant"])
