"""What a notebook does with cells, without one. Each line of input is a cell as JSON; names live on, and the last
expression is displayed: every display method that it has is called, as a notebook would."""

import ast
import contextlib
import io
import json
import sys
import traceback


def display(value: object) -> None:
    """Print a value as the interpreter does; what a notebook would show of it must be there too."""
    if value is None:
        return
    print(repr(value))
    methods = [getattr(value, name) for name in ("_repr_html_", "_repr_png_") if hasattr(value, name)]
    shown = [method() for method in methods]
    assert any(shown) or not methods, f"a notebook shows nothing of {type(value).__name__}"


def run(cell: str, names: dict[str, object]) -> None:
    tree = ast.parse(cell)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if last is not None:
        display(eval(compile(ast.Expression(last.value), "cell", "eval"), names))


def main() -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    for line in sys.stdin:
        printed = io.StringIO()
        answer = {}
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                run(json.loads(line), names)
            except Exception:
                answer["error"] = traceback.format_exc()
        print(json.dumps(answer | {"printed": printed.getvalue()}), flush=True)


main()
