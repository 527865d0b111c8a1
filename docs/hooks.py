"""Pages of the documentation that are made when it is built, so that no copy of a fact can rot.

README.md                          index, supported, measured
viditq_jax/models, converters      models/NAME
viditq_jax/assets/recipes          recipes/NAME, with what benchmarks/records says of it
pallas_kernels, kernels.md         kernels/OP
viditq_jax/cli                     cli
the docstrings of all packages     api/PACKAGE, by mkdocstrings
"""

import ast
import dataclasses
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from recipe_pages import RECIPES, codes, recipes, table

ROOT = Path(__file__).parent.parent
MODELS = ("dit", "pixart", "stdit", "stdit3", "latte", "latte_t2v", "t5", "autoencoder_kl")
OPS = ("scaled_matmul", "packed_matmul", "quantize_rows", "hadamard", "attention")
PACKAGES = (  # of the API; models have pages of their own, and the command line has one
    "viditq_jax", "viditq_jax.quant", "viditq_jax.quant.prepare", "viditq_jax.quant.rounding",
    "viditq_jax.quant.tuning", "viditq_jax.quant.search", "viditq_jax.sampling", "viditq_jax.nn",
    "viditq_jax.export", "viditq_jax.evaluate", "viditq_jax.search", "viditq_jax.report", "viditq_jax.bench",
    "pallas_kernels", "converters",
)  # fmt: skip
_SUPPORTED, _MEASURED, _READ_ON = (
    "What is supported",
    ("Measured", "Speed"),
    "Where to read on",
)  # of the README


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The navigation, with the pages that are made here."""
    recipes = sorted(path.stem for path in RECIPES.glob("*.json"))
    config.nav += [
        {"Supported": "supported.md"},
        {"Measured": "measured.md"},
        {
            "Models": [
                *({_title(name): f"models/{name}.md"} for name in MODELS),
                {"Your own": "add-a-model.md"},
            ]
        },
        {"Recipes": [{"All": "recipes/index.md"}, *({name: f"recipes/{name}.md"} for name in recipes)]},
        {"Kernels": [{"By device": "kernels.md"}, *({op: f"kernels/{op}.md"} for op in OPS)]},
        {"Command line": "cli.md"},
        {"API": [{"Public names": "api/index.md"}, *({name: f"api/{name}.md"} for name in PACKAGES)]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """All pages that are made here."""
    sys.path.insert(0, str(ROOT))
    for name, text in pages():
        files.append(File.generated(config, f"{name}.md", content=text))
    return files


def pages() -> Iterator[tuple[str, str]]:
    """Names and texts."""
    yield from readme().items()
    for name in MODELS:
        yield f"models/{name}", model(name)
    yield from recipes()
    for op in OPS:
        yield f"kernels/{op}", kernel(op)
    yield "cli", cli()
    yield "api/index", public_names()
    for name in PACKAGES:
        yield f"api/{name}", package(name)


def readme() -> dict[str, str]:
    """The README as three pages: what it is, what is supported, what was measured."""
    text = re.sub(r"<!--.*?-->\n", "", (ROOT / "README.md").read_text())
    text = text.replace("](docs/", "](").replace("`docs/kernels.md`", "[the page on kernels](kernels.md)")
    found: dict[str, list[str]] = {"index": [], "supported": [], "measured": []}
    page = "index"
    for part in re.split(r"^(?=##+ )", text, flags=re.MULTILINE):
        title = part.split("\n", 1)[0].lstrip("# ")
        if part.startswith("## "):
            page = "supported" if title == _SUPPORTED else "index"
        elif page != "index":
            page = "measured" if title in _MEASURED else "supported"
        if title == _READ_ON:
            part = part[part.rindex("\n\n") :]  # the licenses
        found[page].append(part if page == "index" else re.sub("^#", "", part))
    found["measured"][0] = re.sub("^#", "", found["measured"][0])  # the title of its page
    return {name: "".join(parts) for name, parts in found.items()}


def model(name: str) -> str:
    """What a model is, its sizes, what is read, and how it is sampled."""
    from converters import families
    from viditq_jax import plugins

    module, family = plugins.find("viditq_jax.models", name), families.find(name)
    text = [f"# {family.TITLE}", _doc(ROOT / f"viditq_jax/models/{name}.py")]
    if configs := getattr(module, "CONFIGS", {}):
        rows = {key: dataclasses.asdict(config) for key, config in configs.items()}
        fields = [
            field
            for field in next(iter(rows.values()))
            if len({str(row[field]) for row in rows.values()}) > 1
        ]
        fields = fields or ["width", "depth", "heads"]
        lines = [[f"`{key}`", *(_plain(row[field]) for field in fields)] for key, row in rows.items()]
        text += ["## Sizes", table(["name", *(f"`{field}`" for field in fields)], lines)]
    text += [
        "## Checkpoints",
        _doc(ROOT / f"converters/{name}.py"),
        f"Formats: {codes(list(family.FORMATS))}.",
    ]
    if family.PUBLISHED:
        text += ["Published files that are known by name: " + codes(list(family.PUBLISHED)) + "."]
    if family.PART == "denoiser":
        example = next(iter(configs))
        said = family.defaults(configs[example], next(iter(family.FORMATS)))
        shown = {key: said[key] for key in ("sampler", "guidance", "conditions") if key in said}
        text += [
            "## Sampling", f"What the converter writes down for `{example}`; other files may say otherwise.",
            f"```json\n{json.dumps(shown, indent=1, default=str)}\n```",
        ]  # fmt: skip
    return "\n\n".join([*text, "## Reference", _api(f"viditq_jax.models.{name}", root=False)])


def kernel(op: str) -> str:
    """The contract of an op, and its implementations."""
    folder = ROOT / "pallas_kernels" / op
    text = (ROOT / "docs/kernels.md").read_text()
    found = text.split("<!-- support -->\n")[1].split("\n\n")[0].splitlines()
    rows = [*found[:2], *(line for line in found if line.startswith(f"| `{op}`"))]
    files = [
        path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_") and path.stem != "cases"
    ]
    parts = [f"### {path.stem}\n\n{_doc(path)}" for path in files]
    return "\n\n".join([
        f"# {op}", _api(f"pallas_kernels.{op}.{op}"), "## On which devices", "\n".join(rows),
        "Words and reasons: [kernels by device](../kernels.md).", "## Implementations", *parts,
    ])  # fmt: skip


def cli() -> str:
    """Every verb with its flags, from the dataclass that the command line reads."""
    from viditq_jax import plugins

    text = ["# Command line", "`viditq VERB`, one verb a file. `viditq VERB --help` says the same."]
    for verb in plugins.names("viditq_jax.cli"):
        file = ROOT / f"viditq_jax/cli/{verb}.py"
        defaults = {
            each.name: each for each in dataclasses.fields(plugins.find("viditq_jax.cli", verb).Options)
        }
        rows = []
        for name, (kind, said) in _fields(file).items():
            flag = name.upper() if "Positional" in kind else f"--{name.replace('_', '-')}"
            rows.append([f"`{flag}`", _default(defaults[name].default), said])
        doc, _, more = _doc(file).partition("\n\n")
        said, _, command = doc.partition(": viditq ")
        text += [f"## viditq {verb}", *([f"{said}:", f"```\nviditq {command}\n```"] if command else [said])]
        text += [*([more] if more else []), table(["flag", "default", "what"], rows)]
    return "\n\n".join(text)


def _fields(file: Path) -> dict[str, tuple[str, str]]:
    """The fields of the Options of a verb: type and docstring."""
    tree = ast.parse(file.read_text())
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Options")
    found = {}
    for field, after in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
            said = " ".join(str(ast.literal_eval(after.value)).split())
            found[ast.unparse(field.target)] = (ast.unparse(field.annotation), said)
    return found


def _default(value: Any) -> str:
    if value is None or value is False or value == () or value == "" or value is dataclasses.MISSING:
        return ""
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def public_names() -> str:
    """What `import viditq_jax` gives."""
    tree = ast.parse((ROOT / "viditq_jax/__init__.py").read_text())
    found = [
        (node.module, name.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    ]
    return "\n\n".join(
        ["# Public names", "What `import viditq_jax` gives.", *(_api(f"{m}.{n}") for m, n in found)]
    )


def package(name: str) -> str:
    """Its modules; packages of its own have pages of their own."""
    folder = ROOT / name.replace(".", "/")
    modules = [path.stem for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")]
    text = [f"# {name}", _doc(folder / "__init__.py")]
    if name == "viditq_jax.export":
        text += [_api(f"{name}.{each}") for each in ("export_pipeline", "load_exported", "ExportedPipeline")]
    return "\n\n".join([*text, *(_api(f"{name}.{module}") for module in modules)])


def _api(name: str, *, root: bool = True) -> str:
    """What mkdocstrings replaces by a docstring and its members; without the heading of what has a page."""
    options = {"show_root_heading": "false", "show_root_toc_entry": "false", "heading_level": "3"}
    lines = [] if root else ["    options:", *(f"      {key}: {value}" for key, value in options.items())]
    return "\n".join([f"::: {name}", *lines])


def _title(model: str) -> str:
    tree = ast.parse((ROOT / f"converters/{model}.py").read_text())
    titles = [
        node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TITLE"
    ]
    return str(ast.literal_eval(titles[0].value))


def _doc(file: Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text())) or ""


def _plain(value: Any) -> str:
    """A field of a Config as a cell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple) and len(value) > 3 and list(value) == list(range(value[0], value[-1] + 1)):
        return f"{value[0]} to {value[-1]}"
    return "none" if value in ((), None) else str(value)
