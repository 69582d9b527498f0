"""A checkpoint that brings its own code, for places where only transformers and torch are installed."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import small_doge
from small_doge.models.doge.modeling_doge import DogePreTrainedModel

PACKAGE = Path(small_doge.__file__).parent
ENTRY = "small_doge.models.doge.modeling_doge"
# Only within the package do the Auto classes need telling; a checkpoint's own auto_map tells them there.
REGISTRATION = "small_doge.models.doge.registration"
AUTO_MAP = {
    "AutoConfig": "configuration_doge.DogeConfig",
    "AutoModel": "modeling_doge.DogeModel",
    "AutoModelForCausalLM": "modeling_doge.DogeForCausalLM",
    "AutoModelForSequenceClassification": "modeling_doge.DogeForSequenceClassification",
}


def export_remote_code(model: DogePreTrainedModel, folder: str | Path) -> list[Path]:
    """Save a model with the source files that run it; returns those files.

    `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` then needs transformers and torch alone. The
    files are this package's own, flattened into one folder: every module that the model imports, with the imports
    among them made relative. Triton kernels go along and are used where Triton is.
    """
    folder = Path(folder)
    model.save_pretrained(folder)
    written = []
    for module in _modules_of(ENTRY):
        file = folder / f"{_flat_name(module)}.py"
        file.write_text(_portable(module), encoding="utf-8")
        written.append(file)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = AUTO_MAP
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return written


def _modules_of(entry: str) -> list[str]:
    """The modules of this package that `entry` imports, anywhere in its files, itself included."""
    found, todo = [], [entry]
    while todo:
        module = todo.pop()
        if module in found or module == REGISTRATION:
            continue
        found.append(module)
        for node in ast.walk(ast.parse(_source(module).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("small_doge."):
                todo.append(str(node.module))
    return sorted(found)


def _source(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _flat_name(module: str) -> str:
    return re.sub(r"^small_doge\.(models\.doge|ops)\.", "", module).replace(".", "_")


def _portable(module: str) -> str:
    """The module's source with relative imports, without the registration, and with Triton optional."""
    text = _source(module).read_text(encoding="utf-8")
    # With the comment above it, which speaks of the package.
    text = re.sub(rf"(?:^ *#.*\n)*^ *import {re.escape(REGISTRATION)}.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(
        r"^( *)from (small_doge\.[\w.]+) import",
        lambda match: f"{match[1]}from .{_flat_name(match[2])} import",
        text,
        flags=re.MULTILINE,
    )
    # transformers refuses a file that imports what is not installed, unless it says in a try that it can do without.
    # Nothing imports these modules where Triton is missing.
    text = re.sub(
        r"((?:^(?:import triton|from triton)\b.*\n)+)",
        lambda match: (
            "try:\n" + re.sub(r"^", "    ", match[1].rstrip("\n"), flags=re.M) + "\nexcept ImportError:\n    raise\n"
        ),
        text,
        flags=re.MULTILINE,
    )
    assert "small_doge." not in "".join(re.findall(r"^ *(?:from|import) .*$", text, flags=re.MULTILINE))
    return text
