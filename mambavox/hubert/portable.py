"""The model's code in one file, which goes with every saved model: it loads where mambavox is not installed.

transformers' ``trust_remote_code`` imports Python files from a model's folder. The file is put together from the very
sources of the package: nothing is written twice, and nothing can drift apart.
"""

import ast
from functools import cache
from importlib.resources import files
from pathlib import Path

CODE_FILE = "modeling_mamba_hubert.py"

_MODELS = {
    "AutoConfig": "MambaHubertConfig",
    "AutoModel": "MambaHubertModel",
    "AutoModelForPreTraining": "MambaHubertForPreTraining",
    "AutoModelForCTC": "MambaHubertForCTC",
    "AutoModelForAudioClassification": "MambaHubertForSequenceClassification",
}
AUTO_MAP = {auto: f"{Path(CODE_FILE).stem}.{name}" for auto, name in _MODELS.items()}
"""What a configuration says of the file: which of its classes an Auto class is to take."""

SOURCES = (
    "errors.py",
    "files.py",
    "lengths.py",
    "ops/checks.py",
    "ops/scan_reference.py",
    "ops/conv_torch.py",
    "ops/ssd_scan.py",
    "ops/linear.py",
    "hubert/plain_ops.py",
    "nn/streaming.py",
    "nn/block.py",
    "nn/mamba.py",
    "nn/mamba2.py",
    "nn/bidirectional.py",
    "hubert/configuration.py",
    "hubert/streaming.py",
    "hubert/frontend.py",
    "hubert/layers.py",
    "hubert/masking.py",
    "hubert/modeling.py",
    "hubert/heads.py",
)
"""The sources in the order in which they need each other."""

_HEAD = '''"""Mamba-HuBERT (arXiv 2506.12606) in one file, made from the sources of mambavox (Apache-2.0).

``AutoModel.from_pretrained(folder, trust_remote_code=True)`` loads the model beside it. The scan runs on the kernels of
mambavox where that is installed (``pip install mambavox``), otherwise frame by frame in torch: right, but slow.
"""
'''
_KERNELS = """
try:
    from mambavox.ops import causal_conv1d, selective_scan, ssd_scan
except ImportError:
    pass
"""
_SAVING = """
AUTO_MAP = {auto_map!r}


def save_code(folder):
    Path(folder, {file!r}).write_bytes(Path(__file__).read_bytes())
"""


def save_code(folder: Path) -> None:
    """Write the file into a model's folder.

    Args:
        folder: which exists.
    """
    (folder / CODE_FILE).write_text(portable_code(), encoding="utf-8")


@cache
def portable_code() -> str:
    """The file's text."""
    imports: set[str] = set()
    parts = []
    for name in SOURCES:
        own_imports, body = _take_apart(files("mambavox").joinpath(name).read_text(encoding="utf-8"))
        imports |= own_imports
        parts.append(f"\n# mambavox/{name}\n\n{body}")
        if name == "hubert/plain_ops.py":
            parts.append(_KERNELS)
    saving = _SAVING.format(auto_map=AUTO_MAP, file=CODE_FILE)
    return "\n".join([_HEAD, *sorted(imports), saving, *parts])


def _take_apart(source: str) -> tuple[set[str], str]:
    """The imports of other packages, and what a source defines: its docstring and imports are left out."""
    tree = ast.parse(source)
    lines = source.splitlines()
    imports: set[str] = set()
    for index, node in enumerate(tree.body):
        docstring = index == 0 and isinstance(node, ast.Expr)
        imported = isinstance(node, ast.Import | ast.ImportFrom)
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not _ours(node)):
            imports.add(ast.unparse(node))
        if docstring or imported:
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)  # type: ignore[operator]
    return imports, "\n".join(lines).strip() + "\n"


def _ours(node: ast.ImportFrom) -> bool:
    return (node.module or "").partition(".")[0] == "mambavox"
