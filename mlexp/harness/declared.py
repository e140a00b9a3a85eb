"""What of a bench file its cells depend on: all of it but the claims, figures and answer of its Study.

Editing a sentence must not make a measured cell be measured again, so the part of a file that only these reach is left
out of the file's hash.
"""

import ast
from collections.abc import Iterable

from mlexp.study import NOT_IN_KEY

DEFINITIONS = (ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)


def measured_part(source: bytes) -> bytes:
    """The source of a file without what only the claims of its Study reach; as it is where it declares no Study."""
    if b"Study(" not in source:
        return source
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return source
    left_out = [
        keyword
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", None)) == "Study"
        for keyword in node.keywords
        if keyword.arg in NOT_IN_KEY
    ]
    dead = _only_reached_from(left_out, tree)
    return _without(source, [*left_out, *dead])


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


def _without(source: bytes, nodes: list[ast.keyword | ast.stmt]) -> bytes:
    """The source without the text of these nodes, which all have a place in it."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    spans = []
    for node in nodes:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        begin = starts[first - 1] + (node.col_offset if isinstance(node, ast.keyword) else 0)
        last = node.end_lineno or first
        whole = isinstance(node, ast.stmt)  # with the comment behind it
        spans.append((begin, starts[last] if whole else starts[last - 1] + (node.end_col_offset or 0)))
    for begin, end in sorted(spans, reverse=True):
        source = source[:begin] + source[end:]
    return source
