"""What of a bench file its cells depend on: its code, without comments and docstrings, and without what of its Study
reports alone read: claims, answer, outcome, the words on its metrics.

Editing a sentence must not make a measured cell be measured again, so all of these, and the part of a file that only
they reach, are left out of the file's hash.
"""

import ast
from collections.abc import Iterable

from mlexp.study import NOT_IN_KEY

DEFINITIONS = (ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
DOCUMENTED = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
READS_ITSELF = (b"__doc__", b"getdoc", b"getsource")  # in the source of a file whose docstrings are more than words


def measured_part(source: bytes) -> bytes:
    """The code of a file that cells depend on; the source as it is where it declares no Study."""
    if b"Study(" not in source:
        return source
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return source
    studies = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _name(node.func) == "Study"]
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _name(node.value) == "STUDY"}
    unread = set(NOT_IN_KEY) - read
    left_out = [keyword for call in studies for keyword in call.keywords if keyword.arg in unread]
    dead = _only_reached_from(left_out, tree)
    for call in studies:
        call.keywords = [keyword for keyword in call.keywords if keyword not in left_out]
        for keyword in call.keywords:
            if keyword.arg == "metrics" and "metrics" not in read:
                _leave_out_words(keyword.value, tree)
    tree.body = [stmt for stmt in tree.body if stmt not in dead]
    if not any(word in source for word in READS_ITSELF):
        _leave_out_docstrings(tree)
    return ast.unparse(tree).encode()


def _name(node: ast.expr) -> str | None:
    return getattr(node, "id", getattr(node, "attr", None))


def _leave_out_words(metrics: ast.expr, tree: ast.Module) -> None:
    """Of each metric what follows its unit (`fraction` bounds its values): which is better, what it is. Metrics that
    have a name of their own count in full where it is used elsewhere too."""
    if isinstance(metrics, ast.Name):
        uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == metrics.id]
        made = [stmt.value for stmt in tree.body if isinstance(stmt, ast.Assign) and metrics.id in _names(stmt)]
        if len(uses) != 2 or len(made) != 1:  # where it is made, and here
            return
        metrics = made[0]
    if isinstance(metrics, ast.Dict):
        metrics.values = [_unit_of(row) for row in metrics.values]


def _unit_of(row: ast.expr) -> ast.expr:
    """The unit of a metric that is declared as a tuple or as a Metric; else all of it."""
    if isinstance(row, ast.Tuple) and row.elts:
        return row.elts[0]
    if isinstance(row, ast.Call) and _name(row.func) == "Metric":
        units = [*row.args[:1], *(keyword.value for keyword in row.keywords if keyword.arg == "unit")]
        return units[0] if units else row
    return row


def _leave_out_docstrings(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]


def _only_reached_from(left_out: list[ast.keyword], tree: ast.Module) -> list[ast.stmt]:
    """The top-level definitions that nothing but these keywords uses."""
    skipped = {id(node) for keyword in left_out for node in ast.walk(keyword)}
    defined = {name: stmt for stmt in tree.body for name in _names(stmt)}
    uses = {id(stmt): {n for n in _loaded(stmt, skipped) if n in defined} for stmt in tree.body}
    reached = _closure({n for keyword in left_out for n in _loaded(keyword, set()) if n in defined}, defined, uses)
    suspects = [stmt for stmt in tree.body if _names(stmt) and set(_names(stmt)) <= reached]
    roots = [stmt for stmt in tree.body if stmt not in suspects]
    live = _closure({name for stmt in roots for name in uses[id(stmt)]}, defined, uses)
    return [stmt for stmt in suspects if not live & set(_names(stmt))]


def _closure(names: set[str], defined: dict[str, ast.stmt], uses: dict[int, set[str]]) -> set[str]:
    found, waiting = set(names), list(names)
    while waiting:
        for name in uses[id(defined[waiting.pop()])] - found:
            found.add(name)
            waiting.append(name)
    return found


def _names(stmt: ast.stmt) -> list[str]:
    """What a top-level statement defines; nothing where it is not a plain definition."""
    if not isinstance(stmt, DEFINITIONS):
        return []
    if isinstance(stmt, ast.FunctionDef | ast.ClassDef):
        return [stmt.name]
    if isinstance(stmt, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).partition(".")[0] for alias in stmt.names]
    targets = stmt.targets if isinstance(stmt, ast.Assign) else [stmt.target]
    names = [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    return names if all(isinstance(target, ast.Name | ast.Tuple) for target in targets) else []


def _loaded(tree: ast.AST, skipped: set[int]) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and id(node) not in skipped:
            yield node.id
