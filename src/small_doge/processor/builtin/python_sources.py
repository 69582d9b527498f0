"""Read the docstrings of installed Python code by parsing its source files; nothing that is read is imported.

The one exception are modules written in C, which have no source to parse: a fixed list of standard ones, free of side
effects, is imported and inspected.
"""

import ast
import importlib.util
import inspect
import os
import re
import sys
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Test suites, vendored copies, generated code and demos: their docstrings are copies or noise.
SKIPPED_FOLDERS = {
    "test", "tests", "testing", "idlelib", "lib2to3", "distutils", "turtledemo", "ensurepip", "lib-dynload",
    "site-packages", "dist-packages", "__pycache__", "_vendor", "vendor", "_vendored", "externals", "extern",
    "encodings", "compat", "test_utils",
}  # fmt: skip
# transformers repeats the same sentences for hundreds of architectures: 10 MB of text, nearly all of it copies.
SKIPPED_TREES = (
    "transformers.models",
    "pip",
    "small_doge",
    "setuptools",
    "pkg_resources",
    "mypy",
    "mypyc",
    "ntpath",
    "pygments.lexers",
    "pygments.styles",
)
LARGEST_FILE = 1_000_000  # bytes; larger ones are generated tables
# Bytes of source read from one package, its outermost modules first: parsing all of torch, transformers and sympy would
# take most of a minute and bury the other packages.
PACKAGE_BUDGET = 1_500_000
# What people ask about most, wherever it lies in its package.
READ_FIRST = ("torch.nn.modules", "torch.nn.functional", "torch.optim", "transformers.trainer", "pandas.core.frame")
# Modules better known by another name, or that repeat a sibling.
PUBLIC_MODULE = {"posixpath": "os.path"}

C_MODULES = (
    "_asyncio", "_bisect", "_collections", "_contextvars", "_csv", "_datetime", "_functools", "_heapq", "_io",
    "_json", "_operator", "_random", "_socket", "_statistics", "_struct", "_thread", "_weakref", "array",
    "atexit", "binascii", "builtins", "cmath", "errno", "faulthandler", "fcntl", "gc", "grp", "itertools",
    "marshal", "math", "mmap", "posix", "pwd", "pyexpat", "resource", "select", "sys", "syslog", "termios",
    "time", "unicodedata", "zlib",
)  # fmt: skip
# A private C module's objects are known under the module that re-exports them.
C_PUBLIC_NAME = {"posix": "os", "_thread": "_thread"}


@dataclass
class Entry:
    """One docstring as found: where it belongs, what it documents, its raw text."""

    name: str
    kind: str  # module, class, function, method
    doc: str
    module: str
    parameters: list[str] = field(default_factory=list)
    signature: str = ""


def stdlib_root() -> Path:
    """The folder of the standard library's Python sources."""
    return Path(sysconfig.get_path("stdlib")).resolve()


def package_roots() -> list[Path]:
    """The folders of installed packages that this interpreter would import from."""
    named = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    named += [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    return sorted({Path(p).resolve() for p in named if p and Path(p).is_dir()})


def source_files(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (module name, path) for the Python files under `root`, tests and vendored code left out."""
    for folder, subfolders, files in os.walk(root):
        parts = Path(folder).relative_to(root).parts
        prefix = ".".join(parts)
        subfolders[:] = sorted(
            d
            for d in subfolders
            if d.isidentifier()
            and d not in SKIPPED_FOLDERS
            and ".".join((*parts, d)) not in SKIPPED_TREES
            and (not parts or Path(folder, "__init__.py").is_file())
        )
        for file in sorted(files):
            stem, extension = os.path.splitext(file)
            if extension != ".py" or not stem.isidentifier() or re.match(r"test_|conftest$|__main__$", stem):
                continue
            module = ".".join((*parts, stem)) if stem != "__init__" else prefix
            if module and module not in SKIPPED_TREES:
                yield module, Path(folder, file)


def parse(path: Path) -> ast.Module | None:
    """Parse one file; None where it is too large or is not valid for this Python."""
    if path.stat().st_size > LARGEST_FILE:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's files
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError):
            return None


class Exports:
    """Under which public names an object can be reached, from the imports of packages and top-level modules."""

    def __init__(self) -> None:
        self._named: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
        self._starred: dict[str, set[str]] = defaultdict(set)
        self._importers: dict[str, set[str]] = defaultdict(set)
        self._listed: dict[str, set[str]] = defaultdict(set)  # each module's `__all__`

    def add(self, module: str, tree: ast.Module, is_package: bool) -> None:
        """Note what `module` re-exports."""
        pending: list[ast.stmt] = list(tree.body)
        for node in pending:
            if isinstance(node, ast.If):
                pending.extend(node.body)
                pending.extend(node.orelse)
            elif isinstance(node, ast.Try):
                pending.extend(node.body)
            elif isinstance(node, ast.Assign) and any(
                isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets
            ):
                if isinstance(node.value, ast.List | ast.Tuple):
                    self._listed[module] |= {str(e.value) for e in node.value.elts if isinstance(e, ast.Constant)}
            elif isinstance(node, ast.ImportFrom):
                base = _absolute(module, node, is_package)
                for alias in node.names:
                    if alias.name == "*":
                        self._starred[base].add(module)
                    else:
                        self._named[base, alias.name].add((module, alias.asname or alias.name))
                        self._importers[base].add(module)

    def modules(self) -> set[str]:
        """The modules that are re-exported from."""
        return set(self._starred) | set(self._importers)

    def depth(self, module: str) -> int:
        """How far from its package's top the nearest module lies that re-exports from `module`, or it itself."""
        top = module.split(".")[0]
        seen, pending = {module}, [module]
        for here in pending:
            above = self._starred.get(here, set()) | self._importers.get(here, set())
            pending.extend(new := sorted(m for m in above if m.split(".")[0] == top and m not in seen))
            seen.update(new)
        return min(m.count(".") for m in seen if is_public(m) or m == module)

    def public_name(self, module: str, name: str) -> str | None:
        """The shortest public dotted name of a top-level object, or None where it has none."""
        top = module.split(".")[0]
        seen = {(module, name)}
        pending = [(module, name)]
        while pending:
            here = pending.pop()
            starred = {(m, here[1]) for m in self._starred.get(here[0], ())}
            # `decimal` stands for `_pydecimal`; but `pathlib` merely uses what it imports from `_collections_abc`.
            named = {(m, n) for m, n in self._named.get(here, ()) if m.split(".")[0] == top or n in self._listed[m]}
            new = {(m, n) for m, n in starred | named if m.split(".")[0] == top or top.startswith("_")} - seen
            seen |= new
            pending.extend(new)
        names = [f"{m}.{n}" for m, n in seen if is_public(f"{m}.{n}")]
        return min(names, key=lambda n: (n.count("."), len(n), n)) if names else None


def _absolute(module: str, node: ast.ImportFrom, is_package: bool) -> str:
    """The absolute name of the module that `from ... import` in `module` reads from."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    above = parts[: len(parts) - node.level + (1 if is_package else 0)]
    return ".".join([*above, *([node.module] if node.module else [])])


def is_public(name: str) -> bool:
    """Whether no part of the dotted name starts with an underscore."""
    return not any(part.startswith("_") for part in name.split("."))


def read_sources(root: Path, report: Counter) -> Iterator[Entry]:
    """Yield the docstrings of the public modules, classes, functions and methods under `root`."""
    files = dict(source_files(root))
    exports = Exports()
    packages: dict[str, ast.Module] = {}
    for module, path in files.items():
        # pandas re-exports through modules called `api`.
        if (path.stem in ("__init__", "api") or "." not in module) and (tree := parse(path)):
            packages[module] = tree
            exports.add(module, tree, path.name == "__init__.py")
    reexported = exports.modules()
    spent: Counter[str] = Counter()
    for module in sorted(
        files, key=lambda m: (not m.endswith("_docs"), not m.startswith(READ_FIRST), exports.depth(m), m)
    ):
        path, package = files[module], module.split(".")[0]
        if not is_public(module) and module not in reexported and not module.endswith("_docs"):
            report["files left out: private modules"] += 1
            continue
        spent[package] += path.stat().st_size
        if spent[package] > PACKAGE_BUDGET:
            report["files left out: beyond 1.5 MB of one package"] += 1
            continue
        tree = packages.pop(module, None) or parse(path)
        if tree is None:
            report["files left out: too large or not parsable"] += 1
            continue
        report["files read"] += 1
        yield from _entries(module, tree, exports)


def _entries(module: str, tree: ast.Module, exports: Exports) -> Iterator[Entry]:
    shown = PUBLIC_MODULE.get(module, module)
    if is_public(module) and (doc := ast.get_docstring(tree)):
        yield Entry(shown, "module", doc, shown)
    pending: list[ast.stmt] = list(tree.body)
    for node in pending:
        if isinstance(node, ast.If | ast.Try):
            pending.extend(node.body)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("_"):
                continue
            public = exports.public_name(module, node.name) if shown == module else f"{shown}.{node.name}"
            if public:
                yield from _definition(public, public.rpartition(".")[0], node)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield from _attached(node.value)


def _definition(
    name: str, module: str, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, inside: bool = False
) -> Iterator[Entry]:
    doc = ast.get_docstring(node)
    if isinstance(node, ast.ClassDef):
        methods = [n for n in node.body if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)]
        init = next((n for n in methods if n.name == "__init__" and not isinstance(n, ast.ClassDef)), None)
        if doc:
            parameters, signature = _signature(init, True) if isinstance(init, ast.FunctionDef) else ([], "")
            yield Entry(name, "class", doc, module, parameters, signature)
        for method in methods:
            if not method.name.startswith("_"):
                yield from _definition(f"{name}.{method.name}", module, method, inside=True)
    elif doc and not _is_overload(node):
        static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
        is_property = any("property" in ast.unparse(d) for d in node.decorator_list)
        parameters, signature = _signature(node, inside and not static)
        yield Entry(name, "method" if inside else "function", doc, module, parameters, "" if is_property else signature)


def _is_overload(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list)


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef, bound: bool) -> tuple[list[str], str]:
    """Parameter names and a short signature without annotations; `bound` leaves the first parameter out."""
    a = node.args
    positional = [*a.posonlyargs, *a.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(a.defaults)) + list(a.defaults)
    shown = [(p.arg, d) for p, d in zip(positional, defaults, strict=True)][1 if bound else 0 :]
    parts = [_parameter(name, default) for name, default in shown]
    if a.vararg:
        parts.append(f"*{a.vararg.arg}")
    elif a.kwonlyargs:
        parts.append("*")
    parts += [_parameter(p.arg, d) for p, d in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
    if a.kwarg:
        parts.append(f"**{a.kwarg.arg}")
    names = [name for name, _ in shown] + [p.arg for p in a.kwonlyargs]
    if len(parts) > 8:
        parts = [*parts[:8], "..."]
    return [n for n in names if not n.startswith("_")], f"({', '.join(parts)})"


def _parameter(name: str, default: ast.expr | None) -> str:
    if default is None:
        return name
    text = ast.unparse(default)
    return f"{name}={text}" if len(text) <= 20 else f"{name}=..."


def _attached(call: ast.Call) -> Iterator[Entry]:
    """Docstrings that torch and numpy attach to C functions by a call: `add_docstr(torch.abs, "...")` and its like."""
    function = call.func.id if isinstance(call.func, ast.Name) else ""
    if function == "add_docstr" and len(call.args) >= 2 and isinstance(call.args[0], ast.Attribute):
        name = ast.unparse(call.args[0])
    elif function == "add_docstr_all" and len(call.args) >= 2 and (text := _constant_text(call.args[0])):
        name = f"torch.Tensor.{text}"
    elif function == "add_newdoc" and len(call.args) >= 3 and (text := _constant_text(call.args[1])):
        name = f"numpy.{text}"
        target = call.args[2]
        if isinstance(target, ast.Tuple) and len(target.elts) == 2 and (text := _constant_text(target.elts[0])):
            name, call = f"{name}.{text}", ast.Call(call.func, [*call.args[:2], target.elts[1]], [])
    else:
        return
    doc = _constant_text(call.args[-1])
    if not doc or not is_public(name):
        return
    # `{input}` and its like stand for sentences that torch fills in when it runs.
    doc = inspect.cleandoc(re.sub(r"^.*(?<!\{)\{\w+\}.*$", "", doc, flags=re.M))
    first, _, rest = doc.partition("\n")
    signature = ""
    if match := re.match(r"[\w.]+(\([^)]*\))", first):
        signature, doc = match.group(1), rest.strip()
    kind = "method" if name.count(".") > 1 and name.split(".")[-2][:1].isupper() else "function"
    parameters = [p for p in re.findall(r"(\w+)(?:=[^,)]*)?", signature) if p.isidentifier()]
    yield Entry(name, kind, doc, name.rpartition(".")[0], parameters, signature)


def _constant_text(node: ast.expr) -> str:
    """The text of a string expression made of literals, `+` and `.format`, else an empty string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _constant_text(node.left) + _constant_text(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return _constant_text(node.func.value)
    return ""


def read_c_modules() -> Iterator[Entry]:
    """Yield the docstrings of the standard modules written in C; those absent on this platform are passed over."""
    for imported in C_MODULES:
        if imported not in sys.builtin_module_names and importlib.util.find_spec(imported) is None:
            continue
        module = importlib.import_module(imported)
        public = C_PUBLIC_NAME.get(imported, imported.lstrip("_"))
        if module.__doc__:
            yield Entry(public, "module", inspect.cleandoc(module.__doc__), public)
        for name, value in sorted(vars(module).items()):
            if name.startswith("_") or inspect.ismodule(value) or not callable(value):
                continue
            where = getattr(value, "__module__", None) or imported
            if where.lstrip("_") != imported.lstrip("_") and where != "builtins":
                continue
            full = name if public == "builtins" else f"{public}.{name}"
            yield from _inspected(full, public, value)


def _inspected(name: str, module: str, value: object) -> Iterator[Entry]:
    is_class = inspect.isclass(value)
    doc = value.__doc__ if isinstance(value.__doc__, str) else ""
    parameters, signature = _runtime_signature(value)
    if doc:
        yield Entry(name, "class" if is_class else "function", inspect.cleandoc(doc), module, parameters, signature)
    if not inspect.isclass(value):
        return
    for member, attribute in sorted(vars(value).items()):
        text = getattr(attribute, "__doc__", None)
        if not member.startswith("_") and callable(attribute) and isinstance(text, str):
            parameters, signature = _runtime_signature(attribute)
            parameters = [p for p in parameters if p not in ("self", "type", "cls")]
            signature = re.sub(r"^\((self|type|cls)(, /)?(, )?", "(", signature)
            yield Entry(f"{name}.{member}", "method", inspect.cleandoc(text), module, parameters, signature)


def _runtime_signature(value: object) -> tuple[list[str], str]:
    try:
        signature = inspect.signature(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, AttributeError):  # C code that states none, or one that Python cannot evaluate
        return [], ""
    return list(signature.parameters), str(signature)
